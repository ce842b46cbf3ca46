"""The paper's three grid figures and Tables 2-4, from the logs of up to twelve runs, and a look inside.
  python plot_all_models.py --root_dir=. [--wd]

Writes grid_math.png, grid_facts.png, grid_combined.png and tables.md into root_dir, and plot.png into each
run's folder there; with --wd those of the regularised runs, under names that end in _wd. Where runs on
arithmetic have their ckpt.pt, digits.png shows how their embeddings arrange the digits; where n14 and n28
kept their checkpoints (--keep_every), learning.gif shows them learn; from the folder answers/, by
`eval_as_math.py --inside`, come inside.png and inside.md. A run that is not under root_dir is read from
results/.
"""
import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product, zip_longest
from pathlib import Path

import numpy as np

import config
import plot_results as plots  # matplotlib too comes from there
from config import Key, UserError
from data import rng, stats
from data.as_math.prepare import answer
from data.files import replace_file, writing
from data.log import RunLog, rank_folders, read_run, reading
from data.stats import RESAMPLES, mean_and_range, percent, permutation_test, rank_correlation, share_of
from plot_results import CURVES, OPERATIONS, Axes, Figure, accuracy, markdown_table

RESULTS = Path(__file__).resolve().parent / "results"
KEYS = {
    "root_dir": Key(".", "folder of the runs' folders, and for the figures and tables", path=True),
    "wd": Key(False, "the regularised runs"),
}
MODELS = {"14": "n14", "28": "n28", "56": "n56", "mlt": "MLT"}
FIGURES = {"math": "grid_math", "facts": "grid_facts", "both": "grid_combined"}
DATA = {"math": "arithmetic", "facts": "capitals", "both": "both at once"}
CHOSEN_BY = {"math": "math_acc", "facts": "facts_acc", "both": "combined_acc"}  # the best evaluation
ASKED = {"math": ["add", "sub"], "facts": ["facts"], "both": ["add", "sub", "facts", "combined"]}
PAPER = {  # best checkpoint of one seed: % right in the order of ASKED, then held-out
    "math": {"14": "100 100 40/40", "28": "98 98 0/40", "56": "98 98 0/40", "mlt": "98 98 0/40"},
    "facts": {"14": "8.2", "28": "100", "56": "100", "mlt": "100"},
    "both": {"14": "31.2 39.4 2.0 28.6 0/40", "28": "95.0 97 87.6 94.3 0/40", "56": "98 98 100 98.4 0/40",
             "mlt": "98 98 100 98.4 0/40"}}
PAPER_WD = {  # the regularised set, as published with the paper's code; 98 is 89 of 91 prompts there
    "math": {"14": "100 100", "28": "98 98", "56": "98 98", "mlt": "98 98"},
    "facts": {"14": "12.4", "28": "100", "56": "100", "mlt": "100"},
    "both": {"14": "31.9 30.2 6.2 25.7", "28": "96.3 87.8 90.0 91.6", "56": "98 98 100 98.3",
             "mlt": "98 98 100 98.3"}}
Runs = dict[str, tuple[RunLog | None, str]]  # {size: (its log, where it lies) or (None, why there is none)}
NOTES = """\
In each cell of Tables 2-4: *the paper* · *ours, best* · *ours, last (lowest to highest)*. Scores are percent,
the mean over seeds. paper: best checkpoint of one seed. best: the paper's protocol on our runs, per seed the
evaluation with the highest score, which includes the held-out cases. last: the last evaluation. Held-out is
right / asked over all seeds; the share of seeds that answer all of it has Wilson's 95% interval.
"""
LOSS_NOTES = """\
The last loss, in nats per character, mean (lowest to highest) over seeds, beside the rule-follower's and the
memoriser's. The way is (rule - loss) / (rule - memoriser): 0% is the rule-follower, 100% the memoriser,
and less than 0% a model that has not got as far as the rule.
"""
BEST_NOTES = """\
The score (accuracy over all prompts) at each seed's best evaluation less that at its last, in points: what is
gained by choosing the checkpoint on the very prompts, held-out ones included, that it is judged by. Then the
seeds that get some sample of the held-out equations right at the last evaluation, and at any.
"""
COST_NOTES = "Minutes are those of the whole run, seeds, evaluations and processes added up.\n"
DIGITS_NOTES = f"""\
Spearman's rank correlation between |i - j| and the distance of digits i and j in the embedding (1: they lie
in order), and the share of variance in the digits' first two principal components; mean (lowest to highest)
over the seeds whose weights are there. p: seeds that answer all held-out equations at the last evaluation and
the others are alike in mean correlation ({RESAMPLES:,} permutations, two-sided).
"""
OFF = {  # how far an answer is off
    "right": ("right", "#4292C6"), "off_1": ("off by 1", "#FDD0A2"), "off_2": ("off by 2", "#FD8D3C"),
    "off_more": ("off by more", "#A63603"), "none": ("no number", "#BDBDBD")}
COPIES = {  # straw men, by the seen equations whose answers they give to a held-out one of a and b
    "copies the nearest": lambda a, b: [(a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)],
    "copies the diagonal": lambda a, b: [(a, a), (b, b)]}
USES = {  # curves: test, how many columns of OFF, colour, style
    "seen": ("seen", 1, plots.SEEN, "-"), "held-out": ("held-out", 1, plots.HELDOUT, "-"),
    "line: a digit as its neighbours' mean": ("line", 1, "black", "-"),
    "line, off by 1 at most": ("line", 2, "black", "--"),
    "control: as two others' mean": ("control", 1, plots.GREY, ":")}
INSIDE_NOTES = f"""\
Asked greedily, at the last iteration unless another is named. Percent of answers, the mean over seeds with a
95% interval ({RESAMPLES:,} bootstrap draws of seeds). *nearest*: answers that are those of the four equations
beside, a or b changed by 1; *diagonal*: of a and a, or b and b; below, two straw men who say just these. Is
the number line used? The embedding of a digit, 1 to 8, is replaced by the mean of its two neighbours'
(*line*), or of two others at least 2 away (*control*, all such pairs), in the input and at the operand's
place alone; asked are the seen equations of which exactly one operand is that digit. Mean over digits first.
"""


def find_run(name: str, root: Path) -> tuple[RunLog | None, str]:
    """The run `name` under `root`, else under results/, and where it lies; or None, and why. Raises UserError
    if the run's log is damaged."""
    for folder, note in ((root / name, ""), (RESULTS / name, " (from results/)")):
        if run := plots.find_log(folder):
            return run, note
    return None, "not run: takes a day or two on a CPU" if "mlt" in name else "not run"


def find_runs(root: Path, end: str) -> dict[str, Runs]:
    """Every run of `find_run`, by operation and size; `end` is that of the regularised ones' names."""
    return {op: {size: find_run(f"{op}_mini_{size}{end}", root) for size in MODELS} for op in FIGURES}


def at_best(run: RunLog, operation: str, values: np.ndarray) -> np.ndarray:
    """Of values (N, S), each seed's at its best evaluation, the first of equals: (S,)."""
    return np.take_along_axis(values, run.columns[CHOSEN_BY[operation]].argmax(axis=0)[None], axis=0)[0]


def score_cells(run: RunLog, operation: str) -> list[str]:
    """Our cells in Tables 2-4: in each the score at the best evaluation and at the last."""
    cells = [f"{percent(at_best(run, operation, right).mean())} · {mean_and_range(right[-1])}"
             for right in (accuracy(run, name) for name in ASKED[operation])]
    if operation != "facts" and run.info["held_out"]:
        heldout = right, asked = [run.columns[f"heldout_{kind}"] for kind in ("correct", "total")]
        best, last = [at_best(run, operation, x).sum() for x in heldout], [x[-1].sum() for x in heldout]
        cells.append("{:.0f}/{:.0f} · {:.0f}/{:.0f}".format(*best, *last))
        best, last = at_best(run, operation, right == asked).sum(), (right == asked)[-1].sum()
        cells.append(f"{best} · {share_of(last, right.shape[1])}")
    return cells


def paper_tables(runs: dict[str, Runs], wd: bool) -> list[str]:
    """Tables 2-4: in each cell the paper's score, our best and our last."""
    texts = []
    for number, (operation, of_size) in enumerate(runs.items(), start=2):
        names = [CURVES[name][0] if name in CURVES else name for name in ASKED[operation]]
        heldout = ["held-out", "seeds with all held-out right"] if operation != "facts" else []
        rows = [["model", "seeds", *names, *heldout]]
        for size, (run, note) in of_size.items():
            paper = (PAPER_WD if wd else PAPER)[operation][size].split()
            ours = score_cells(run, operation) if run else ["- · -"] * len(paper)
            rows.append([*first_cells(size, run, note), *(
                f"{theirs} · {own}" for theirs, own in zip_longest(paper, ours, fillvalue="-"))])
        texts.append(markdown_table(f"Table {number}: {DATA[operation]}{', regularised' * wd}", "", rows))
    return texts


def short_table(runs: dict[str, Runs]) -> str:
    """The paper's cells in short: percent right of each thing asked, the mean over seeds at the end."""
    rows = [["percent right", "model", "seeds", "the paper", "ours", "seeds with all held-out right"]]
    for operation, of_size in runs.items():
        names = [*ASKED[operation], *["heldout"] * (operation != "facts")]
        what = " · ".join({"heldout": "held-out", "combined": "all"}.get(n) or CURVES[n][0] for n in names)
        for size, (run, note) in of_size.items():
            paper = " · ".join(f"{float(100 * Fraction(score)):g}" if "/" in score else score
                               for score in PAPER[operation][size].split())
            last = [accuracy(run, name)[-1] for name in names] if run else []
            whole = [share_of((last[-1] == 1).sum(), len(last[-1]))] if run and "heldout" in names else []
            rows.append([DATA[operation] + f": {what}" * (len(names) > 1), *first_cells(size, run, note),
                         paper, " · ".join(percent(right.mean()) for right in last) or "-", *whole])
    return markdown_table("In short", "Ours at the last iteration, the mean over seeds.\n", rows)


def loss_cells(run: RunLog, operation: str) -> list[str]:
    """Where the last loss stands between the rule-follower and the memoriser."""
    loss, rule, floor = run.columns["train_loss"][-1], run.info["rule_loss"], run.info["loss_floor"]
    cells = [mean_and_range(loss, "{:.4f}".format)]
    if rule is None or floor is None:
        return cells
    return [*cells, f"{rule:.4f}", f"{floor:.4f}", mean_and_range((rule - loss) / (rule - floor))]


def best_cells(run: RunLog, operation: str) -> list[str]:
    """What the best evaluation has over the last, when it was, and who answers held-out equations."""
    score, some = run.columns[CHOSEN_BY[operation]], run.columns["heldout_correct"] > 0
    gain = 100 * (score.max(axis=0) - score[-1])
    cells = [f"{gain.mean():.3g}", f"{gain.max():.3g}", f"{(gain > 0).sum()} of {len(gain)}",
             mean_and_range(at_best(run, operation, run.columns["iter"]), "{:,.0f}".format)]
    if operation == "facts":
        return cells
    return [*cells, *(share_of(seeds.sum(), len(gain)) for seeds in (some[-1], some.any(axis=0)))]


def minutes(run: RunLog) -> str:
    """What a run took, its processes' minutes added up; "-" if its rows were taken from another run's log."""
    each = [read_run(part).columns["elapsed_s"][-1].max() for part in rank_folders(run.folder)]
    return "-" if run.info.get("taken_from") else f"{sum(each) / 60:,.1f}"


def cost_cells(run: RunLog, operation: str) -> list[str]:
    """What a run took."""
    return [f"{run.iters[-1]:,}", minutes(run), run.info["device"]]


def first_cells(size: str, run: RunLog | None, note: str) -> list[str]:
    """The model, with how far its run got and where it lies, or why there is none; and how many seeds."""
    if not run:
        return [f"{MODELS[size]}, {note}", "-"]
    name = ", ".join(filter(None, [MODELS[size], plots.shortfall(run)]))
    return [name + note, str(len(run.info["seeds"]))]


def overview(heading: str, text: str, header: list[str], runs: dict[str, Runs], cells: Callable) -> str:
    """A table with one row a run that is there, of the cells that `cells` (run, operation) gives."""
    rows = [[DATA[operation], *first_cells(size, run, note), *cells(run, operation)]
            for operation, of_size in runs.items() for size, (run, note) in of_size.items() if run]
    return markdown_table(heading, text, [["data", "model", "seeds", *header], *rows])


def tables(runs: dict[str, Runs], digits: list, wd: bool) -> str:
    """All tables, as text in Markdown."""
    return "\n".join([
        *([] if wd else [short_table(runs)]), NOTES, *paper_tables(runs, wd),
        overview("What the loss says", LOSS_NOTES,
                 ["loss", "rule-follower", "memoriser", "way from rule to memoriser, %"], runs, loss_cells),
        overview("What choosing the best checkpoint flatters", BEST_NOTES,
                 ["best less last", "largest", "seeds that gain", "best at iteration",
                  "some held-out right", "at any evaluation"], runs, best_cells),
        *([digits_table(digits)] if digits else []),
        overview("What the runs took", COST_NOTES, ["iterations", "minutes", "machine"], runs, cost_cells)])


@dataclass(frozen=True)
class Digits:
    """The digits in a model's embeddings, of each seed: `rows` (S, 10, n_embd), their `order` (S,) and their
    `variance` (S,) in two components. `groups` {name: bool (S,)}: all seeds; if there are both, those that
    answer all held-out equations and the others too, with `p` of the difference of their `order`."""
    name: str
    seeds: list[int]
    rows: np.ndarray
    order: np.ndarray
    variance: np.ndarray
    groups: dict[str, np.ndarray]
    p: float | None


def digit_order(rows: np.ndarray) -> float:
    """Spearman's rank correlation between |i - j| and the distance of rows i and j of (10, n), i < j."""
    i, j = np.triu_indices(len(rows), 1)
    return rank_correlation(j - i, np.linalg.norm(rows[i] - rows[j], axis=1))


def two_components(rows: np.ndarray, of: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Rows (10, n) in the first two principal components of themselves or `of` others, (10, 2), and these'
    share of the variance; of those the last row lies right of the first, the middle ones above the ends."""
    of = rows if of is None else of
    _, s, axes = np.linalg.svd(of - of.mean(0), full_matrices=False)
    points = (of - of.mean(0)) @ axes[:2].T
    flip = points[-1, 0] < points[0, 0], points[4:6, 1].sum() < points[[0, -1], 1].sum()
    points = (rows - rows.mean(0)) @ axes[:2].T
    return points * np.where(flip, -1, 1), float((s[:2] ** 2).sum() / (s ** 2).sum())


def digit_rows(wte: np.ndarray, vocab: str) -> np.ndarray:
    """The digits' rows (S, 10, n) of embeddings (S, vocab_size, n). Raises ValueError if there are none."""
    return wte[:, [vocab.index(digit) for digit in "0123456789"]]


def find_digits(runs: Runs) -> list[Digits]:
    """Those of all runs that have their ckpt.pt, or its `wte` and `vocab` in wte.npz. Raises UserError if one
    is damaged."""
    found = []
    for size, (run, _) in runs.items():
        path = run and run.folder / "wte.npz"
        if run and all((part / "ckpt.pt").is_file() for part in rank_folders(run.folder)):
            from sample import open_model  # here alone: torch, which nothing else needs
            path, model = run.folder / "ckpt.pt", open_model(str(run.folder))
            wte, vocab, seeds = model.embedding(), model.vocab, model.seeds
        elif run and path.is_file():
            with reading(path), np.load(path) as saved:
                wte, vocab, seeds = saved["wte"], str(saved["vocab"]), run.info["seeds"]
        else:
            continue
        with reading(path):
            rows = digit_rows(wte, vocab)
            columns = [run.info["seeds"].index(seed) for seed in seeds]
        name = MODELS[size]
        order, variance = np.array([(digit_order(one), two_components(one)[1]) for one in rows]).T
        right, p = accuracy(run, "heldout")[-1, columns] == 1, None
        groups = {name: np.full(len(right), True)}
        if right.any() and not right.all():
            groups |= {f"{name}, all held-out right": right, f"{name}, others": ~right}
            p = permutation_test(order, right)
        found.append(Digits(name, seeds, rows, order, variance, groups, p))
    return found


def digits_table(digits: list[Digits]) -> str:
    """The order of the digits in numbers."""
    rows = [["model", "seeds", "rank correlation", "variance in two components, %", "p"]]
    rows += [[name, str(seeds.sum()), mean_and_range(one.order[seeds], "{:.3f}".format),
              mean_and_range(one.variance[seeds]), f"{one.p:.4f}" if one.p and name == one.name else "-"]
             for one in digits for name, seeds in one.groups.items()]
    return markdown_table("The order of the digits", DIGITS_NOTES, rows)


def draw_digits(ax: Axes, rows: np.ndarray, size: float, last: np.ndarray | None = None) -> None:
    """Join the digits 0 to 9 in the plane of their first two principal components, or of those of the rows
    `last`, in letters of `size`."""
    points, reach = two_components(rows, last)[0], two_components(rows if last is None else last)[0]
    ax.plot(*points.T, color=plots.GREY, linewidth=size / 8, zorder=1)
    ax.scatter(*points.T, s=3 * size ** 2, c=range(10), cmap="YlGnBu", vmin=-3, vmax=18, zorder=2)
    for digit, point in enumerate(points):
        ax.text(*point, str(digit), fontsize=size, ha="center", va="center_baseline")
    reach = 1.2 * abs(reach).max()
    ax.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def draw_orders(ax: Axes, digits: list[Digits]) -> None:
    """Every seed's rank correlation: a row of dots for each group of a model's seeds, a line at the mean."""
    groups = {name: one.order[seeds] for one in digits for name, seeds in one.groups.items()}
    for y, (name, order) in enumerate(groups.items()):
        spread = rng(y, "spread").uniform(-0.25, 0.25, len(order))
        ax.plot(order, y + spread, ".", color=plots.MODEL_COLORS[name.split(",")[0]], alpha=0.6)
        ax.plot([order.mean()] * 2, [y - 0.35, y + 0.35], color="black")
    names = [f"{name}: {len(order)} seed{'s' * (len(order) > 1)}" for name, order in groups.items()]
    ax.set_yticks(range(len(names)), names, fontsize=9)
    tests = "".join(f"\n{one.name}, all held-out right or not: p = {one.p:.2g}" for one in digits if one.p)
    ax.set_title("Do the digits lie in order? Every seed, and the mean" + tests, fontsize=10)
    ax.set(ylim=(len(names) - 0.5, -0.5),
           xlabel="rank correlation of |i - j| and the digits' distance")
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)


def digits_figure(digits: list[Digits]) -> Figure:
    """For each model its first seed, and small some more; below, the order of the digits in every seed."""
    last = 1 + 0.27 * sum(len(one.groups) for one in digits)
    fig = Figure(figsize=(3.2 * max(2, len(digits)), 6.2 + last), layout="constrained")
    top, bottom = fig.subfigures(2, height_ratios=[6.2, last])
    grid = top.add_gridspec(2, len(digits), height_ratios=[3.4, 2.4])
    for column, one in enumerate(digits):
        ax = top.add_subplot(grid[0, column])
        ax.set_title(f"{one.name}, seed {one.seeds[0]}: {one.variance[0]:.0%} of variance", fontsize=10)
        draw_digits(ax, one.rows[0], 10)
        for spot, rows in zip(grid[1, column].subgridspec(3, 4), one.rows[1:]):
            draw_digits(top.add_subplot(spot), rows, 4)
    draw_orders(bottom.subplots(), digits)
    return fig


def read_answers(folder: Path) -> dict[str, list[dict]]:
    """What `eval_as_math.py --inside` wrote into `folder`: the rows of each file by its name, with `off`, the
    columns of OFF, and `equal`, the shares of the held-out answers that each of COPIES would give too.

    Raises UserError if one is damaged.
    """
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with reading(path), open(path, newline="") as f:
            found[path.stem] = list(csv.DictReader(f))
            for row in found[path.stem]:
                said = re.findall(r"(\d+)([+-])(\d+)=(\S+)", row["answers"])
                row |= {"iter": int(row["iter"]), "off": [float(row[k]) for k in OFF], "equal": [
                    np.mean([float(z) in copied(name, a, op, b) for a, op, b, z in said]) for name in COPIES
                ] if said else []}
            if {row["test"] for row in found[path.stem]} != {test for test, *_ in USES.values()}:
                raise ValueError("it lacks a test")
    return found


def copied(name: str, a: str, op: str, b: str) -> list[int]:
    """The answers that one of COPIES gives to an equation."""
    return [answer(x, op, y) for x, y in COPIES[name](int(a), int(b))]


def straw_men(row: dict) -> dict[str, list[dict]]:
    """What each of COPIES scores on the held-out equations of a row, as rows."""
    asked = re.findall(r"(\d+)([+-])(\d+)", row["answers"])
    errors = {name: np.concatenate([abs(np.array(copied(name, a, op, b)) - answer(int(a), op, int(b)))
                                    for a, op, b in asked]) for name in COPIES}
    return {name: [row | {"off": np.bincount(np.minimum(off, 3), minlength=5) / len(off), "equal": []}]
            for name, off in errors.items()}


def shares_of(rows: list[dict], test: str, column: str = "off") -> np.ndarray:
    """A test's answers, each seed's shares: (S, 5), the columns of OFF; or those of `column`."""
    return np.array([row[column] for row in rows if row["test"] == test])


def inside_table(heading: str, groups: dict[str, list[dict]], tests: list[str]) -> str:
    """A row for each group of seeds and test."""
    table = [["model", "seeds", "test", "asked of each", *(label for label, _ in OFF.values()), "within 1",
              *(name.split()[-1] for name in COPIES)]]
    for name, test in product(groups, tests):
        shares, equal = (shares_of(groups[name], test, column) for column in ("off", "equal"))
        asked = next(row["asked"] for row in groups[name] if row["test"] == test)
        columns = [*shares.T, shares[:, :2].sum(1), *equal.T]
        table.append([name, str(len(shares)), test, asked, *map(stats.mean_and_interval, columns)])
    return markdown_table(heading, "", table)


def draw_ladder(ax: Axes, bars: dict[str, np.ndarray], title: str) -> None:
    """How far answers are off, in percent, a bar for the mean over the seeds of each (S, 5)."""
    for y, shares in enumerate(bars.values()):
        widths = 100 * shares.mean(0)
        for (label, color), right, width in zip(OFF.values(), widths.cumsum(), widths):
            ax.barh(y, width, left=right - width, color=color, label="" if y else label, height=0.75)
            if width >= 7:
                ax.text(right - width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=8,
                        color="white" if label == "off by more" else "black")
    ax.set_yticks(range(len(bars)), bars, fontsize=8)
    ax.set(xlim=(0, 100), ylim=(len(bars) - 0.5, -0.5), xlabel="% of answers")
    ax.set_title(title, fontsize=9)


def draw_uses(ax: Axes, groups: dict[int, list[dict]], title: str, xlabel: str) -> None:
    """The curves of USES over the keys of the groups of seeds, with bands of their 95% intervals."""
    for label, (test, upto, color, style) in USES.items():
        values = [100 * shares_of(rows, test)[:, :upto].sum(1) for rows in groups.values()]
        ax.fill_between([*groups], *zip(*map(stats.bootstrap, values)), color=color, alpha=0.15, linewidth=0)
        ax.plot([*groups], [one.mean() for one in values], color=color, linestyle=style, label=label,
                marker="." if len(groups) < 20 else "", linewidth=1.4)
    ax.set(xscale="log", ylim=(-3, 103), ylabel="% right", xlabel=xlabel)
    ax.set_title(title, fontsize=9)
    ax.tick_params(which="minor", labelbottom=False)
    ax.grid(color="#DDDDDD", linewidth=0.6)


def inside(answers: dict[str, list[dict]]) -> tuple[Figure, str]:
    """The figure of what is answered instead and of the use of the number line, and its tables."""
    models = {name + ", regularised" * bool(end): answers[f"{name.lower()}{end}"] for end in ("", "_wd")
              for name in MODELS.values() if f"{name.lower()}{end}" in answers}
    sizes = sorted((int(rows[0]["parameters"]), rows) for name, rows in answers.items()
                   if re.fullmatch(r"n_embd_\d+|n\d+", name))
    training = {name[9:]: {it: [row for row in rows if row["iter"] == it]
                           for it in sorted({row["iter"] for row in rows} - {0})}
                for name, rows in answers.items() if name.startswith("training_")}
    straw = straw_men(next(row for row in models["n14"] if row["test"] == "held-out"))
    fig = Figure(figsize=(9.6, 10.5), layout="constrained")
    axes = fig.subplot_mosaic("AB;CD;EF", height_ratios=[1.3, 1, 1])
    draw_ladder(axes["A"], {name: shares_of(rows, "held-out") for name, rows in (models | straw).items()},
                "Held-out equations: how far answers are off.\nRight: % equal to the nearest · the diagonal")
    for y, rows in enumerate(models.values()):
        equal = 100 * shares_of(rows, "held-out", "equal").mean(0)
        axes["A"].text(102, y, " · ".join(f"{x:.0f}" for x in equal), va="center", fontsize=8)
    draw_ladder(axes["B"], {f"{name}, {test}": shares_of(models[name], test)
                            for name, test in product([*models][:4], ("line", "control"))},
                "Seen equations, a digit replaced by the mean\nof its neighbours (line), of others (control)")
    for ax, (name, groups) in zip("CD", training.items()):
        draw_uses(axes[ax], groups, f"{name} through training", "iteration")
    draw_uses(axes["E"], dict(sizes), "At the end, over the model's size", "parameters")
    axes["F"].axis("off")
    for place, ax in ((1, "A"), (0.45, "E")):
        axes["F"].add_artist(axes["F"].legend(*axes[ax].get_legend_handles_labels(), loc="upper left",
                                              bbox_to_anchor=(0, place), frameon=False))
    stages = {f"{name}, iteration {it:,}": rows for name, groups in training.items()
              for it, rows in [*groups.items()][::-8]}
    return fig, "\n".join([
        INSIDE_NOTES, inside_table("What is answered", models | straw, ["held-out"]),
        inside_table("Is the number line used?", models, ["seen", "line", "control"]),
        inside_table("Over the model's size", {f"{n:,} parameters": rows for n, rows in sizes},
                     ["held-out", "line", "control"]),
        inside_table("Through training", stages, ["seen", "held-out", "line", "control"])])


def draw_answers(ax: Axes, off: np.ndarray, op: str, pairs) -> None:
    """The table of an operation (N, N), a down and b across, by how far the answers are off, NaN for none;
    what was held out is framed."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle
    kinds = np.nan_to_num(np.minimum(off, 3), nan=4)
    ax.imshow(kinds, cmap=ListedColormap([color for _, color in OFF.values()]), vmin=0, vmax=4)
    for a, b in {*pairs, *(pair[::-1] for pair in pairs)}:
        ax.add_patch(Rectangle((b - 0.5, a - 0.5), 1, 1, fill=False, linewidth=2))
    ax.set(xticks=[], yticks=[], title=f"a {op} b")


def film(folders: list[Path], out: Path) -> None:
    """Write a GIF of how the first seeds of runs learn: of each checkpoint that was kept, the digits in the
    last one's first two principal components, and how far the answers are off."""
    from matplotlib.animation import PillowWriter

    from eval_as_math import answers_of, ask, numbers  # torch
    from sample import kept, open_model
    names = sorted(set.intersection(*({*kept(str(folder))} for folder in folders)))
    if not names:
        raise UserError(f"{folders[0]} and {folders[1]} kept no checkpoints of the same "
                        "iterations; train both with the same --keep_every")
    models = [[open_model(str(folder), name).only(-1) for name in names] for folder in folders]
    rows = [[digit_rows(one.embedding(), one.vocab)[0] for one in run] for run in models]
    fig, writer = Figure(figsize=(8, 5.6)), PillowWriter(fps=5)
    writer.setup(fig, out, dpi=80)
    for i, name in enumerate(names):
        fig.clear()
        fig.suptitle(f"iteration {int(name[5:-3]):,}", fontsize=24)
        grid = fig.add_gridspec(2, 4, height_ratios=[1.5, 1], left=0.02, right=0.98, bottom=0.07, top=0.84)
        for column, (folder, run, digits) in enumerate(zip(folders, models, rows)):
            ax = fig.add_subplot(grid[0, 2 * column:2 * column + 2])
            ax.set_title(f"{MODELS[folder.name[10:]]}: the digits in its embedding", fontsize=12)
            draw_digits(ax, digits[i], 12, digits[-1])
            said = ask(run[i], run[i], run[i].seeds, [0], num_samples=1, temperature=0, top_k=1)[0, :, 0]
            off = abs(numbers(said, ">") - answers_of(len(said))).reshape(2, run[i].numbers, run[i].numbers)
            for k, op in enumerate("+-"):
                draw_answers(fig.add_subplot(grid[1, 2 * column + k]), off[k], op, run[i].held_out)
        for x, (label, color) in enumerate([*OFF.values(), ("framed: held out", "none")]):
            fig.text(0.02 + 0.158 * x, 0.02, label, backgroundcolor=color, fontsize=10,
                     color="white" if x == 3 else "black")
        for _ in range(1 if i + 1 < len(names) else 15):  # the end stays for 3 s
            writer.grab_frame()
    with writing(out):
        writer.finish()


def draw_grid(operation: str, runs: Runs, end: str) -> Figure:
    """The 2 x 2 figure of an operation, from {size: (run, note)}; where there is no run, how to train it."""
    heights = plots.strip_heights(OPERATIONS[operation], True)
    limits = plots.loss_limits([run for run, _ in runs.values() if run])
    fig = Figure(figsize=(8, 1.15 * sum(heights) + 1.6), layout="constrained")
    axes = fig.subplots(2 * len(heights), 2, sharex=True, height_ratios=heights * 2)
    panels = [axes[top:top + len(heights), side] for top in (0, len(heights)) for side in (0, 1)]
    for strips, (size, (run, note)) in zip(panels, runs.items(), strict=True):
        if run:
            title = plots.run_title(MODELS[size], run, note)
            plots.draw_run(strips, run, plots.tasks_of(run, operation), limits)
        else:
            title = f"{MODELS[size]}, {note}"
            plots.frame_strips(strips, limits)
            strips[0].text(0.5, 0.5, "to train it:\npython train_with_eval.py\n"
                           f"config/train_{operation}_mini_{size}{end}.py", transform=strips[0].transAxes,
                           ha="center", va="center", fontsize=8, bbox={"color": "white"})
        strips[0].set_title(title, fontsize=10)
    for ax in fig.axes:
        ax.label_outer()
    for ax in axes[len(heights) - 1]:
        ax.tick_params(labelbottom=True)
    fig.align_ylabels()
    plots.add_legend(fig, list(zip(*panels)))
    return fig


def main(argv: list[str]) -> None:
    """Draw the figures and write the tables that the command line asks for."""
    args = config.settings(argv, KEYS, __doc__)
    root, end = Path(args["root_dir"]), "_wd" if args["wd"] else ""
    if not root.is_dir():
        raise UserError(f"--root_dir={root}: no such folder; expected one with runs such as math_mini_14")
    runs = find_runs(root, end)
    figures = {root / f"{name}{end}.png": draw_grid(op, runs[op], end) for op, name in FIGURES.items()}
    if digits := find_digits(runs["math"]):
        figures[root / f"digits{end}.png"] = digits_figure(digits)
    figures |= {run.folder / "plot.png": plots.run_figure(run, run.info["tasks"])
                for of_size in runs.values() for run, note in of_size.values() if run and not note}
    texts = {}
    if (root / "answers" / "n14.csv").is_file() and not end:
        figures[root / "inside.png"], texts[root / "inside.md"] = inside(read_answers(root / "answers"))
    text, path = tables(runs, digits, args["wd"]), root / f"tables{end}.md"
    for at, fig in figures.items():
        plots.save_figure(fig, at)
    for at, written in (texts | {path: text}).items():
        replace_file(at, written.encode())
    folders = [run.folder for size in ("14", "28") if (run := runs["math"][size][0])
               and any(rank_folders(run.folder)[0].glob("ckpt_[0-9]*.pt"))]
    if len(folders) == 2:
        print(f"drawing {root}/learning{end}.gif: takes a minute")
        film(folders, root / f"learning{end}.gif")
    print(*(f"wrote {at}" for at in (path, *texts, *figures)), "", text, sep="\n")


if __name__ == "__main__":
    config.run(main)
