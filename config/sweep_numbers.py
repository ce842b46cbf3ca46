"""Does a model that memorises the small table learn the rule of a larger one?"""
import numpy as np

import eval_as_math
from data.stats import mean_and_range
from plot_results import HELDOUT, HELDOUT_LEVELS, SEEN, accuracy, draw_cells

held_out = "5%"
eval_interval = 2000
num_samples = 1
temperature = 0.0

TRAINED = {10: 192, 14: 372, 20: 760, 28: 1492, 40: 3044}  # equations of each table, 5% of its pairs held out


def cell(numbers, n_embd):
    """A run of the plane; a window holds the longest equation, <9+9=18> or <10-39=-29>."""
    return dict(name=f"numbers_{numbers}_n_embd_{n_embd}", numbers=numbers, n_embd=n_embd,
                num_seeds=2 if numbers >= 28 and n_embd >= 40 else 4, block_size=9 if numbers == 10 else 11)


runs = sorted((cell(numbers, n_embd) for numbers in TRAINED for n_embd in (14, 20, 28, 40, 56)),
              key=lambda run: run["numbers"] * run["n_embd"] ** 2)  # the small ones first
# and each equation as often as in the smallest table: the schedule stretched in that proportion
SCHEDULE = {"warmup_iters": 2_000, "lr_decay_iters": 25_000, "max_iters": 30_000}
runs += [cell(n, 28) | {key: round(iters * TRAINED[n] / TRAINED[10]) for key, iters in SCHEDULE.items()} |
         {"name": f"numbers_{n}_n_embd_28_exposure"} for n in (14, 20, 28)]
WIDTH = 28


def draw(fig, logs):
    """The plane of numbers and parameters; beside it one width, and the same with exposures made equal."""
    fig.set_size_inches(9, 5)
    left, right = fig.subplots(1, 2, width_ratios=(3, 2))
    cells = [run for run in logs if not run.folder.name.endswith("_exposure")]
    at = [(run.info["parameters"], TRAINED[run.info["numbers"]]) for run in cells]
    seen, unseen = (np.array([accuracy(run, name)[-1].mean() for run in cells])
                    for name in ("seen", "heldout"))
    draw_cells(left, dict(zip(at, 100 * unseen)),
               {cell: f"{100 * b:.0f}\n({100 * a:.0f})" for cell, a, b in zip(at, seen, unseen)})
    numbers = {TRAINED[run.info["numbers"]]: run.info["numbers"] for run in cells}
    widths = {run.info["parameters"]: run.info["config"]["n_embd"] for run in cells}
    left.set_xticks(range(len(numbers)), [f"{numbers[n]}\n({n:,})" for n in sorted(numbers)])
    left.set_yticks(range(len(widths)), [f"{n:,}\n({widths[n]})" for n in sorted(widths)])
    left.set(xlabel="numbers (equations trained on)", ylabel="parameters (width of the model)",
             title="Held-out answers right (%),\nin brackets seen ones")
    narrow = sorted((run for run in cells if run.info["config"]["n_embd"] == WIDTH),
                    key=lambda run: run.info["numbers"])
    equal = [run for run in narrow if run.info["numbers"] == 10] + [run for run in logs if run not in cells]
    return draw_line(left, np.array(at).T, unseen) + draw_width(right, narrow, equal)


def fit(x, right):
    """c and R^2 of right = 1 / (1 + (x / c)^k), both (cells,), by least squares on a grid, c as far as x."""
    c, k = np.meshgrid(np.geomspace(x.min(), x.max(), 300), np.linspace(-16, 16, 129))
    errors = ((right - 1 / (1 + (x / c[..., None]) ** k[..., None])) ** 2).sum(-1)
    best = np.unravel_index(errors.argmin(), errors.shape)
    return c[best], 1 - errors[best] / ((right - right.mean()) ** 2).sum()


def draw_line(ax, at, right) -> str:
    """The line parameters = c x equations at which half of the answers are right, if it explains half of the
    differences between cells; at (2, cells) are both. Returns what it explains."""
    if len(right) < 10 or np.ptp(right) == 0:
        return f"{len(right)} cells are too few, or too alike, for a line.\n"
    (c, share), alone = fit(at[0] / at[1], right), [fit(one, right)[1] for one in at]
    if share >= 0.5:
        rows, columns = map(np.unique, at)
        x = np.geomspace(*columns[[0, -1]], 200)
        x = x[(c * x >= rows[0]) & (c * x <= rows[-1])]
        ax.plot(np.interp(np.log(x), np.log(columns), range(len(columns))),
                np.interp(np.log(c * x), np.log(rows), range(len(rows))), color="#EE3377", linewidth=2,
                label=f"parameters = {c:.3g} x equations")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return (f"The share of held-out answers right as 1 / (1 + (x / c)^k), by least squares over {len(right)} "
            f"cells:\nR^2 = {share:.2f} of x = parameters / equations, with c = {c:.3g}; {alone[0]:.2f} of x "
            f"= parameters, {alone[1]:.2f} of x = equations.\n")


def draw_width(ax, narrow, equal) -> str:
    """Of one width seen answers, held-out ones, and these within 1, over numbers. Says the last."""
    said = []
    for runs, name, style in ((narrow, "", "o-"), (equal, ", equal exposure", "s--")):
        x, near = [run.info["numbers"] for run in runs], [*map(within_1, runs)]
        said += [f"{n} numbers{name} {mean_and_range(seeds)}%" for n, seeds in zip(x, near)]
        seen, unseen = ([accuracy(run, of)[-1] for run in runs] for of in ("seen", "heldout"))
        for shares, label, color in ((seen, "seen", SEEN), (unseen, "held-out", HELDOUT),
                                     (near, "held-out within 1", HELDOUT_LEVELS["half or more"][1])):
            ax.plot(x, [100 * seeds.mean() for seeds in shares], style, color=color, label=label + name)
    ax.set(ylim=(-5, 105), xlabel="numbers", ylabel="answers right (%)", title=f"Width {WIDTH}")
    ax.grid(color="#DDDDDD", linewidth=0.6)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, fontsize=9)
    return f"Width {WIDTH}, held-out answers within 1, mean (lowest to highest): {'; '.join(said)}.\n"


def within_1(run):
    """The shares (S,) of held-out answers that are right or wrong by 1."""
    texts, held_out, _ = eval_as_math.ask_again(run)  # (S, P, num_samples)
    off = abs(eval_as_math.numbers(texts) - eval_as_math.answers_of(texts.shape[1])[:, None])
    return (off <= 1)[:, held_out].mean((1, 2))
