"""The paper's three grid figures and Tables 2-4, from the logs of up to twelve runs.
  python plot_all_models.py --root_dir=. [--wd]

Writes grid_math.png, grid_facts.png, grid_combined.png and tables.md into root_dir; with --wd those of the
regularised runs, under names that end in _wd. A run that is not under root_dir is read from results/.
"""
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from config import Key, UserError
from data import replace_file
from plot_results import (
    FORMAT,
    SCORES_OF,
    RunLog,
    describe,
    draw,
    frame,
    legend,
    read_run,
    save,
    share,
    tasks_of,
)

RESULTS = Path(__file__).resolve().parent / "results"
KEYS = {
    "root_dir": Key(".", "folder of the runs' folders, and for the figures and tables"),
    "wd": Key(False, "the regularised runs"),
    "format": FORMAT,
}
MODELS = {"14": "n14", "28": "n28", "56": "n56", "mlt": "MLT"}
FIGURES = {"math": "grid_math", "facts": "grid_facts", "both": "grid_combined"}
HEADINGS = {"math": "Table 2: arithmetic", "facts": "Table 3: capitals", "both": "Table 4: both at once"}
BEST_BY = {"math": "math_acc", "facts": "facts_acc", "both": "combined_acc"}
NAMES = {"add": "addition", "sub": "subtraction", "facts": "capitals", "combined": "combined"}
PAPER = {  # best checkpoint of one seed; in the order of the tables' columns, held-out last
    "math": {"14": ["100%", "100%", "40/40"], "28": ["98%", "98%", "0/40"], "56": ["98%", "98%", "0/40"],
             "mlt": ["98%", "98%", "0/40"]},
    "facts": {"14": ["8.2%"], "28": ["100%"], "56": ["100%"], "mlt": ["100%"]},
    "both": {"14": ["31.2%", "39.4%", "2.0%", "28.6%", "0/40"],
             "28": ["95.0%", "97%", "87.6%", "94.3%", "0/40"],
             "56": ["98%", "98%", "100%", "98.4%", "0/40"],
             "mlt": ["98%", "98%", "100%", "98.4%", "0/40"]},
}
NOTES = """\
paper: best checkpoint of one seed. best: the paper's protocol on our runs, per seed the evaluation with the
highest score, which includes the held-out cases. last: the last evaluation. Scores are mean (lowest to
highest) over seeds; held-out is right / asked over all seeds; the interval for the share of seeds is
Wilson's, 95%.
"""


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for a share of which k of n >= 1 were seen:

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with p = k / n and z = 1.96.
    """
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(0.0, low), min(1.0, high)


def find_run(name: str, root: Path) -> tuple[RunLog | None, str]:
    """The run `name` under `root`, else under results/, else None; with a note that says if it is from there.

    Raises UserError if the run's folder is damaged.
    """
    if (root / name).is_dir():
        return read_run(root / name), ""
    if (RESULTS / name).is_dir():
        return read_run(RESULTS / name), " (from results/)"
    return None, ""


def best(run: RunLog, operation: str) -> np.ndarray:
    """The index of each seed's best evaluation, the first of equals: (S,)."""
    return run.columns[BEST_BY[operation]].argmax(axis=0)


def last(run: RunLog) -> np.ndarray:
    """The index of each seed's last evaluation: (S,)."""
    return np.full(len(run.notes["seeds"]), len(run.iters) - 1)


def percent(x: float) -> str:
    """A share in percent with up to four digits: 99.96 must not read as 100."""
    return f"{100 * x:.4g}%"


def spread(values: np.ndarray) -> str:
    """Mean (lowest to highest) over the seeds, of shares (S,)."""
    mean = percent(values.mean())
    return mean if len(values) == 1 else f"{mean} ({percent(values.min())} to {percent(values.max())})"


def cells(run: RunLog, operation: str, at: np.ndarray) -> list[str]:
    """A table's cells for the evaluations `at` (S,), one per seed."""
    seeds = np.arange(len(at))
    row = [spread(share(run, name)[at, seeds]) for name in columns(operation)]
    if "math" in run.notes["tasks"]:
        right, asked = (run.columns[f"heldout_{k}"][at, seeds] for k in ("correct", "total"))
        k, n = int((right == asked).sum()), len(at)
        low, high = wilson(k, n)
        row += [f"{right.sum():.0f}/{asked.sum():.0f}",
                f"{k} of {n}: {percent(k / n)} ({100 * low:.3g}% to {100 * high:.3g}%)"]
    first, end = run.iters[at].min(), run.iters[at].max()
    return [*row, str(len(at)), f"{end:,}" if first == end else f"{first:,} to {end:,}"]


def columns(operation: str) -> list[str]:
    """The scores that an operation's table shows."""
    return SCORES_OF.get(operation) or [*SCORES_OF["math"], *SCORES_OF["facts"], "combined"]


def table(operation: str, runs: dict[str, tuple[RunLog | None, str]], wd: bool) -> str:
    """One table in Markdown, from {size: (run, note)}; the paper has no numbers for the regularised runs."""
    heldout = ["held-out (5,7)", "seeds with all held-out right"] if operation != "facts" else []
    rows = [["model", "", *(NAMES[name] for name in columns(operation)), *heldout, "seeds", "iteration"]]
    width = len(rows[0])
    for size, (run, note) in runs.items():
        if not wd:
            paper = [*PAPER[operation][size], *["-"] * (operation != "facts"), "1", "-"]
            rows.append([MODELS[size], "paper", *paper])
        if not run:
            rows.append([MODELS[size], "not run", *["-"] * (width - 2)])
            continue
        for label, at in (("best", best(run, operation)), ("last", last(run))):
            rows.append([MODELS[size] + note, label, *cells(run, operation, at)])
    rows.insert(1, ["---"] * width)
    widths = [max(len(row[i]) for row in rows) for i in range(width)]
    padded = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([f"## {HEADINGS[operation]}{', regularised' if wd else ''}", "", *lines, ""])


def panel(ax: Axes, operation: str, size: str, run: RunLog | None, note: str, end: str) -> None:
    """One model's panel: its curves, or the command that trains it."""
    if run:
        draw(ax, run, tasks_of(run, operation))
        ax.set_title(f"{MODELS[size]}: {describe(run)}{note}", fontsize=10)
        return
    frame(ax)
    ax.set_title(f"{MODELS[size]}: not run", fontsize=10)
    command = f"python train_with_eval.py config/train_{operation}_mini_{size}{end}.py"
    ax.text(0.5, 0.5, f"to train it:\n{command}", transform=ax.transAxes, ha="center", va="center",
            fontsize=7.5, bbox={"color": "white"})


def grid(operation: str, runs: dict[str, tuple[RunLog | None, str]], end: str) -> Figure:
    """The 2 x 2 figure of an operation, from {size: (run, note)}."""
    fig = Figure(figsize=(9.6, 7.4), layout="constrained")
    panels = fig.subplots(2, 2, sharex=True).flat
    for ax, (size, (run, note)) in zip(panels, runs.items(), strict=True):
        panel(ax, operation, size, run, note, end)
    for ax in fig.axes:
        ax.label_outer()
    legend(fig, 3)
    return fig


def main(argv: list[str]) -> None:
    """Draw the figures and write the tables that the command line asks for."""
    args = {name: key.default for name, key in KEYS.items()} | config.parse(argv, KEYS, __doc__)[0]
    root, end = Path(args["root_dir"]), "_wd" if args["wd"] else ""
    if not root.is_dir():
        raise UserError(f"--root_dir={root}: no such folder; expected one with runs such as math_mini_14")
    runs = {op: {size: find_run(f"{op}_mini_{size}{end}", root) for size in MODELS} for op in FIGURES}
    figures = {name: grid(op, runs[op], end) for op, name in FIGURES.items()}
    text = "\n".join([NOTES, *(table(op, runs[op], args["wd"]) for op in FIGURES)])
    for name, fig in figures.items():
        save(fig, root / f"{name}{end}.{args['format']}")
    replace_file(root / f"tables{end}.md", lambda f: f.write(text.encode()))
    print(f"wrote {root / f'tables{end}.md'}\n\n{text}")


if __name__ == "__main__":
    config.run(main)
