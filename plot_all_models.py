"""The paper's three grid figures, and its Tables 2 to 4 as one, from the logs of up to twelve runs.
  python plot_all_models.py --root_dir=. [--wd]

Writes grid_math.png, grid_facts.png, grid_combined.png and tables.md into root_dir, and plot.png into each
run's folder there; with --wd those of the regularised runs, under names that end in _wd. A run that is not
under root_dir is read from results/.
"""
import sys
from pathlib import Path

import config
import plot_results as plots  # matplotlib too comes from there
from config import Key, UserError
from data.files import replace_file
from data.log import RunLog
from data.stats import percent, share_of
from plot_results import MODELS, OPERATIONS, Figure, accuracy, markdown_table

RESULTS = Path(__file__).resolve().parent / "results"
KEYS = {
    "root_dir": Key(".", "folder of the runs' folders, and for the figures and tables", path=True),
    "wd": Key(False, "the regularised runs"),
}
FIGURES = {"math": "grid_math", "facts": "grid_facts", "both": "grid_combined"}
DATA = {"math": "arithmetic", "facts": "capitals", "both": "both at once"}
SCORES = {  # what is asked, as `accuracy` names it, and in words
    "math": {"add": "addition", "sub": "subtraction", "heldout": "held-out"}, "facts": {"facts": "capitals"},
    "both": {"add": "addition", "sub": "subtraction", "facts": "capitals", "combined": "all",
             "heldout": "held-out"}}
PAPER = {  # n14, n28, n56, MLT; best checkpoint of one seed: % right, in the order of SCORES
    "": {"math": ("100 · 100 · 100", *["98 · 98 · 0"] * 3), "facts": ("8.2", "100", "100", "100"),
         "both": ("31.2 · 39.4 · 2.0 · 28.6 · 0", "95.0 · 97 · 87.6 · 94.3 · 0",
                  *["98 · 98 · 100 · 98.4 · 0"] * 2)},
    "_wd": {  # the regularised set, as published with the paper's code; 98 is 89 of 91 prompts there
        "math": ("100 · 100 · -", *["98 · 98 · -"] * 3), "facts": ("12.4", "100", "100", "100"),
        "both": ("31.9 · 30.2 · 6.2 · 25.7 · -", "96.3 · 87.8 · 90.0 · 91.6 · -",
                 *["98 · 98 · 100 · 98.3 · -"] * 2)}}
Runs = dict[str, RunLog | None]  # by the model's name and where its run lies; None: there is none
SCORE_NOTES = """\
The paper: the best checkpoint of one seed. Ours: the last evaluation, the mean over seeds, with the lowest
and the highest. The best is the paper's protocol, each seed's evaluation with the highest score over all
prompts, which include the held-out ones: choosing by what is judged flatters. Shares of seeds have Wilson's
95% interval.
"""
COST_NOTES = """\
Minutes are those of the whole run, seeds, evaluations and processes added up. The last loss, in nats per
character, mean (lowest to highest) over seeds, stands beside the rule-follower's and the memoriser's. The way
is (rule - loss) / (rule - memoriser): 0% is the rule-follower, 100% the memoriser, and less than 0% a model
that has not got as far as the rule.
"""


def find_runs(root: Path, end: str) -> dict[str, Runs]:
    """Every run, under `root` or else results/, by operation and model; `end` is that of the regularised
    ones' names. Raises UserError if a log is damaged."""
    runs = {operation: {} for operation in FIGURES}
    for operation, of_model in runs.items():
        for size, model in MODELS.items():
            name = f"{operation}_mini_{size}{end}"
            if run := plots.find_log(root / name):
                of_model[model] = run
            elif run := plots.find_log(RESULTS / name):
                of_model[f"{model} (from results/)"] = run
            else:
                of_model[f"{model}, not run"] = None
    return runs


def score_cells(run: RunLog, operation: str) -> list[str]:
    """What is right, in percent: at the last evaluation the mean, lowest and highest, and the mean at each
    seed's best one, the first of equals; and how many seeds have held-out answers right."""
    n, best = len(run.info["seeds"]), run.columns["combined_acc"].argmax(axis=0)  # (S,)
    scores = [accuracy(run, name) for name in SCORES[operation]]  # each (N, S)
    columns = zip(*((x[-1].mean(), x[-1].min(), x[-1].max(), x[best, range(n)].mean()) for x in scores))
    heldout = scores[-1]
    seeds = (heldout[-1] == 1, heldout[best, range(n)] == 1, heldout[-1] > 0, (heldout > 0).any(axis=0))
    return [*(" · ".join(map(percent, column)) for column in columns),
            *(share_of(which.sum(), n) for which in seeds if operation != "facts" and run.info["held_out"])]


def tables(runs: dict[str, Runs], end: str) -> str:
    """The paper's cells and ours, and what the runs took, as text in Markdown."""
    scores = [["percent right", "model", "seeds", "the paper", "ours", "lowest", "highest",
               "ours at the best", "seeds with all held-out right", "at the best", "with some right",
               "some at any time"]]
    costs = [["data", "model", "seeds", "iterations", "minutes", "machine", "loss", "rule-follower",
              "memoriser", "way, %"]]
    for operation, of_model in runs.items():
        words = " · ".join(SCORES[operation].values())
        what = words if operation == "facts" else f"{DATA[operation]}: {words}"
        for (model, run), paper in zip(of_model.items(), PAPER[end][operation], strict=True):
            if not run:
                scores.append([what, model, "-", paper])
                continue
            seeds = str(len(run.info["seeds"]))
            name = ", ".join(filter(None, [model, plots.shortfall(run)]))
            scores.append([what, name, seeds, paper, *score_cells(run, operation)])
            costs.append([DATA[operation], model, seeds, f"{run.iters[-1]:,}", plots.minutes(run),
                          run.info["device"], *plots.loss_cells(run)])
    return "\n".join([markdown_table("The paper's Tables 2 to 4", SCORE_NOTES, scores),
                      markdown_table("What the runs took, and what the loss says", COST_NOTES, costs)])


def draw_grid(operation: str, runs: Runs) -> Figure:
    """The 2 x 2 figure of an operation."""
    heights = plots.strip_heights(OPERATIONS[operation], True)
    limits = plots.loss_limits([run for run in runs.values() if run])
    fig = Figure(figsize=(8, 1.15 * sum(heights) + 1.6), layout="constrained")
    axes = fig.subplots(2 * len(heights), 2, sharex=True, height_ratios=heights * 2)
    panels = [axes[top:top + len(heights), side] for top in (0, len(heights)) for side in (0, 1)]
    for strips, (model, run) in zip(panels, runs.items(), strict=True):
        plots.frame_strips(strips, limits)
        strips[0].set_title(plots.run_title(model, run) if run else model, fontsize=10)
        if run:
            plots.draw_run(strips, run, plots.tasks_of(run, operation))
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
    if not any(run and run.folder.parent == root for of_model in runs.values() for run in of_model.values()):
        print(f"{root} has no run of the paper: all are read from results/", file=sys.stderr)
    figures = {root / f"{name}{end}.png": draw_grid(operation, runs[operation])
               for operation, name in FIGURES.items()}
    figures |= {run.folder / "plot.png": plots.run_figure(run, run.info["tasks"])
                for of_model in runs.values() for run in of_model.values()
                if run and run.folder.parent == root}
    text, path = tables(runs, end), root / f"tables{end}.md"
    for file, fig in figures.items():
        plots.save_figure(fig, file)
    replace_file(path, text.encode())
    print(*(f"wrote {file}" for file in (path, *figures)), "", text, sep="\n")


if __name__ == "__main__":
    config.run(main)
