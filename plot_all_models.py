"""The paper's three grid figures and Tables 2-4, from the logs of up to twelve runs.
  python plot_all_models.py --root_dir=. [--wd]

Writes grid_math.png, grid_facts.png, grid_combined.png and tables.md into root_dir, and plot.png into each
run's folder there; with --wd those of the regularised runs, under names that end in _wd. A run that is not
under root_dir is read from results/.
"""
import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from config import Key, UserError
from data import replace_file
from plot_results import (
    COUNT,
    FORMAT,
    OPERATIONS,
    SCORES_OF,
    TOTAL,
    RunLog,
    describe,
    draw,
    figure,
    frame,
    legend,
    read_run,
    read_text,
    save,
    share,
    strips_of,
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
DATA = {"math": "arithmetic", "facts": "capitals", "both": "both"}
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
Runs = dict[str, tuple[RunLog | None, str]]  # {size: (its log if it was run, a note on where it lies)}
NOTES = """\
paper: best checkpoint of one seed. best: the paper's protocol on our runs, per seed the evaluation with the
highest score, which includes the held-out cases. last: the last evaluation. Scores are mean (lowest to
highest) over seeds; held-out is right / asked over all seeds; the interval for a share of seeds is Wilson's,
95%. Minutes are those of the whole run, all its seeds and evaluations.
"""
LOSS_NOTES = """\
The loss at the last evaluation, in nats per character, mean (lowest to highest) over seeds, beside those of
the ideal rule-follower and of the perfect memoriser. The way is (rule - loss) / (rule - memoriser): 0% is the
rule-follower, 100% the memoriser, and less than 0% a model that has not got as far as the rule.
"""
BEST_NOTES = """\
The score (the accuracy over all prompts) at each seed's best evaluation less that at its last, in points:
what is gained by choosing the checkpoint on the very prompts, held-out ones included, that it is judged by.
"""
HELDOUT_NOTES = """\
Seeds that get every sample of the four held-out equations right at the last evaluation; that get some sample
right then; that got some right at any evaluation. Then, where eval_as_math.csv has all seeds at the last
evaluation (eval_as_math.py --all_seeds), those that fail on an equation, in one sample of it or in all.
"""
EQUATIONS = ("5+7", "7+5", "5-7", "7-5")
EVALUATION = {"seed": config.KEYS["seed"], "iter": config.KEYS["max_iters"], "a": COUNT, "b": COUNT,
              "correct": COUNT, "total": TOTAL}


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for a share of which k of n >= 1 were seen:

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with p = k / n and z = 1.96.
    """
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(0.0, low), min(1.0, high)


def not_run(size: str) -> str:
    """What is said of a model that has no log; the MLT's 30,000 iterations take days on a CPU."""
    return "not run: needs a GPU" if size == "mlt" else "not run"


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


def spread(values: np.ndarray, form: Callable = percent) -> str:
    """Mean (lowest to highest) over the seeds, of shares or, in another `form`, of other values (S,)."""
    mean, low, high = (form(x) for x in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def seeds_that(hit: np.ndarray) -> str:
    """Of how many seeds something is true, from bool (S,), with the share and its interval."""
    k, n = int(hit.sum()), len(hit)
    low, high = wilson(k, n)
    return f"{k} of {n}: {percent(k / n)} ({100 * low:.3g}% to {100 * high:.3g}%)"


def heldout(run: RunLog, at: np.ndarray) -> tuple[str, np.ndarray]:
    """The held-out cases at the evaluations `at` (S,): 'right/asked', and who has all right, bool (S,)."""
    right, asked = (run.columns[f"heldout_{k}"][at, np.arange(len(at))] for k in ("correct", "total"))
    return f"{right.sum():.0f}/{asked.sum():.0f}", right == asked


def cells(run: RunLog, operation: str, at: np.ndarray) -> list[str]:
    """A table's cells for the evaluations `at` (S,), one per seed."""
    row = [spread(share(run, name)[at, np.arange(len(at))]) for name in columns(operation)]
    if "math" in run.notes["tasks"]:
        score, everything = heldout(run, at)
        row += [score, seeds_that(everything)]
    first, end = run.iters[at].min(), run.iters[at].max()
    minutes = run.columns["elapsed_s"][-1].max() / 60
    return [*row, str(len(at)), f"{end:,}" if first == end else f"{first:,} to {end:,}", f"{minutes:,.1f}",
            run.notes["device"]]


def columns(operation: str) -> list[str]:
    """The scores that an operation's table shows."""
    return SCORES_OF.get(operation) or [*SCORES_OF["math"], *SCORES_OF["facts"], "combined"]


def markdown(heading: str, notes: str, rows: list[list[str]]) -> str:
    """A section with a table in Markdown; the first row is its header, and short rows are filled up."""
    width = len(rows[0])
    rows = [[*row, *["-"] * (width - len(row))] for row in [rows[0], ["---"] * width, *rows[1:]]]
    widths = [max(len(row[i]) for row in rows) for i in range(width)]
    lines = [f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths))} |" for row in rows]
    return "\n".join([f"## {heading}", "", *([notes] if notes else []), *lines, ""])


def table(operation: str, runs: Runs, wd: bool) -> str:
    """One of Tables 2-4; the paper has no numbers for the regularised runs."""
    asked = ["held-out (5,7)", "seeds with all held-out right"] if operation != "facts" else []
    scores = [NAMES[name] for name in columns(operation)]
    rows = [["model", "", *scores, *asked, "seeds", "iteration", "minutes", "machine"]]
    for size, (run, note) in runs.items():
        if not wd:
            rows.append([MODELS[size], "paper", *PAPER[operation][size], *["-"] * len(asked[1:]), "1"])
        if not run:
            rows.append([MODELS[size], not_run(size)])
            continue
        for label, at in (("best", best(run, operation)), ("last", last(run))):
            rows.append([MODELS[size] + note, label, *cells(run, operation, at)])
    return markdown(HEADINGS[operation] + ", regularised" * wd, "", rows)


def loss_cells(run: RunLog, operation: str) -> list[str]:
    """Where the last loss stands between the rule-follower and the memoriser."""
    loss, rule, floor = run.columns["train_loss"][-1], run.notes["rule_loss"], run.notes["loss_floor"]
    way = spread((rule - loss) / (rule - floor))
    return [spread(loss, "{:.4f}".format), f"{rule:.4f}", f"{floor:.4f}", way, str(len(loss))]


def best_cells(run: RunLog, operation: str) -> list[str]:
    """What the best evaluation has over the last."""
    score, at, end = run.columns[BEST_BY[operation]], best(run, operation), last(run)
    gain = 100 * (score[at, np.arange(len(at))] - score[-1])
    row = [f"{gain.mean():.3g}", f"{gain.max():.3g}", f"{(gain > 0).sum()} of {len(gain)}"]
    if operation == "facts":
        return row
    (score_at, all_at), (score_end, all_end) = heldout(run, at), heldout(run, end)
    return [*row, score_at, score_end, f"{all_at.sum()} of {len(at)}", f"{all_end.sum()} of {len(at)}"]


def heldout_cells(run: RunLog, operation: str) -> list[str]:
    """Which seeds answer held-out equations, and which equations fail."""
    some = run.columns["heldout_correct"] > 0
    return [*(seeds_that(hit) for hit in (heldout(run, last(run))[1], some[-1], some.any(0))), *failures(run)]


def failures(run: RunLog) -> list[str]:
    """How many seeds fail on each of EQUATIONS, if the run's eval_as_math.csv has all seeds at the last
    evaluation, else nothing. Raises UserError if that file is damaged."""
    path = run.folder / "eval_as_math.csv"
    if not path.is_file():
        return []
    failed: dict[str, dict[int, bool]] = {name: {} for name in EQUATIONS}
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
    except csv.Error as e:
        raise UserError(f"{path}: damaged, expected CSV ({e}); run eval_as_math.py again") from None
    for number, row in enumerate(rows, start=2):
        cell = {name: config.check(name, config.from_text(row.get(name) or "", key), key,
                                   f"{path}, row {number}") for name, key in EVALUATION.items()}
        name = f"{cell['a']}{row.get('op')}{cell['b']}"
        if name in failed and cell["iter"] == run.iters[-1]:
            failed[name][cell["seed"]] = cell["correct"] < cell["total"]
    if any(set(by_seed) != set(run.notes["seeds"]) for by_seed in failed.values()):
        return []
    return [f"{sum(by_seed.values())} of {len(by_seed)}" for by_seed in failed.values()]


def overview(heading: str, notes: str, header: list[str], runs: dict[str, Runs], row: Callable) -> str:
    """A table with one row a run, of the cells that `row` (run, operation) gives."""
    rows = [["data", "model", *header]]
    for operation, of_size in runs.items():
        for size, (run, note) in of_size.items():
            cells = row(run, operation) if run else [not_run(size)]
            rows.append([DATA[operation], MODELS[size] + note, *cells])
    return markdown(heading, notes, rows)


def tables(runs: dict[str, Runs], wd: bool) -> str:
    """All tables: the paper's, then what the loss says, what choosing flatters, and the held-out cases."""
    with_math = {op: runs[op] for op in runs if op != "facts"}
    return "\n".join([
        NOTES, *(table(op, runs[op], wd) for op in runs),
        overview("What the loss says", LOSS_NOTES,
                 ["loss", "rule-follower", "memoriser", "way from rule to memoriser", "seeds"],
                 runs, loss_cells),
        overview("What choosing the best checkpoint flatters", BEST_NOTES,
                 ["best less last, mean", "largest", "seeds that gain", "held-out, best", "held-out, last",
                  "all held-out right, best", "all held-out right, last"], runs, best_cells),
        overview("The held-out cases in detail", HELDOUT_NOTES,
                 ["all right", "some right", "some right at any evaluation",
                  *(f"{name} fails" for name in EQUATIONS)], with_math, heldout_cells)])


def panel(strips: Sequence[Axes], operation: str, size: str, run: RunLog | None, note: str, end: str) -> None:
    """One model's panel: its curves, or the command that trains it."""
    if run:
        draw(strips, run, tasks_of(run, operation))
        strips[0].set_title(f"{MODELS[size]}: {describe(run)}{note}", fontsize=10)
        return
    frame(strips)
    strips[0].set_title(f"{MODELS[size]}, {not_run(size)}", fontsize=10)
    command = f"python train_with_eval.py\nconfig/train_{operation}_mini_{size}{end}.py"
    strips[0].text(0.5, 0.5, f"to train it:\n{command}", transform=strips[0].transAxes, ha="center",
                   va="center", fontsize=8, bbox={"color": "white"})


def grid(operation: str, runs: Runs, end: str) -> Figure:
    """The 2 x 2 figure of an operation, from {size: (run, note)}."""
    heights = strips_of(OPERATIONS[operation])
    fig = Figure(figsize=(9.6, 1.5 * sum(heights) + 1.2), layout="constrained")
    axes = fig.subplots(2 * len(heights), 2, sharex=True, height_ratios=heights * 2)
    panels = [axes[top:top + len(heights), side] for top in (0, len(heights)) for side in (0, 1)]
    for strips, (size, (run, note)) in zip(panels, runs.items(), strict=True):
        panel(strips, operation, size, run, note, end)
    for ax in fig.axes:
        ax.label_outer()
    for ax in axes[len(heights) - 1]:
        ax.tick_params(labelbottom=True)
    fig.align_ylabels()
    legend(fig, list(zip(*panels)))
    return fig


def main(argv: list[str]) -> None:
    """Draw the figures and write the tables that the command line asks for."""
    args = {name: key.default for name, key in KEYS.items()} | config.parse(argv, KEYS, __doc__)[0]
    root, end = Path(args["root_dir"]), "_wd" if args["wd"] else ""
    if not root.is_dir():
        raise UserError(f"--root_dir={root}: no such folder; expected one with runs such as math_mini_14")
    runs = {op: {size: find_run(f"{op}_mini_{size}{end}", root) for size in MODELS} for op in FIGURES}
    figures = {root / f"{name}{end}": grid(op, runs[op], end) for op, name in FIGURES.items()}
    figures |= {run.folder / "plot": figure(run, run.notes["tasks"])
                for of_size in runs.values() for run, note in of_size.values() if run and not note}
    text = tables(runs, args["wd"])
    for path, fig in figures.items():
        save(fig, path.with_suffix(f".{args['format']}"))
    replace_file(root / f"tables{end}.md", lambda f: f.write(text.encode()))
    print(f"wrote {root / f'tables{end}.md'}\n\n{text}")


if __name__ == "__main__":
    config.run(main)
