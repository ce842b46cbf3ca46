"""Draw one run from its log: accuracy, held-out score and loss over the iterations.
  python plot_results.py --model_folder=math_mini_14

Reads results.csv and config.json of the folder and writes plot.png (or plot.pdf) there.
"""
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import config
from config import Key, UserError
from data import replace_file

OPERATIONS = {"math": ["math"], "facts": ["facts"], "both": ["math", "facts"]}
FORMAT = Key("png", "of the figures", choices=("png", "pdf"))
KEYS = {
    "model_folder": Key("math_mini_14", "folder of the run"),
    "operation": Key("all that the run has", "what to draw", choices=tuple(OPERATIONS)),
    "format": FORMAT,
}

COUNT, TOTAL, SHARE = Key(0, "", lo=0, hi=10**9), Key(0, "", lo=1, hi=10**9), Key(0.0, "", lo=0, hi=1)
COLUMNS_OF = {  # of results.csv, empty there if the run does not have the task
    "math": {"add_correct": COUNT, "add_total": TOTAL, "sub_correct": COUNT, "sub_total": TOTAL,
             "math_acc": SHARE, "heldout_correct": COUNT, "heldout_total": TOTAL},
    "facts": {"facts_correct": COUNT, "facts_total": TOTAL, "facts_acc": SHARE},
}
COLUMNS = {"iter": config.KEYS["max_iters"], "seed": config.KEYS["seed"],
           "train_loss": Key(0.0, "", lo=0, hi=1e9), "combined_acc": SHARE,
           "elapsed_s": Key(0.0, "", lo=0, hi=1e9),
           **COLUMNS_OF["math"], **COLUMNS_OF["facts"]}

# Okabe and Ito's colours, which colour-blind readers tell apart; the line style tells them apart in grey
CURVES = {
    "add": ("addition", "#009E73", "-"),
    "sub": ("subtraction", "#0072B2", ":"),
    "facts": ("capitals", "#E69F00", (0, (7, 1.5))),
}
SCORES_OF = {"math": ["add", "sub"], "facts": ["facts"]}  # all that is asked; held-out is part of both
HELDOUT = {  # least share of the held-out answers that are right; one hue, pale to dark
    "some right": (1e-9, "#E6CAE1"), "half or more": (0.5, "#CF9FC6"), "3/4 or more": (0.75, "#B36AA7"),
    "all right": (1, "#771166"),
}
REFERENCES = {"rule_loss": ("rule-follower's loss", (0, (9, 4))),
              "loss_floor": ("memoriser's loss", (0, (3, 3)))}
GREY, RED = "#555555", "#CC0000"
BAND = "10-90% of seeds, line: median"
LOSS_TICKS = (0.2, 0.3, 0.5, 0.7, 1, 1.5)


@dataclass(frozen=True)
class RunLog:
    """What a run's folder says: `notes` is config.json; of results.csv, `iters` (N,) and `columns`
    {name: (N, S)}, the seeds in the order of `notes["seeds"]`, NaN where the log is empty."""
    folder: Path
    notes: dict
    iters: np.ndarray
    columns: dict[str, np.ndarray]


def is_loss(value: object) -> bool:
    """Whether a value from JSON may be a loss."""
    return type(value) in (int, float) and 0 < value < 1e9


def is_seeds(value: object) -> bool:
    """Whether a value from JSON may be a run's seeds."""
    ints = isinstance(value, list) and all(type(s) is int for s in value)
    return ints and 0 < len(value) == len(set(value))


NOTES = {  # what is read from config.json
    "device": ("a text", lambda v: isinstance(v, str) and bool(v)),
    "parameters": ("a whole number", lambda v: type(v) is int and v > 0),
    "seeds": ("a list of distinct whole numbers", is_seeds),
    "tasks": (" or ".join(str(t) for t in OPERATIONS.values()), lambda v: v in OPERATIONS.values()),
    "loss_floor": ("a positive number", is_loss),
    "rule_loss": ("a positive number", is_loss),
}


def read_text(path: Path) -> str:
    """The text of a run's file; raises UserError if it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: {why}; expected a folder with the results.csv and config.json that "
                        "train_with_eval.py leaves in its out_dir") from None


def read_notes(path: Path) -> dict:
    """config.json; raises UserError if it is damaged."""
    fix = "restore the file or train the run again"
    try:
        notes = json.loads(read_text(path))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: damaged, expected JSON ({e}); {fix}") from None
    if not isinstance(notes, dict):
        raise UserError(f"{path}: damaged, expected a JSON object; {fix}")
    for name, (kind, good) in NOTES.items():
        if not good(notes.get(name)):
            raise UserError(f"{path}: {name} = {notes.get(name)!r} will not do; expected {kind}; {fix}")
    return notes


def read_rows(path: Path, notes: dict) -> dict[int, dict[int, dict[str, float]]]:
    """The rows of results.csv, {iteration: {seed: {column: value}}}, without the part after the last newline.

    Raises UserError, with the line's number, for a damaged line.
    """
    header, *lines = read_text(path).split("\n")[:-1] or [""]
    names = header.split(",")
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected the header that train_with_eval.py"
                        " writes; restore it or train the run again")
    may_lack = {name for task in COLUMNS_OF if task not in notes["tasks"] for name in COLUMNS_OF[task]}
    rows: dict[int, dict[int, dict[str, float]]] = {}
    for number, line in enumerate(lines, start=2):
        source, cells = f"{path}, line {number}", line.split(",")
        if len(cells) != len(names):
            raise UserError(f"{source}: {len(cells)} values, expected {len(names)}; mend it or train again")
        cell = dict(zip(names, cells, strict=True))
        row = {name: math.nan if name in may_lack and not cell[name] else
               config.check(name, config.from_text(cell[name], key), key, source)
               for name, key in COLUMNS.items()}
        it, seed = row["iter"], row["seed"]
        if seed not in notes["seeds"]:
            raise UserError(f"{source}: seed {seed}, expected one of those in config.json; these are the "
                            "files of different runs, restore the right one")
        if seed in rows.setdefault(it, {}):
            raise UserError(f"{source}: iteration {it} of seed {seed} for the second time; delete one line")
        rows[it][seed] = row
    return rows


def read_run(folder: Path) -> RunLog:
    """The log of the run in `folder`; raises UserError for what is missing or damaged.

    Of a run that is being written, or was killed, the last iteration is left out unless the lines of all
    seeds are there to their ends.
    """
    notes, path = read_notes(folder / "config.json"), folder / "results.csv"
    rows, seeds = read_rows(path, notes), notes["seeds"]
    iters = sorted(rows)
    if iters and len(rows[iters[-1]]) < len(seeds):
        iters.pop()
    if not iters:
        raise UserError(f"{path}: no complete evaluation; expected a line for each of {len(seeds)} seeds; "
                        "wait, or train the run further")
    for it in iters:
        lost = [s for s in seeds if s not in rows[it]]
        if lost:
            raise UserError(f"{path}: iteration {it} lacks seed {lost[0]}, expected all of config.json's; "
                            "restore the file or train the run again")
    columns = {name: np.array([[rows[it][s][name] for s in seeds] for it in iters]) for name in COLUMNS}
    return RunLog(folder, notes, np.array(iters), columns)


def tasks_of(run: RunLog, operation: str) -> list[str]:
    """The tasks of an operation; raises UserError if the run does not have them."""
    tasks = run.notes["tasks"]
    if set(OPERATIONS[operation]) - set(tasks):
        raise UserError(f"{run.folder}: no data for operation {operation}; expected {' or '.join(tasks)}, "
                        "which this run was trained on")
    return OPERATIONS[operation]


def share(run: RunLog, name: str) -> np.ndarray:
    """Share of right answers in `add`, `sub`, `facts`, `heldout` or `combined`: (N, S)."""
    if name == "combined":
        return run.columns["combined_acc"]
    return run.columns[f"{name}_correct"] / run.columns[f"{name}_total"]


def all_right(run: RunLog, tasks: list[str]) -> np.ndarray:
    """Whether every answer of the tasks is right: bool (N, S)."""
    return np.all([share(run, name) == 1 for task in tasks for name in SCORES_OF[task]], axis=0)


def curve(ax: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, style) -> None:
    """The median of y (N, S) over the seeds as a line over x (N,), with a band if there are several seeds."""
    if y.shape[1] > 1:
        low, high = np.quantile(y, [0.1, 0.9], axis=1)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, label=BAND)
    marker = "." if len(x) == 1 else ""  # a single point has no line
    ax.plot(x, np.median(y, axis=1), label=label, color=color, linestyle=style, linewidth=1.6, marker=marker)


def strips_of(tasks: list[str]) -> list[float]:
    """Relative heights of a panel's strips, top to bottom: right answers, held-out for arithmetic, loss."""
    return [3, 1.2, 2] if "math" in tasks else [3, 2]


def loss_limits(run: RunLog) -> tuple[float, float]:
    """The loss's scale for all runs on a dataset: about the references; the first iterations lie above it."""
    return 0.85 * run.notes["loss_floor"], 3.5 * run.notes["rule_loss"]


def frame(strips: Sequence[Axes], limits: tuple[float, float]) -> None:
    """Give the strips of a panel the scales that all panels of a figure have; `limits` are the loss's."""
    for ax in strips:
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    for ax in strips[:-1]:
        ax.set(ylim=(-5, 105), yticks=range(0, 101, 50), ylabel="held-out\n(% of seeds)")
    strips[0].set(yticks=range(0, 101, 20), ylabel="right answers (%)")
    strips[-1].set(yscale="log", ylabel="loss (nats)", xlabel="iteration")
    strips[-1].set_yticks(LOSS_TICKS, [f"{t:g}" for t in LOSS_TICKS])
    strips[-1].minorticks_off()
    strips[-1].set_ylim(limits)


def draw_heldout(ax: Axes, run: RunLog) -> None:
    """The share of seeds that get some, ..., all of the held-out cases right, one before the other.

    A median over seeds would jump: a seed gets an equation right or wrong.
    """
    x, right = run.iters, share(run, "heldout")
    edges = np.concatenate([x[:1] - 0.5, (x[1:] + x[:-1]) / 2, x[-1:] + 0.5])
    for label, (least, color) in HELDOUT.items():
        ax.stairs(100 * (right >= least).mean(1), edges, fill=True, color=color,
                  label=f"held-out (5,7): {label}")
    if not right.any():
        ax.text(0.5, 0.5, "none right at any evaluation", transform=ax.transAxes, ha="center", va="center",
                fontsize=8, color=GREY)


def draw(strips: Sequence[Axes], run: RunLog, tasks: list[str]) -> None:
    """Draw a run in the strips of `strips_of(tasks)`: right answers, held-out if there is arithmetic, loss.

    A red dot stands where some seed answers everything right, as high as the share of such seeds.
    """
    frame(strips, loss_limits(run))
    answers, loss = strips[0], strips[-1]
    for name in [name for task in tasks for name in SCORES_OF[task]]:
        curve(answers, run.iters, 100 * share(run, name), *CURVES[name])
    seeds = all_right(run, tasks).mean(1)
    answers.plot(run.iters[seeds > 0], 100 * seeds[seeds > 0], "o", color=RED, markersize=2.6,
                 linestyle="none", label="everything right, % of seeds")
    if "math" in tasks:
        draw_heldout(strips[1], run)
    curve(loss, run.iters, run.columns["train_loss"], "loss", GREY, "-")
    for name, (label, dashes) in REFERENCES.items():
        value = run.notes[name]
        loss.axhline(value, label=f"{label}: {value:.3f}", color="black", linestyle=dashes, linewidth=0.8)


def legend(fig: Figure, strips: Sequence[Sequence[Axes]]) -> None:
    """One legend below all panels of a figure: a column for each kind of strip, each label once.

    `strips` holds the axes of each kind; the band is named once, in the loss's grey.
    """
    columns = [{label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
               for axes in strips]
    columns[0].pop(BAND, None)
    rows = max(len(column) for column in columns)
    blank = {" " * i: Line2D([], [], linestyle="none") for i in range(rows)}  # fills up a short column
    entries = [entry for column in columns for entry in [*column.items(), *blank.items()][:rows]]
    if entries:
        labels, handles = zip(*entries)
        fig.legend(handles, labels, loc="outside lower center", ncols=len(columns), frameon=False, fontsize=9)


def describe(run: RunLog) -> str:
    """Parameters and seeds of a run, for a title."""
    seeds = len(run.notes["seeds"])
    return f"{run.notes['parameters']:,} parameters, {seeds} seed{'s' if seeds > 1 else ''}"


def save(fig: Figure, path: Path) -> None:
    """Write a figure, in the format of the path's suffix, at once or not at all."""
    kind = path.suffix[1:]
    same = {"CreationDate": None} if kind == "pdf" else None  # the same log gives the same bytes
    replace_file(path, lambda f: fig.savefig(f, format=kind, dpi=150, metadata=same))
    print(f"wrote {path}")


def figure(run: RunLog, tasks: list[str]) -> Figure:
    """The picture of one run."""
    heights = strips_of(tasks)
    fig = Figure(figsize=(8, 6), layout="constrained")
    strips = fig.subplots(len(heights), sharex=True, height_ratios=heights)
    draw(strips, run, tasks)
    strips[0].set_title(f"{run.folder.resolve().name}: {describe(run)}")
    legend(fig, [[ax] for ax in strips])
    return fig


def main(argv: list[str]) -> None:
    """Draw the run that the command line names."""
    given = config.parse(argv, KEYS, __doc__)[0]
    run = read_run(Path(given.get("model_folder", KEYS["model_folder"].default)))
    tasks = tasks_of(run, given["operation"]) if "operation" in given else run.notes["tasks"]
    save(figure(run, tasks), run.folder / f"plot.{given.get('format', FORMAT.default)}")


if __name__ == "__main__":
    config.run(main)
