"""Draw one run from its log: accuracy, held-out score and loss over the iterations.
  python plot_results.py --model_folder=math_mini_14

Reads results.csv and config.json of the folder and writes plot.png there.
"""
import io
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

# no backend is used, and a notebook's may not be installed; so other scripts get matplotlib from here
os.environ["MPLBACKEND"] = "agg"
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import config
from config import Key, UserError
from data.files import replace_file
from data.log import SCORES, NoEvaluation, RunLog, rank_folders, read_run
from data.stats import mean_and_range, two_components

OPERATIONS = {"math": ["math"], "facts": ["facts"], "both": ["math", "facts"]}
KEYS = {
    "model_folder": Key("math_mini_14", "folder of the run", path=True),
    "operation": Key("all that the run has", "what to draw", choices=tuple(OPERATIONS)),
}

# Okabe and Ito's colours, which colour-blind readers tell apart; the line style tells them apart in grey
CURVES = {"add": ("addition", "#009E73", "-"), "sub": ("subtraction", "#0072B2", ":"),
          "facts": ("capitals", "#E69F00", (0, (7, 1.5)))}
SEEN, HELDOUT, GREY = "#56B4E9", "#771166", "#555555"
HELDOUT_LEVELS = {  # least share of the held-out answers that are right; one hue, pale to dark
    "some right": (1e-9, "#E6CAE1"), "half or more": (0.5, "#CF9FC6"), "3/4 or more": (0.75, "#B36AA7"),
    "all right": (1, HELDOUT)}
REFERENCES = {"rule_loss": ("rule-follower's loss", (0, (9, 4))),
              "loss_floor": ("memoriser's loss", (0, (3, 3)))}
OFF = {  # how far an answer is off
    "right": ("right", "#4292C6"), "off_1": ("off by 1", "#FDD0A2"), "off_2": ("off by 2", "#FD8D3C"),
    "off_more": ("off by more", "#A63603"), "none": ("no number", "#BDBDBD")}
MODELS = {"14": "n14", "28": "n28", "56": "n56", "mlt": "MLT"}
BAND = "10-90% of seeds, line: median"
LOSS_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def find_log(folder: Path) -> RunLog | None:
    """The log of the run in `folder`; None if it has no evaluation yet, said if some part of it is there.

    Raises UserError if it is damaged.
    """
    if any((part / "results.csv").exists() for part in rank_folders(folder)):
        try:
            return read_run(folder)
        except NoEvaluation as e:
            print(f"left out: {e}", file=sys.stderr)
    return None


def accuracy(run: RunLog, name: str) -> np.ndarray:
    """Share of right answers in `add`, `sub`, `seen`, `heldout`, `facts` or `combined`: (N, S), NaN where
    nothing was asked."""
    if name == "combined":
        return run.columns["combined_acc"]
    if name == "seen":
        right, asked = (run.columns[f"add_{kind}"] + run.columns[f"sub_{kind}"] -
                        run.columns[f"heldout_{kind}"] for kind in ("correct", "total"))
    else:
        right, asked = (run.columns[f"{name}_{kind}"] for kind in ("correct", "total"))
    return np.divide(right, asked, out=np.full_like(right, np.nan), where=asked != 0)


def loss_cells(run: RunLog) -> list[str]:
    """Where the last loss stands between the rule-follower and the memoriser, for a table."""
    loss, rule, floor = run.columns["train_loss"][-1], run.info["rule_loss"], run.info["loss_floor"]
    cells = [mean_and_range(loss, "{:.4f}".format)]
    if rule is None or floor is None:
        return cells
    return [*cells, f"{rule:.4f}", f"{floor:.4f}", mean_and_range((rule - loss) / (rule - floor))]


def minutes(run: RunLog) -> str:
    """What a run took, its processes' minutes added up; "-" if its rows were taken from another run's log."""
    each = [read_run(part).columns["elapsed_s"][-1].max() for part in rank_folders(run.folder)]
    return "-" if run.info.get("taken_from") else f"{sum(each) / 60:,.1f}"


def markdown_table(heading: str, text: str, rows: list[list[str]]) -> str:
    """A section with a table in Markdown; the first row is its header, and short rows are filled up."""
    width = len(rows[0])
    rows = [[cell.replace("|", "\\|") for cell in row] + ["-"] * (width - len(row)) for row in rows]
    rows.insert(1, ["---"] * width)
    widths = [max(len(row[i]) for row in rows) for i in range(width)]
    lines = [f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths))} |" for row in rows]
    return "\n".join([f"## {heading}", "", *([text] if text else []), *lines, ""])


def draw_cells(ax: Axes, cells: dict[tuple, float], text: dict[tuple, str] | None = None) -> None:
    """A plane of percentages by (row, column): coloured, with the number or its `text`; blank where none."""
    rows, columns = (sorted(set(axis)) for axis in zip(*cells))
    values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    edges = [np.arange(n + 1) - 0.5 for n in values.shape[::-1]]
    mesh = ax.pcolormesh(*edges, values, edgecolors="white", linewidth=2, cmap="cividis", vmin=0, vmax=100)
    for (row, column), value in cells.items():
        light = np.dot(mesh.to_rgba(value)[:3], (0.3, 0.59, 0.11)) > 0.45
        ax.text(columns.index(column), rows.index(row), (text or {}).get((row, column), f"{value:.0f}"),
                color="black" if light else "white", ha="center", va="center")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)


def draw_digits(ax: Axes, rows: np.ndarray, size: float, last: np.ndarray | None = None) -> None:
    """Join the digits 0 to 9, rows (10, n) of an embedding, in the plane of their first two principal
    components, or of those of the rows `last`; letters of `size`."""
    last = rows if last is None else last
    points, reach = ((x - x.mean(0)) @ two_components(last)[0] for x in (rows, last))
    ax.plot(*points.T, color=GREY, linewidth=size / 8, zorder=1)
    ax.scatter(*points.T, s=3 * size ** 2, c=range(10), cmap="YlGnBu", vmin=-3, vmax=18, zorder=2)
    for digit, point in enumerate(points):
        ax.text(*point, str(digit), fontsize=size, ha="center", va="center_baseline")
    limits = 1.2 * abs(reach).max() * np.array([-1, 1])
    ax.set(xticks=[], yticks=[], xlim=limits, ylim=limits, aspect="equal")


def save_figure(fig: Figure, path: Path) -> None:
    """Write a figure, at once or not at all."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=150)
    replace_file(path, out.getbuffer())


def save_film(fig: Figure, frames: Iterable, path: Path) -> None:
    """Write a GIF of a figure as it is at each step of `frames`, at once or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        film, writer = Path(folder, "film.gif"), PillowWriter(fps=5)
        writer.setup(fig, film, dpi=80)
        for _ in chain(frames, range(15)):  # the end stays for 3 s
            writer.grab_frame()
        writer.finish()
        replace_file(path, film.read_bytes())


def tasks_of(run: RunLog, operation: str) -> list[str]:
    """The tasks of an operation; raises UserError if the run does not have them."""
    tasks = run.info["tasks"]
    if set(OPERATIONS[operation]) - set(tasks):
        raise UserError(f"{run.folder}: no data for operation {operation}; expected "
                        f"{' or '.join(tasks) or 'none'}, by what this run was trained on")
    return OPERATIONS[operation]


def shortfall(run: RunLog) -> str:
    """How far a run got that stands short of its end; nothing for one that is finished."""
    last, end = run.iters[-1], run.info["config"]["max_iters"]
    return f"{last:,} of {end:,} iterations" if last < end else ""


def run_title(name: str, run: RunLog) -> str:
    """A panel's title: name, parameters and seeds of the run, and how far it got if it is not finished."""
    seeds = len(run.info["seeds"])
    title = f"{name}: {run.info['parameters']:,} parameters, {seeds} seed{'s' if seeds > 1 else ''}"
    return "\n".join(line for line in (title, shortfall(run)) if line)


def draw_curve(ax: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, style) -> None:
    """The median of y (N, S) over the seeds as a line over x (N,), with a band if there are several seeds."""
    if y.shape[1] > 1:
        low, high = np.quantile(y, [0.1, 0.9], axis=1)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, label=BAND)
    marker = "." if len(x) == 1 else ""  # a single point has no line
    ax.plot(x, np.median(y, axis=1), label=label, color=color, linestyle=style, linewidth=1.6, marker=marker)


def strip_heights(tasks: Sequence[str], held_out: bool) -> list[float]:
    """Relative heights of a panel's strips, top to bottom: right answers, held-out for arithmetic, loss."""
    return [*([3] if tasks else []), *([2.4] if "math" in tasks and held_out else []), 1.6]


def loss_limits(runs: Sequence[RunLog]) -> tuple[float, float]:
    """The loss's scale for some runs on a dataset, about the references; the first iterations lie above."""
    lows, highs = [], []
    for run in runs:
        loss, rule, floor = run.columns["train_loss"], run.info["rule_loss"], run.info["loss_floor"]
        lows.append(0.85 * (loss.min() if floor is None else floor))
        highs += [1.1 * np.median(loss, axis=1).min(), loss.max() if rule is None else 3.5 * rule]
    return max(1e-3, min(lows, default=0.1)), max(1e-2, max(highs, default=5))


def frame_strips(strips: Sequence[Axes], limits: tuple[float, float]) -> None:
    """Give the strips of a panel the scales that all panels of a figure have; `limits` are the loss's."""
    for ax in strips:
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    for ax in strips[:-1]:
        ax.set(ylim=(-5, 105), yticks=range(0, 101, 50), ylabel="held-out right\n(% of seeds)")
    if len(strips) > 1:
        strips[0].set(yticks=range(0, 101, 20), ylabel="right answers (%)")
    strips[-1].set(yscale="log", ylabel="loss (nats)", xlabel="iteration")
    strips[-1].set_yticks(LOSS_TICKS, [f"{t:g}" for t in LOSS_TICKS])
    strips[-1].minorticks_off()
    strips[-1].set_ylim(limits)


def draw_heldout(ax: Axes, run: RunLog) -> None:
    """The share of seeds that get some, ..., all of the held-out cases right, one before the other.

    A median over seeds would jump: a seed gets an equation right or wrong.
    """
    x, pairs, right = run.iters, run.info["held_out"], accuracy(run, "heldout")
    edges = np.concatenate([x[:1] - 0.5, (x[1:] + x[:-1]) / 2, x[-1:] + 0.5])
    name = f"held-out, {len(pairs)} pairs" if len(pairs) > 1 else "held-out ({},{})".format(*pairs[0])
    for label, (least, color) in HELDOUT_LEVELS.items():
        ax.stairs(100 * (right >= least).mean(1), edges, fill=True, color=color, label=f"{name}: {label}")
    if not right.any():
        ax.text(0.5, 0.5, "none right at any evaluation", transform=ax.transAxes, ha="center", va="center",
                fontsize=8, color=GREY)


def draw_run(strips: Sequence[Axes], run: RunLog, tasks: list[str]) -> None:
    """Draw a run in a panel's strips: right answers, held-out if there is a strip for it, loss."""
    answers, loss, x = strips[0], strips[-1], run.iters
    for name in [name for task in tasks for name in SCORES[task]]:
        draw_curve(answers, x, 100 * accuracy(run, name), *CURVES[name])
    for ax in strips[1:-1] if run.info["held_out"] else ():
        draw_heldout(ax, run)
    draw_curve(loss, x, run.columns["train_loss"], "loss", GREY, "-")
    if not np.array_equal(run.columns["train_loss"], run.columns["val_loss"]):
        draw_curve(loss, x, run.columns["val_loss"], "loss on val.bin", GREY, ":")
    for name, (label, dashes) in REFERENCES.items():
        value = run.info[name]
        if value is not None:
            loss.axhline(value, label=f"{label}: {value:.3f}", color="black", linestyle=dashes, linewidth=0.8)


def add_legend(fig: Figure, strips: Sequence[Sequence[Axes]]) -> None:
    """One legend below all panels of a figure: a column for each kind of strip, each label once.

    `strips` holds the axes of each kind; the band is named once, in the loss's grey.
    """
    columns = [{label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())
                if label != BAND or axes is strips[-1]} for axes in strips]
    blank = {" " * i: Line2D([], [], linestyle="none") for i in range(max(map(len, columns)))}
    entries = [entry for column in columns for entry in [*column.items(), *blank.items()][:len(blank)]]
    if entries:  # short columns are filled up
        labels, handles = zip(*entries)
        fig.legend(handles, labels, loc="outside lower center", ncols=len(columns), frameon=False, fontsize=9)


def run_figure(run: RunLog, tasks: list[str]) -> Figure:
    """The picture of one run."""
    heights = strip_heights(tasks, bool(run.info["held_out"]))
    fig = Figure(figsize=(8, 6), layout="constrained")
    strips = fig.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    frame_strips(strips, loss_limits([run]))
    draw_run(strips, run, tasks)
    strips[0].set_title(run_title(run.folder.resolve().name, run), parse_math=False)
    add_legend(fig, [[ax] for ax in strips])
    return fig


def main(argv: list[str]) -> None:
    """Draw the run that the command line names."""
    args = config.settings(argv, KEYS, __doc__)
    run = read_run(Path(args["model_folder"]))
    tasks = tasks_of(run, args["operation"]) if args["operation"] in OPERATIONS else run.info["tasks"]
    save_figure(run_figure(run, tasks), run.folder / "plot.png")
    print(f"wrote {run.folder / 'plot.png'}")


if __name__ == "__main__":
    config.run(main)
