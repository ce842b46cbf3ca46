"""Which widths find the rule, and how much of it may be held out?"""
import random

from plot_results import accuracy, draw_cells, markdown_table

num_seeds = 4
eval_interval = 1000

PAIRS = [f"{a}-{b}" for a in range(10) for b in range(a + 1, 10)]
random.Random(1337).shuffle(PAIRS)  # each number of pairs takes the first ones
runs = [dict(name=f"n_embd_{n}_pairs_{k}", n_embd=n, held_out=",".join(PAIRS[:k]))
        for n in (10, 14, 20, 28, 40) for k in (1, 2, 5, 10, 20)]
NOTES = """\
Liu et al. 2022 (arXiv 2205.10343), by the mean scores, right from 95% on. Confusion: not even the seen
equations are; memorisation: they alone; comprehension: the held-out ones too; grokking: these after more than
twice as many iterations.
"""


def phase(run) -> str:
    """A run's phase: see NOTES."""
    seen, unseen = (accuracy(run, name).mean(1) >= 0.95 for name in ("seen", "heldout"))  # (N,)
    if not (seen[-1] and unseen[-1]):
        return "memorisation" if seen[-1] else "confusion"
    return "grokking" if run.iters[unseen.argmax()] > 2 * run.iters[seen.argmax()] else "comprehension"


def draw(fig, logs):
    """Seen and held-out answers right, over the width and the number of held-out pairs."""
    place = {(run.info["config"]["n_embd"], len(run.info["held_out"])): run for run in logs}
    fig.set_size_inches(7, 4)
    for ax, name, title in zip(fig.subplots(1, 2, sharey=True), ("seen", "heldout"), ("seen", "held-out")):
        draw_cells(ax, {cell: 100 * accuracy(run, name)[-1].mean() for cell, run in place.items()})
        ax.set(xlabel="pairs held out, of 45", title=f"{title} answers right (%)")
    fig.axes[0].set_ylabel("width of the model")
    rows, columns = (sorted(set(axis)) for axis in zip(*place))
    cells = [[f"width {n}", *(phase(place[n, k]) if (n, k) in place else "-" for k in columns)] for n in rows]
    return markdown_table("Phases", NOTES, [["pairs held out", *map(str, columns)], *cells])
