"""What is answered instead, and is the number line used? Drawn from answers/ beside the runs' folders, which
eval_as_math.py --inside writes."""
import re
from itertools import product
from pathlib import Path

import numpy as np

from config import UserError
from config.sweep_digits import model_name, runs  # noqa: F401  the same ones
from data.as_math.prepare import answer
from data.log import reading
from data.stats import RESAMPLES, bootstrap, mean_and_interval
from plot_results import GREY, HELDOUT, OFF, SEEN, markdown_table

table = False

TESTS = ("held-out", "seen", "line", "control")
USES = {  # curves of what is right: test, colour, style
    "seen": ("seen", SEEN, "-"), "held-out": ("held-out", HELDOUT, "-"),
    "line: a digit as its neighbours' mean": ("line", "black", "-"),
    "control: as two others' mean": ("control", GREY, ":")}
NOTES = f"""\
Asked greedily, at the last iteration unless another is named. Percent of answers, the mean over seeds with a
95% interval ({RESAMPLES:,} bootstrap draws of seeds). Off by 1 are the answers of the equations beside, a or
b changed by 1; *diagonal*: answers that are those of a and a, or b and b. Is the number line used? The
embedding of a digit, 1 to 8, is replaced by the mean of its two neighbours' (*line*), or of two others at
least 2 away (*control*, all such pairs), in the input and at the operand's place alone; asked are the seen
equations of which exactly one operand is that digit. Mean over digits first. Right on *line* is the digit
between the two; off by 1 there is one of the two themselves, which a model can read without any order.
"""


def read_answers(folder: Path) -> dict[str, np.ndarray]:
    """What `eval_as_math.py --inside` wrote into `folder`: the rows of each file, by its name; each seed's
    last ones, but of files training_*.csv all.

    Raises UserError if one is damaged.
    """
    files = {}
    for path in sorted(folder.glob("*.csv")):
        with reading(path):
            files[path.stem] = rows = np.genfromtxt(path, None, delimiter=",", names=True, encoding="utf-8")
            if {*rows["test"]} != {*TESTS}:
                raise ValueError("it lacks a test")
            if not path.stem.startswith("training_"):
                last = [rows["iter"][rows["seed"] == seed].max() for seed in rows["seed"]]
                files[path.stem] = rows[rows["iter"] == last]
    return files


def shares(rows: np.ndarray, test: str) -> np.ndarray:
    """A test's answers, each seed's shares: (S, 5), the columns of OFF."""
    return np.stack([rows[name][rows["test"] == test] for name in OFF], axis=1)


def on_diagonal(answers: str) -> float:
    """The share of held-out answers, `5+7=10 ...`, that are those to a and a, or to b and b."""
    equations = re.findall(r"(\d+)([+-])(\d+)=(\S+)", answers)
    return np.mean([float(c) in (answer(int(x), op, int(x)) for x in (a, b)) for a, op, b, c in equations])


def answers_table(heading: str, groups: dict[str, np.ndarray]) -> str:
    """A row for each group of seeds and test."""
    cells = [["model", "seeds", "test", "asked of each", *(label for label, _ in OFF.values()), "within 1",
              "diagonal"]]
    for name, test in product(groups, TESTS):
        rows, off = groups[name][groups[name]["test"] == test], shares(groups[name], test)
        columns = [*off.T, off[:, :2].sum(1)]
        columns += [np.array([*map(on_diagonal, rows["answers"])])] if test == "held-out" else []
        cells.append([name, str(len(rows)), test, str(rows["asked"][0]), *map(mean_and_interval, columns)])
    return markdown_table(heading, "", cells)


def draw_ladder(ax, groups: dict[str, np.ndarray], tests: list[str], title: str) -> None:
    """How far answers are off, in percent: a bar for the mean over each group of seeds, and test."""
    pairs = [*product(groups, tests)]
    widths = 100 * np.array([shares(groups[name], test).mean(0) for name, test in pairs]).T  # (5, bars)
    for (label, color), width, right in zip(OFF.values(), widths, widths.cumsum(0)):
        bars = ax.barh(range(len(pairs)), width, left=right - width, color=color, label=label, height=0.75)
        ax.bar_label(bars, [f"{x:.0f}" if x >= 7 else "" for x in width], label_type="center", fontsize=8,
                     color="white" if label == "off by more" else "black")
    ax.set_yticks(range(len(pairs)), [f"{name}, {test}" for name, test in pairs], fontsize=8)
    ax.set(xlim=(0, 100), ylim=(len(pairs) - 0.5, -0.5), xlabel="% of answers")
    ax.set_title(title, fontsize=9)


def draw_uses(ax, groups: dict[int, np.ndarray], title: str, xlabel: str) -> None:
    """The curves of USES over the keys of the groups of seeds, with bands of their 95% intervals."""
    for label, (test, color, style) in USES.items():
        values = [100 * shares(rows, test)[:, 0] for rows in groups.values()]
        ax.fill_between([*groups], *zip(*map(bootstrap, values)), color=color, alpha=0.15, linewidth=0)
        ax.plot([*groups], [seeds.mean() for seeds in values], color=color, linestyle=style, label=label,
                marker="." if len(groups) < 20 else "", linewidth=1.4)
    ax.set(xscale="log", ylim=(-3, 103), ylabel="% of answers", xlabel=xlabel)
    ax.set_title(title, fontsize=9)
    ax.tick_params(which="minor", labelbottom=False)
    ax.grid(color="#DDDDDD", linewidth=0.6)


def draw(fig, logs):
    """How far answers are off, and the use of the number line: of each model, through training, over size."""
    answers = read_answers(folder := logs[0].folder.parent / "answers")
    files = {model_name(run): model_name(run).lower().replace(", regularised", "_wd") for run in logs}
    models = {name: answers[file] for name, file in files.items() if file in answers}
    if "n14" not in models:
        raise UserError(f"{folder}/n14.csv is not there; python eval_as_math.py --all_seeds --out_dir="
                        f"{folder.parent}/math_mini_14 --inside={folder}/n14.csv writes it")
    sizes = dict(sorted((rows["parameters"][0], rows) for name, rows in answers.items()
                        if re.fullmatch(r"n_embd_\d+|n\d+", name)))
    # without iteration 0, which has no logarithm
    training = {name[9:]: {it: rows[rows["iter"] == it] for it in np.unique(rows["iter"]) if it}
                for name, rows in answers.items() if name.startswith("training_")}
    fig.set_size_inches(9.6, 10.5)
    axes = fig.subplot_mosaic("AB;CD;EF", height_ratios=[1.3, 1, 1])
    draw_ladder(axes["A"], models, ["held-out"], "How far answers are off")
    draw_ladder(axes["B"], dict([*models.items()][:4]), ["line", "control"],
                "Seen equations, a digit as its neighbours' mean (line:\n"
                "off by 1 is one of the two), as two others' (control)")
    for ax, (name, groups) in zip("CD", training.items()):
        draw_uses(axes[ax], groups, f"{name} through training", "iteration")
    draw_uses(axes["E"], sizes, "At the end, over the model's size", "parameters")
    handles, labels = (a + e for a, e in zip(*(axes[ax].get_legend_handles_labels() for ax in "AE")))
    axes["F"].legend(handles, labels, loc="center left", frameon=False)
    axes["F"].axis("off")
    return "\n".join([
        NOTES, answers_table("What is answered", models),
        answers_table("Over the model's size", {f"{n:,} parameters": rows for n, rows in sizes.items()}),
        answers_table("Through training", {f"{name}, iteration {it:,}": groups[it]
                                           for name, groups in training.items() for it in [*groups][::-8]})])
