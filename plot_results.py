"""Draw one run from its log: accuracy, held-out score and loss over the iterations.
  python plot_results.py --model_folder=math_mini_14

Reads results.csv and config.json of the folder and writes plot.png (or plot.pdf) there.
"""
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
           **COLUMNS_OF["math"], **COLUMNS_OF["facts"]}

# Okabe and Ito's colours, which colour-blind readers tell apart; the line style tells them apart in grey
CURVES = {
    "add": ("addition", "#009E73", "-"),
    "sub": ("subtraction", "#0072B2", ":"),
    "facts": ("capitals", "#E69F00", (0, (7, 1.5))),
    "heldout": ("held-out (5,7)", "#AA4499", "-."),
}
SCORES_OF = {"math": ["add", "sub"], "facts": ["facts"]}  # all that is asked; held-out is part of both
REFERENCES = {"rule_loss": ("loss of the ideal rule-follower", (0, (9, 4))),
              "loss_floor": ("loss of the perfect memoriser", (0, (3, 3)))}
GREY, RED = "#555555", "#CC0000"
BAND = "10-90% of seeds (line: median)"
LOSS_TICKS = (0.1, 0.2, 0.5, 1, 2, 5)  # all losses lie between the least reference, 0.18, and ln(66) = 4.2


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


def frame(ax: Axes) -> Axes:
    """Give a panel the scales that all panels have; returns its right axis, the loss's."""
    ax.set(ylim=(-4, 104), yticks=range(0, 101, 20), ylabel="right answers (%)", xlabel="iteration")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(color="#DDDDDD", linewidth=0.6)
    loss_ax = ax.twinx()
    loss_ax.set(yscale="log", ylim=(LOSS_TICKS[0], LOSS_TICKS[-1]), ylabel="loss (nats per character)")
    loss_ax.set_yticks(LOSS_TICKS, [f"{t:g}" for t in LOSS_TICKS])
    loss_ax.minorticks_off()
    return loss_ax


def draw(ax: Axes, run: RunLog, tasks: list[str]) -> None:
    """Draw a run's accuracies in `tasks` on `ax`, and its loss and the reference losses on a new right axis.

    A red dot stands where some seed answers everything right, as high as the share of such seeds.
    """
    loss_ax = frame(ax)
    names = [name for task in tasks for name in SCORES_OF[task]] + ["heldout"] * ("math" in tasks)
    for name in names:
        curve(ax, run.iters, 100 * share(run, name), *CURVES[name])
    seeds = all_right(run, tasks).mean(1)
    ax.plot(run.iters[seeds > 0], 100 * seeds[seeds > 0], "o", color=RED, markersize=2.6, linestyle="none",
            label="everything right (share of seeds)")
    curve(loss_ax, run.iters, run.columns["train_loss"], "loss", GREY, "-")
    for name, (label, dashes) in REFERENCES.items():
        value = run.notes[name]
        loss_ax.axhline(value, label=f"{label}: {value:.3f}", color="black", linestyle=dashes, linewidth=0.8)


def legend(fig: Figure, columns: int) -> None:
    """One legend below all panels of a figure, each label once, the band last and in the loss's grey."""
    found: dict = {}
    for ax in fig.axes:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if BAND in found:
        found[BAND] = found.pop(BAND)
    if found:
        fig.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False)


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


def main(argv: list[str]) -> None:
    """Draw the run that the command line names."""
    given = config.parse(argv, KEYS, __doc__)[0]
    folder = Path(given.get("model_folder", KEYS["model_folder"].default))
    run = read_run(folder)
    own = next(name for name, tasks in OPERATIONS.items() if tasks == run.notes["tasks"])
    fig = Figure(figsize=(8, 5), layout="constrained")
    ax = fig.subplots()
    draw(ax, run, tasks_of(run, given.get("operation", own)))
    ax.set_title(f"{folder.resolve().name}: {describe(run)}")
    legend(fig, 2)
    save(fig, folder / f"plot.{given.get('format', FORMAT.default)}")


if __name__ == "__main__":
    config.run(main)
