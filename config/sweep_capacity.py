"""Where is the rule found, and where is it lost?"""
import numpy as np

from data.stats import bootstrap, wilson
from plot_results import GREY, HELDOUT, REFERENCES, SEEN, accuracy

eval_interval = 1000

SEEDS = {6: 16, 8: 16, 10: 32, 12: 32, 14: 32, 16: 32, 18: 32, 20: 32, 24: 16, 28: 16,
         32: 8, 40: 8, 48: 8, 56: 8}
runs = [dict(n_embd=n, num_seeds=seeds) for n, seeds in SEEDS.items()]


def draw(fig, logs):
    """Right answers, and the loss between rule-follower and memoriser, over the number of parameters."""
    logs = sorted(logs, key=lambda run: run.info["parameters"])
    x, (top, bottom) = np.array([run.info["parameters"] for run in logs]), fig.subplots(2, sharex=True)
    unseen, rule = [accuracy(run, "heldout")[-1] for run in logs], logs[0].info["rule_loss"]
    mean = 100 * np.array([seeds.mean() for seeds in unseen])
    top.plot(x, [100 * accuracy(run, "seen")[-1].mean() for run in logs], "^:", color=SEEN,
             label="seen answers right")
    top.plot(x, mean, "s--", color=HELDOUT, alpha=0.6,
             label="held-out answers right, mean with its 95% interval")
    band = 100 * np.transpose([bootstrap(seeds) for seeds in unseen])  # (2, runs)
    top.fill_between(x, *band, color=HELDOUT, alpha=0.12)
    every = np.array([(seeds == 1).mean() for seeds in unseen])
    ends = np.transpose([wilson(int((seeds == 1).sum()), len(seeds)) for seeds in unseen])  # (2, runs)
    top.errorbar(x, 100 * every, 100 * abs(ends - every), color=HELDOUT, marker="o", capsize=3,
                 label="seeds with all held-out answers right, 95% interval")
    top.set(ylim=(-5, 105), ylabel="share (%)", title=f"Held-out answers right: most, {mean.max():.0f}%, at "
            f"{x[mean.argmax()]:,} parameters; {mean[-1]:.0f}% in the largest model")
    losses = [run.columns["train_loss"][-1] for run in logs]
    below = [n for n, seeds in zip(x, losses) if seeds.mean() < rule]
    bottom.plot(np.repeat(x, [*map(len, losses)]), np.concatenate(losses), ".", color="#BBBBBB",
                label="one seed")
    bottom.plot(x, [seeds.mean() for seeds in losses], "o-", color=GREY, label="mean over seeds")
    for name, (label, dashes) in REFERENCES.items():
        bottom.axhline(logs[0].info[name], color="black", linestyle=dashes, linewidth=0.8, label=label)
    bottom.set(xscale="log", xlabel="parameters (width of the model)", ylabel="loss (nats)",
               title="Loss below the rule-follower's is memory: " +
               (f"from {below[0]:,} parameters on" if below else "in no model"))
    bottom.set_xticks(x, [f"{n:,} ({run.info['config']['n_embd']})" for n, run in zip(x, logs)], rotation=90)
    bottom.minorticks_off()
    for ax, height in ((top, 0.9), (bottom, 1)):
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.legend(fontsize=9, loc="upper right", bbox_to_anchor=(1, height))
