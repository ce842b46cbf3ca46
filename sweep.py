"""Train the runs that a study lists, then draw them:
  python sweep.py config/sweep_capacity.py [--num_seeds=4] [--plot]
  torchrun --nproc_per_node=4 sweep.py config/sweep_capacity.py

Into results/STUDY/RUN, with the figure results/STUDY.png and the table results/STUDY.md. What is done is
skipped, what was interrupted goes on, and what another process trains is left to it.
"""
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import config  # before numpy and torch: from then on Ctrl-C is quiet
from config import Key, UserError

# isort: split
import numpy as np
import torch

import data
import eval_as_math
import train_with_eval
from data.files import Lock, replace_file
from data.log import NoEvaluation, RunLog, parts, read_run
from plot_all_models import loss_cells, mean_and_range, share_of_seeds
from plot_results import REFERENCES, Axes, Figure, accuracy, markdown_table, save_figure, wilson
from sample import open_model

from matplotlib.colors import ListedColormap  # isort: skip  after plot_results, which minds the backend

DECIDED = ("init_from", "overwrite")  # by what is there
KEYS = {name: key for name, key in config.KEYS.items() if name not in DECIDED} | {
    "runs": Key([], "a dict for each run, of the keys that it sets"),
    "base": Key("config/train_math_mini_14.py", "run config that the runs begin with"),
    "held_out": Key("5-7", "pairs held out, such as 3-8,2-6: trains on that variant of the dataset"),
    "name": Key("n_embd_14", "of a run; by default what it sets"),
    "draw": Key("table", "what to draw", choices=("capacity", "pairs", "phase", "table", "nothing")),
    "out_dir": Key("results/STUDY", "folder of the runs' folders; figure and table lie beside it"),
    "plot": Key(False, "only draw what is done"),
    "part": Key("1/1", "2/4: every fourth run from the second on"),
    "wd": Key(False, "the regularised runs: the study in the file that ends in _wd.py")}
MAY_DIFFER = ("out_dir", "device", "wandb_log", "wandb_project", "wandb_run_name", *DECIDED)  # from a log
PHASES = {"confusion": "#BBBBBB", "memorisation": "#E69F00", "comprehension": "#56B4E9",
          "grokking": "#009E73"}
NOTES = """\
At the last iteration: scores in percent, mean (lowest to highest) over seeds; a share of seeds with Wilson's
95% interval; the way from the rule-follower's loss, 0, to the memoriser's, 100. Phases: see sweep.py.
"""


@dataclass
class Run:
    """A run of a study: its folder, its effective config, what of that was set, its log as far as it is."""
    folder: Path
    c: dict
    given: dict
    log: RunLog | None = None
    at: int = -1  # the last iteration in the log

    @property
    def done(self) -> bool:
        """Whether the log has the last iteration."""
        return self.at == self.c["max_iters"]


def make_run(study: dict, own: dict, on_line: dict, source: str) -> Run:
    """The run that sets `own` over the study's settings and under the command line's; its name is what makes
    it differ, the number of seeds aside. Raises UserError for what cannot be set."""
    for key in own:
        if key not in KEYS:
            raise UserError(f"{source}: unknown key {key}{config.nearest(key, KEYS)}")
    own = {key: config.check(key, value, KEYS[key], source) for key, value in own.items()}
    given = study | own | on_line
    base = config.read_file(given.get("base", KEYS["base"].default))
    differs = [f"{key}_{value}" for key, value in own.items() if key not in ("base", "name", "num_seeds")]
    differs = [base.get("out_dir", "run")] * ("base" in own or not differs) + differs
    folder = Path(given["out_dir"]) / given.get("name", "_".join(differs))
    given = base | given | {"out_dir": str(folder)}
    if "held_out" in given:
        pairs = data.pairs_of(given["held_out"], f"{source}: held_out")
        given["dataset"] = f"{given.get('dataset', KEYS['dataset'].default)}_{data.spell(pairs, '_')}"
    given = {key: given[key] for key in config.KEYS if key in given}
    return Run(folder, {key: config.KEYS[key].default for key in config.KEYS} | given, given)


def read_study(path: str, on_line: dict) -> tuple[dict, list[Run]]:
    """What a study's file and the command line set, and the runs. Raises UserError for what is wrong."""
    study = {"runs": [], "draw": "table", "out_dir": f"results/{Path(path).stem.removeprefix('sweep_')}",
             "plot": False, "part": "1/1"} | config.read_file(path, KEYS) | on_line
    if not study["runs"] or any(type(own) is not dict for own in study["runs"]):
        raise UserError(f"study {path}: expected runs = [dict(n_embd=6), dict(n_embd=8)], for example")
    runs = [make_run(study, own, on_line, f"study {path}, run {i}") for i, own in enumerate(study["runs"], 1)]
    folders = [run.folder for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(f"study {path}: more than one run is {twice[0].name}; give each another name=")
    return study, runs


def read_logs(runs: list[Run]) -> None:
    """Read how far each run is. Raises UserError for a log that is damaged, or not of what the study asks."""
    for run in runs:
        if any((part / "config.json").exists() for part in parts(run.folder)):
            with suppress(NoEvaluation):
                run.log = read_run(run.folder)
        if run.log:
            run.at, seeds = int(run.log.iters[-1]), run.log.notes["seeds"]
            has = run.c | run.log.notes["config"] | {"seed": min(seeds), "num_seeds": len(seeds)}
            has["max_iters"] = max(run.at, run.c["max_iters"])  # a run may be continued
            for key, asked in run.c.items():
                if key not in MAY_DIFFER and asked != has[key] and "auto" not in (asked, has[key]):
                    raise UserError(f"{run.folder} has {key} = {has[key]}, the study asks for {asked}; "
                                    "ask for that, remove the folder, or choose another --out_dir")


def time_left(runs: list[Run], everyone: list[Run]) -> str:
    """How long `runs` take still, by what the study took so far. An update's time grows as the products with
    weights and, on a CPU, 3 block_size more per unit of the width for attention, LayerNorm and GELU."""
    def work(run: Run, iterations: int) -> int:
        n, windows, block_size = (run.c[key] for key in ("n_embd", "batch_size", "block_size"))
        seeds_layers = run.c["num_seeds"] * run.c["n_layer"]
        return iterations * seeds_layers * windows * block_size * n * (n + 3 * block_size)

    begun = [run for run in everyone if run.at > 0]
    if not begun:
        return "unknown until the first run is under way"
    left = sum(work(run, run.c["max_iters"] - max(run.at, 0)) for run in runs)
    minutes = sum(run.log.columns["elapsed_s"][-1].max() for run in begun) / 60
    return f"about {minutes * left / sum(work(run, run.at) for run in begun):,.1f} min"


def train(runs: list[Run], everyone: list[Run]) -> int:
    """Say what there is to do, and train it run by run. Returns 0, or 128 + the signal that stopped it."""
    for run in runs:
        state = "done" if run.done else f"interrupted at {run.at:,}" if run.log else "to do"
        print(f"{run.folder.name:28}{run.c['num_seeds']:5} seed(s)  {state}")
    print(f"{len(runs)} runs; time left: {time_left(runs, everyone)}")
    for i, run in enumerate(runs, start=1):
        read_logs(everyone)
        if run.done:
            continue
        print(f"\n{run.folder.name}, {i} of {len(runs)}; time left: {time_left(runs, everyone)}", flush=True)
        try:
            with Lock(run.folder):
                pass
        except UserError as e:
            print(f"skipped: {e}")
            continue
        begun = any((part / "ckpt.pt").exists() for part in parts(run.folder))
        lost = run.log is None or run.at < run.log.notes["config"]["max_iters"]  # killed before a checkpoint
        how = {"init_from": "resume"} if begun else {"overwrite": lost}
        if code := train_with_eval.train(run.c | how, run.given | how):
            return code
    return 0


def share(part: str) -> slice:
    """Of a study's runs, this process's: by --part or, under torchrun, by its rank, which has its own GPU and
    trains ordinary runs. Raises UserError for a part that is none."""
    if os.environ.pop("TORCHELASTIC_RUN_ID", None):
        part = f"{int(os.environ.pop('RANK')) + 1}/{os.environ.pop('WORLD_SIZE')}"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"--part={part} will not do; expected one of 1/4, 2/4, 3/4 and 4/4, for example")
    return slice(int(number) - 1, None, int(of))


def phase(run: RunLog) -> str:
    """A run's phase, as in Liu et al. 2022 (arXiv 2205.10343), by the mean accuracies over its seeds, right
    from 95% on. Confusion: the seen equations are not right; memorisation: they alone; comprehension: the
    held-out ones too; grokking: these after more than twice as many iterations."""
    right, asked = (run.columns[f"add_{kind}"] + run.columns[f"sub_{kind}"] - run.columns[f"heldout_{kind}"]
                    for kind in ("correct", "total"))
    seen, unseen = (share.mean(1) >= 0.95 for share in (right / asked, accuracy(run, "heldout")))  # (N,)
    if not (seen[-1] and unseen[-1]):
        return "memorisation" if seen[-1] else "confusion"
    return "grokking" if run.iters[unseen.argmax()] > 2 * run.iters[seen.argmax()] else "comprehension"


def table(heading: str, note: str, logs: list[RunLog]) -> str:
    """A study's table, a row for each run."""
    rows = [["run", "parameters", "minutes", "held-out", "seeds with all held-out right", "phase", "loss",
             "rule-follower", "memoriser", "way"]]
    for run in logs:
        unseen, minutes = accuracy(run, "heldout")[-1], run.columns["elapsed_s"][-1].max() / 60
        answers = [mean_and_range(unseen), share_of_seeds(unseen == 1), phase(run)]
        rows.append([run.folder.name, f"{run.notes['parameters']:,}", f"{minutes:.1f}",
                     *(answers if run.notes["held_out"] else "---"), *loss_cells(run, "")])
    return markdown_table(heading, NOTES + note, rows)


def rank(logs: list[RunLog], pair: list[int]) -> str:
    """Where a held-out pair stands among the others by its mean score, if it is there."""
    scores = [accuracy(run, "heldout")[-1].mean() for run in logs]
    for own in [score for run, score in zip(logs, scores) if run.notes["held_out"] == [pair]]:
        better, same = sum(score > own for score in scores), scores.count(own)
        ranks = f"rank {better + 1} to {better + same} of {len(logs)}"
        return f"\n{pair[0]}-{pair[1]} has {ranks} by its held-out score, 1 being the best.\n"
    return ""


def draw_capacity(fig: Figure, logs: list[RunLog]) -> None:
    """Held-out answers, and loss between rule-follower and memoriser, over the number of parameters."""
    logs = sorted(logs, key=lambda run: run.notes["parameters"])
    x, unseen = [run.notes["parameters"] for run in logs], [accuracy(run, "heldout")[-1] for run in logs]
    right, loss = np.array([(s == 1).mean() for s in unseen]), [run.columns["train_loss"][-1] for run in logs]
    ends = np.transpose([wilson(int((s == 1).sum()), len(s)) for s in unseen])  # (2, runs)
    top, bottom = fig.subplots(2, sharex=True)
    top.errorbar(x, 100 * right, 100 * abs(ends - right), color="#771166", marker="o", capsize=3,
                 label="seeds with all held-out answers right, Wilson 95%")
    top.plot(x, [100 * s.mean() for s in unseen], "s--", color="#0072B2", label="held-out answers right")
    top.set(ylim=(-5, 105), ylabel="%")
    bottom.plot(np.repeat(x, [*map(len, loss)]), np.concatenate(loss), ".", color="#999999", label="one seed")
    bottom.plot(x, [s.mean() for s in loss], "o-", color="#D55E00", label="mean over seeds")
    for name, (label, dashes) in REFERENCES.items():
        bottom.axhline(logs[0].notes[name], color="black", linestyle=dashes, linewidth=0.8, label=label)
    bottom.set(xscale="log", xlabel="parameters (n_embd)", ylabel="loss (nats)")
    bottom.set_xticks(x, [f"{n:,} ({run.notes['config']['n_embd']})" for n, run in zip(x, logs)], rotation=90)
    bottom.minorticks_off()
    for ax in (top, bottom):
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.legend(frameon=False)


def draw_cells(ax: Axes, values: np.ndarray, text: Callable, title: str, **colours) -> None:
    """Values (rows, columns) as coloured cells, none for NaN, each with its `text(value)`, dark on light."""
    edges, colours = [np.arange(n + 1) - 0.5 for n in values.shape], {"vmin": 0, "vmax": 100} | colours
    mesh = ax.pcolormesh(*edges[::-1], values, edgecolors="white", linewidth=2, **colours)
    for i, j in zip(*np.isfinite(values).nonzero()):
        light = np.dot(mesh.to_rgba(values[i, j])[:3], (0.3, 0.59, 0.11)) > 0.45
        ax.text(j, i, text(values[i, j]), color="black" if light else "white", ha="center", va="center")
    ax.set_title(title)


def pair_scores(run: RunLog) -> tuple[float, float]:
    """Right held-out additions and subtractions (%), which the log has but together: ckpt.pt is asked as it
    was in the last evaluation. Raises UserError if there is none."""
    model, sampling = open_model(str(run.folder)), ("num_samples", "temperature", "top_k")
    texts = eval_as_math.ask(model, model.vocab, model.seeds, model.iters,
                             **{key: run.notes["config"][key] for key in sampling})
    correct = eval_as_math.is_correct(texts)[:, eval_as_math.held_out_mask(model.held_out)]
    return 100 * correct[:, :2].mean(), 100 * correct[:, 2:].mean()  # of (S, 4, num_samples)


def draw_pairs(fig: Figure, logs: list[RunLog]) -> None:
    """The held-out score of each pair: of addition above the diagonal, of subtraction below. Raises UserError
    for a run with none or several."""
    scores, ax = np.full((10, 10), np.nan), fig.subplots()
    for run in logs:
        if len(run.notes["held_out"]) != 1:
            raise UserError(f'{run.folder}: draw = "pairs" is for runs with one pair held out each')
        a, b = sorted(run.notes["held_out"][0])
        scores[a, b], scores[b, a] = pair_scores(run)
    draw_cells(ax, scores, "{:.0f}".format, "right answers to the pair held out (%)", cmap="cividis")
    ax.set(xticks=range(10), yticks=range(10), xlabel="above the diagonal: addition, a+b and b+a",
           ylabel="below the diagonal: subtraction, a-b and b-a")
    ax.invert_yaxis()


def draw_phase(fig: Figure, logs: list[RunLog]) -> None:
    """The phases, and the held-out score behind them, over the width and the number of held-out pairs."""
    place = {(run.notes["config"]["n_embd"], len(run.notes["held_out"])): run for run in logs}
    rows, columns = (sorted(set(axis)) for axis in zip(*place))
    phases, scores = np.full((2, len(rows), len(columns)), np.nan)
    for (n, k), run in place.items():
        at = rows.index(n), columns.index(k)
        phases[at], scores[at] = [*PHASES].index(phase(run)), 100 * accuracy(run, "heldout")[-1].mean()
    (left, right), colours = fig.subplots(1, 2, sharey=True), ListedColormap([*PHASES.values()])
    draw_cells(left, phases, lambda i: [*PHASES][int(i)], "phase", cmap=colours, vmax=3)
    draw_cells(right, scores, "{:.0f}".format, "right held-out answers (%)", cmap="cividis")
    for ax in (left, right):
        ax.set(xticks=range(len(columns)), xticklabels=columns, xlabel="pairs held out, of 45")
    left.set(yticks=range(len(rows)), yticklabels=rows, ylabel="n_embd")


def draw(kind: str, folder: Path, logs: list[RunLog]) -> None:
    """Write a study's figure and table beside its folder."""
    folder = folder if folder.name else folder / "study"
    if kind != "table":
        fig = Figure(figsize=(12, 7), layout="constrained")
        {"capacity": draw_capacity, "pairs": draw_pairs, "phase": draw_phase}[kind](fig, logs)
        save_figure(fig, Path(f"{folder}.png"))
    text = table(folder.name, rank(logs, [5, 7]) if kind == "pairs" else "", logs)
    replace_file(Path(f"{folder}.md"), lambda f: f.write(text.encode()))
    print(f"wrote {folder}.md{f' and {folder}.png' * (kind != 'table')}\n\n{text}")


def main(argv: list[str]) -> int:
    """Train and draw a study. Returns 0, or 128 + the signal that stopped it."""
    on_line, paths = config.parse(argv, KEYS, __doc__, positional="STUDY")
    if len(paths) != 1:
        raise UserError(f"{len(paths)} studies named; expected one, such as config/sweep_capacity.py")
    path = paths[0].removesuffix(".py") + "_wd.py" if on_line.get("wd") else paths[0]
    study, runs = read_study(path, on_line)
    read_logs(runs)
    if not study["plot"] and (code := train(runs[share(study["part"])], runs)):
        print(f"stopped; go on with:\npython sweep.py {shlex.join(argv)}", file=sys.stderr)
        return code
    read_logs(runs)
    missing = [run.folder.name for run in runs if not run.done]
    if missing:
        print(f"not done: {', '.join(missing)}")
    if study["draw"] != "nothing" and len(missing) < len(runs) and (study["plot"] or not missing):
        draw(study["draw"], Path(study["out_dir"]), [run.log for run in runs if run.done])
    return 0


if __name__ == "__main__":
    config.run(main)
