"""Does a model that memorises the small table learn the rule of a larger one?"""
import numpy as np

import eval_as_math
from data.stats import mean_and_range
from plot_results import GREY, HELDOUT, HELDOUT_LEVELS, SEEN, accuracy, draw_cells

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
    plane, width = fig.subplots(1, 2, width_ratios=(3, 2))
    cells = [run for run in logs if not run.folder.name.endswith("_exposure")]
    parameters = np.array([run.info["parameters"] for run in cells])
    equations = np.array([TRAINED[run.info["numbers"]] for run in cells])
    seen, unseen = (np.array([accuracy(run, name)[-1].mean() for run in cells])
                    for name in ("seen", "heldout"))
    places = [*zip(parameters, equations)]
    draw_cells(plane, dict(zip(places, 100 * unseen)),
               {place: f"{100 * b:.0f}\n({100 * a:.0f})" for place, a, b in zip(places, seen, unseen)})
    numbers = {TRAINED[run.info["numbers"]]: run.info["numbers"] for run in cells}
    widths = {run.info["parameters"]: run.info["config"]["n_embd"] for run in cells}
    plane.set_xticks(range(len(numbers)), [f"{numbers[n]}\n({n:,})" for n in sorted(numbers)])
    plane.set_yticks(range(len(widths)), [f"{n:,}\n({widths[n]})" for n in sorted(widths)])
    plane.set(xlabel="numbers (equations trained on)", ylabel="parameters (width of the model)",
              title="Held-out answers right (%),\nin brackets seen ones")
    narrow = sorted((run for run in cells if run.info["config"]["n_embd"] == WIDTH),
                    key=lambda run: run.info["numbers"])
    equal = [run for run in narrow if run.info["numbers"] == 10] + [run for run in logs if run not in cells]
    return draw_ridge(plane, parameters, equations, unseen) + draw_width(width, narrow, equal)


def ridge(x, right):
    """c, h and R^2 of right = h exp(-ln(x / c)^2 / 2 s^2), both (cells,), by least squares: c and s on a
    grid, h the best for these."""
    c, s = (grid[..., None] for grid in np.meshgrid(np.geomspace(x.min(), x.max(), 200),
                                                    np.geomspace(0.2, 5, 60)))
    curve = np.exp(-np.log(x / c) ** 2 / (2 * s ** 2))  # (60, 200, cells)
    h = (curve * right).sum(-1, keepdims=True) / (curve ** 2).sum(-1, keepdims=True)
    errors = ((right - h * curve) ** 2).sum(-1)
    best = np.unravel_index(errors.argmin(), errors.shape)
    return c[best].item(), h[best].item(), 1 - errors[best] / ((right - right.mean()) ** 2).sum()


def draw_ridge(ax, parameters, equations, right) -> str:
    """The line parameters = c x equations on which most answers are right, if it explains half of the
    differences between cells; all (cells,). Returns what it explains."""
    if len(right) < 10 or np.ptp(right) == 0:
        return f"{len(right)} cells are too few, or too alike, for a line.\n"
    c, h, explained = ridge(parameters / equations, right)
    if explained >= 0.5:
        rows, columns = np.unique(parameters), np.unique(equations)
        x = np.geomspace(*columns[[0, -1]], 200)
        x = x[(c * x >= rows[0]) & (c * x <= rows[-1])]
        ax.plot(np.interp(np.log(x), np.log(columns), range(len(columns))),
                np.interp(np.log(c * x), np.log(rows), range(len(rows))), color="#EE3377", linewidth=2,
                label=f"most held-out answers right: {c:.2g} parameters an equation")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return (f"The share of held-out answers right as h exp(-ln(x / c)^2 / 2 s^2), by least squares over "
            f"{len(right)} cells\n(the form was chosen when 15 had been seen): R^2 = {explained:.2f} of x = "
            f"parameters / equations, with c = {c:.3g}\nand h = {100 * h:.0f}%; "
            f"{ridge(parameters, right)[2]:.2f} of x = parameters, {ridge(equations, right)[2]:.2f} of x = "
            "equations.\n")


def draw_width(ax, narrow, equal) -> str:
    """Of one width seen answers, held-out ones, and these within 1, over numbers. Says the last."""
    texts, labels = [], ("seen", "held-out", "held-out within 1")
    colors = (SEEN, HELDOUT, HELDOUT_LEVELS["half or more"][1])
    for runs, name, style in ((narrow, "", "o-"), (equal, ", equal exposure", "s--")):
        numbers, near = [run.info["numbers"] for run in runs], [*map(within_1, runs)]
        texts += [f"{n} numbers{name} {mean_and_range(seeds)}%" for n, seeds in zip(numbers, near)]
        seen, unseen = ([accuracy(run, of)[-1] for run in runs] for of in ("seen", "heldout"))
        for shares, label, color in zip((seen, unseen, near), labels, colors):
            ax.plot(numbers, [100 * seeds.mean() for seeds in shares], style, color=color,
                    label=label if runs is narrow else "")
    ax.plot([], [], "s--", color=GREY, label="each equation shown as often as of 10 numbers")
    ax.set(ylim=(-5, 105), xlabel="numbers", ylabel="answers right (%)",
           title=f"Width {WIDTH}, by the size of the table")
    ax.grid(color="#DDDDDD", linewidth=0.6)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, fontsize=9)
    return f"Width {WIDTH}, held-out answers within 1, mean (lowest to highest): {'; '.join(texts)}.\n"


def within_1(run):
    """The shares (S,) of held-out answers that are right or wrong by 1."""
    texts, held_out, _ = eval_as_math.ask_again(run)  # (S, P, num_samples)
    off = abs(eval_as_math.numbers(texts) - eval_as_math.answers_of(texts.shape[1])[:, None])
    return (off <= 1)[:, held_out].mean((1, 2))
