"""Train the runs that a study lists, then draw them:
  python sweep.py config/sweep_capacity.py --out_dir=capacity [--num_seeds=4] [--plot]
  torchrun --nproc_per_node=4 sweep.py config/sweep_capacity.py --out_dir=capacity

Into capacity/RUN, with the figure capacity.png and the table capacity.md; by default all that is in results/.
What is done is skipped, and what was interrupted goes on.
"""
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import config  # before numpy and torch: from then on Ctrl-C is quiet
from config import MAY_CHANGE, Key, UserError

# isort: split
import numpy as np

import data
import eval_as_math
import train_with_eval
from data.files import replace_file
from data.log import RunLog
from plot_all_models import loss_cells, mean_and_range, percent, share_of
from plot_results import REFERENCES, Axes, Figure, accuracy, find_log, markdown_table, save_figure, wilson
from sample import open_model

from matplotlib.colors import ListedColormap  # isort: skip  after plot_results, which minds the backend

KEYS = {name: key for name, key in config.KEYS.items() if name not in ("init_from", "overwrite")} | {
    "runs": Key([], "a dict for each run, of the keys that it sets"),
    "base": Key("config/train_math_mini_14.py", "run config that the runs begin with", path=True),
    "held_out": Key("5-7", "pairs held out, such as 3-8,2-6: trains on that variant of the dataset"),
    "name": Key("n_embd_14", "of a run; by default what it sets"),
    "draw": Key("table", "what to draw", choices=("capacity", "pairs", "phase", "table", "nothing")),
    "out_dir": Key("results/STUDY", "folder of the runs' folders; figure and table lie beside it",
                   path=True),
    "plot": Key(False, "only draw what is done"),
    "part": Key("1/1", "2/4: every fourth run from the second on"),
    "wd": Key(False, "the regularised runs: the study in the file that ends in _wd.py")}
PHASES = {"confusion": "#BBBBBB", "memorisation": "#E69F00", "comprehension": "#56B4E9",
          "grokking": "#009E73"}
NOTES = """\
At the last iteration: scores in percent, mean (lowest to highest) over seeds; a share of seeds with Wilson's
95% interval; the way from the rule-follower's loss, 0, to the memoriser's, 100.
"""
PHASE_NOTES = """\
Phases (Liu et al. 2022) by the mean scores, right from 95% on. Confusion: not even the seen equations are;
memorisation: they alone; comprehension: the held-out ones too; grokking: these after more than twice as many
iterations.
"""


def read_study(path: str, on_line: dict) -> tuple[dict, list[dict]]:
    """The settings of a study, by its file and the command line, and the effective config of each run.

    A run's name is what makes it differ, the number of seeds aside. Raises UserError for what is wrong.
    """
    study = {key: KEYS[key].default for key in ("runs", "base", "draw", "plot", "part")}
    study["out_dir"] = f"results/{Path(path).stem.removeprefix('sweep_')}"
    study |= config.read_file(path, KEYS) | on_line
    if not study["runs"] or any(type(own) is not dict for own in study["runs"]):
        raise UserError(f"study {path}: expected runs = [dict(n_embd=6), dict(n_embd=8)], for example")
    runs = []
    for i, own in enumerate(study["runs"], start=1):
        source = f"study {path}, run {i}"
        for key, value in own.items():
            if key not in KEYS:
                raise UserError(f"{source}: unknown key {key}{config.nearest(key, KEYS)}")
            own[key] = config.check(key, value, KEYS[key], source)
        given = study | own | on_line
        base = config.read_file(given["base"])
        c = {key: (base | given).get(key, default.default) for key, default in config.KEYS.items()}
        if "held_out" in given:
            pairs = data.pairs_of(given["held_out"], f"{source}: held_out")
            c["dataset"] = f"{c['dataset']}_{data.spell(pairs, '_')}"
        differs = [f"{key}_{value}" for key, value in own.items() if key not in ("base", "num_seeds")]
        name = own.get("name") or "_".join(differs) or base.get("out_dir", "run")
        c["out_dir"] = f"{given['out_dir']}/{name}"
        if c["out_dir"] in (other["out_dir"] for other in runs):
            raise UserError(f"{source} is {name} as one before it; give it a name of its own, name='...'")
        runs.append(c)
    return study, runs


def read_log(c: dict) -> RunLog | None:
    """The log of the run with config `c`, None if it has not begun. Raises UserError if it is damaged, or not
    of what the study asks."""
    if run := find_log(Path(c["out_dir"])):
        seeds = run.notes["seeds"]
        asked = c | {"data_sha256": data.make(c["dataset"], *data.origin(c["dataset"]))[0].sha256}
        has = c | run.notes["config"] | {"seed": min(seeds), "num_seeds": len(seeds),
                                         "data_sha256": run.notes["data_sha256"]}
        for key in asked.keys() - MAY_CHANGE:
            if asked[key] != has[key] and "auto" not in (asked[key], has[key]):
                raise UserError(f"{run.folder} has {key} = {has[key]}, the study asks for {asked[key]}; ask "
                                "for that, remove the folder, or choose another --out_dir")
    return run


def at(run: RunLog | None) -> int:
    """The last iteration in a log, -1 if there is none."""
    return int(run.iters[-1]) if run else -1


def time_left(runs: list[dict], logs: list[RunLog | None]) -> str:
    """How long `runs` take still, by what they took so far. An update's time grows as the products with
    weights and, on a CPU, 3 block_size more per unit of the width for attention, LayerNorm and GELU."""
    def work(c: dict, iterations: int) -> int:
        n, windows = c["n_embd"], iterations * c["num_seeds"] * c["batch_size"]
        return windows * c["block_size"] * c["n_layer"] * n * (n + 3 * c["block_size"])

    minutes = sum(run.columns["elapsed_s"][-1].max() for run in logs if at(run) > 0) / 60
    spent = sum(work(c, max(0, at(run))) for c, run in zip(runs, logs))
    if not spent:
        return "unknown until the first run is under way"
    return f"about {minutes * (sum(work(c, c['max_iters']) for c in runs) / spent - 1):,.1f} min"


def train(runs: list[dict]) -> int:
    """Say what there is to do, and train it run by run. Returns 0, or 128 + the signal that stopped it."""
    logs = [read_log(c) for c in runs]
    for c, run in zip(runs, logs):
        state = "done" if at(run) == c["max_iters"] else f"interrupted at {at(run):,}" if run else "to do"
        print(f"{c['out_dir']:40}{c['num_seeds']:5} seed(s)  {state}")
    print(f"{len(runs)} runs; time left: {time_left(runs, logs)}")
    for i, (c, run) in enumerate(zip(runs, logs)):
        if at(run) == c["max_iters"]:
            continue
        print(f"\n{c['out_dir']}, {i + 1} of {len(runs)}; time left: {time_left(runs, logs)}", flush=True)
        begun = (Path(c["out_dir"]) / "ckpt.pt").exists()
        # without an evaluation it was killed as it began
        c = c | ({"init_from": "resume"} if begun else {"overwrite": run is None})
        if code := train_with_eval.train(c, c):
            return code
        logs[i] = read_log(c)
    return 0


def share(part: str) -> slice:
    """Of a study's runs, this process's: by --part or, under torchrun, by its rank, which trains
    ordinary runs. Raises UserError for a part that is none."""
    if os.environ.pop("TORCHELASTIC_RUN_ID", None):
        if part != KEYS["part"].default:
            raise UserError(f"--part={part} under torchrun will not do: there each process has its own part")
        part = f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"--part={part} will not do; expected one of 1/4, 2/4, 3/4 and 4/4, for example")
    return slice(int(number) - 1, None, int(of))


def phase(run: RunLog) -> str:
    """A run's phase, as in Liu et al. 2022 (arXiv 2205.10343): see PHASE_NOTES."""
    seen, unseen = (accuracy(run, name).mean(1) >= 0.95 for name in ("seen", "heldout"))  # (N,)
    if not (seen[-1] and unseen[-1]):
        return "memorisation" if seen[-1] else "confusion"
    return "grokking" if run.iters[unseen.argmax()] > 2 * run.iters[seen.argmax()] else "comprehension"


def rank(logs: list[RunLog], pair: list[int]) -> str:
    """Where a held-out pair stands among the others by its mean score over seeds, if it is there: equal ones
    share the mean of their ranks, and seeds drawn again and again with replacement give the interval."""
    pairs, scores = [run.notes["held_out"] for run in logs], [accuracy(run, "heldout")[-1] for run in logs]
    if [pair] not in pairs:
        return ""
    i, gen = pairs.index([pair]), data.rng(0, "bootstrap")
    means = np.stack([np.append(s.mean(), gen.choice(s, (10_000, len(s))).mean(1)) for s in scores])
    ranks = (means > means[i]).sum(0) + ((means == means[i]).sum(0) + 1) / 2
    low, high = np.quantile(ranks[1:], [0.025, 0.975])
    return (f"\n{pair[0]}-{pair[1]} has rank {ranks[0]:g} of {len(logs)} (95% bootstrap interval over seeds "
            f"{low:g} to {high:g}) by its mean held-out score, {percent(scores[i].mean())}%.\n")


def draw_capacity(fig: Figure, logs: list[RunLog]) -> None:
    """Held-out answers, and loss between rule-follower and memoriser, over the number of parameters."""
    logs = sorted(logs, key=lambda run: run.notes["parameters"])
    x, unseen = [run.notes["parameters"] for run in logs], [accuracy(run, "heldout")[-1] for run in logs]
    right, loss = np.array([(s == 1).mean() for s in unseen]), [run.columns["train_loss"][-1] for run in logs]
    ends = np.transpose([wilson(int((s == 1).sum()), len(s)) for s in unseen])  # (2, runs)
    top, bottom = fig.subplots(2, sharex=True)
    top.errorbar(x, 100 * right, 100 * abs(ends - right), color="#771166", marker="o", capsize=3,
                 label="seeds with all held-out answers right, Wilson 95%")
    mean, spread, n = np.array([(s.mean(), s.std(), max(1, len(s) - 1)) for s in unseen]).T
    student = 1.96 + 2.372 / n + 2.823 / n ** 2  # its 97.5% quantile, for n > 2 to 4%
    mean, error = 100 * mean, 100 * student * spread / n ** 0.5
    top.plot(x, mean, "s--", color="#0072B2", label="held-out answers right, and the mean's 95%")
    top.fill_between(x, (mean - error).clip(0), (mean + error).clip(max=100), color="#0072B2", alpha=0.15)
    top.set(ylim=(-5, 105), ylabel="%")
    top.plot(x, [100 * accuracy(run, "seen")[-1].mean() for run in logs], "^:", color="#009E73",
             label="seen answers right")
    bottom.plot(np.repeat(x, [*map(len, loss)]), np.concatenate(loss), ".", color="#999999", label="one seed")
    bottom.plot(x, [s.mean() for s in loss], "o-", color="#D55E00", label="mean over seeds")
    for name, (label, dashes) in REFERENCES.items():
        bottom.axhline(logs[0].notes[name], color="black", linestyle=dashes, linewidth=0.8, label=label)
    bottom.set(xscale="log", xlabel="parameters (n_embd)", ylabel="loss (nats)")
    bottom.set_xticks(x, [f"{n:,} ({run.notes['config']['n_embd']})" for n, run in zip(x, logs)], rotation=90)
    bottom.minorticks_off()
    for ax in (top, bottom):
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.legend()


def draw_cells(ax: Axes, values: np.ndarray, text: Callable, title: str, **colours) -> None:
    """Values (rows, columns) as coloured cells, none for NaN, each with its `text(i, j)`, dark on light."""
    edges, colours = [np.arange(n + 1) - 0.5 for n in values.shape], {"vmin": 0, "vmax": 100} | colours
    mesh = ax.pcolormesh(*edges[::-1], values, edgecolors="white", linewidth=2, **colours)
    for i, j in zip(*np.isfinite(values).nonzero()):
        light = np.dot(mesh.to_rgba(values[i, j])[:3], (0.3, 0.59, 0.11)) > 0.45
        ax.text(j, i, text(i, j), color="black" if light else "white", ha="center", va="center")
    ax.set_title(title)


def pair_scores(run: RunLog) -> tuple[float, float]:
    """Right held-out additions and subtractions (%), which the log has but together: ckpt.pt is asked as it
    was in the last evaluation. Raises UserError if there is none."""
    model, sampling = open_model(str(run.folder)), ("num_samples", "temperature", "top_k")
    texts = eval_as_math.ask(model, model.vocab, model.seeds, model.iters,
                             **{key: run.notes["config"][key] for key in sampling})
    correct = eval_as_math.is_correct(texts)  # (S, 200, num_samples)
    held_out, is_add = eval_as_math.held_out_mask(model.held_out), eval_as_math.IS_ADD
    return 100 * correct[:, held_out & is_add].mean(), 100 * correct[:, held_out & ~is_add].mean()


def draw_pairs(fig: Figure, logs: list[RunLog]) -> None:
    """The held-out score of each pair, one a run: of addition above the diagonal, of subtraction below."""
    scores, ax = np.full((10, 10), np.nan), fig.subplots()
    for run in logs:
        (a, b), *others = run.notes["held_out"]
        if others or a == b:
            raise UserError(f'{run.folder}: draw = "pairs" is for runs with one pair held out, of two digits')
        scores[a, b], scores[b, a] = pair_scores(run)
    fig.set_size_inches(7, 7)
    draw_cells(ax, scores, lambda *at: f"{scores[at]:.0f}", "right answers to the pair held out (%)",
               cmap="cividis")
    ax.set(xticks=range(10), yticks=range(10), xlabel="above the diagonal: addition, a+b and b+a",
           ylabel="below the diagonal: subtraction, a-b and b-a")
    ax.invert_yaxis()


def draw_phase(fig: Figure, logs: list[RunLog]) -> None:
    """The phases, and the held-out score behind them, over the width and the number of held-out pairs."""
    place = {(run.notes["config"]["n_embd"], len(run.notes["held_out"])): run for run in logs}
    rows, columns = (sorted(set(axis)) for axis in zip(*place))
    phases, seen, unseen = np.full((3, len(rows), len(columns)), np.nan)
    for (n, k), run in place.items():
        at = rows.index(n), columns.index(k)
        phases[at] = [*PHASES].index(phase(run))
        seen[at], unseen[at] = (100 * accuracy(run, name)[-1].mean() for name in ("seen", "heldout"))
    (left, right), colours = fig.subplots(1, 2, sharey=True), ListedColormap([*PHASES.values()])
    draw_cells(left, phases, lambda *at: f"{[*PHASES][int(phases[at])]}\n{seen[at]:.0f}",
               "phase, and right answers to what was seen (%)", cmap=colours, vmax=3)
    draw_cells(right, unseen, lambda *at: f"{unseen[at]:.0f}", "right held-out answers (%)", cmap="cividis")
    for ax in (left, right):
        ax.set(xticks=range(len(columns)), xticklabels=columns, xlabel="pairs held out, of 45")
    left.set(yticks=range(len(rows)), yticklabels=rows, ylabel="n_embd")


def draw(kind: str, folder: Path, logs: list[RunLog]) -> None:
    """Write a study's figure, and its table with a row for each run, beside its folder."""
    if kind != "table":
        if lacking := [run.folder for run in logs if not run.notes["held_out"]]:
            raise UserError(f'{lacking[0]} holds out no pair, which draw = "{kind}" is about; choose "table"')
        fig = Figure(figsize=(12, 7), layout="constrained")
        {"capacity": draw_capacity, "pairs": draw_pairs, "phase": draw_phase}[kind](fig, logs)
        save_figure(fig, Path(f"{folder}.png"))
    phases = ["phase"] * (kind in ("phase", "table"))
    rows = [["run", "parameters", "seeds", "minutes", "seen", "held-out", "seeds with all held-out right",
             *phases, "loss", "rule-follower", "memoriser", "way"]]
    for run in logs:
        unseen, minutes = accuracy(run, "heldout")[-1], run.columns["elapsed_s"][-1].max() / 60
        answers = [mean_and_range(x) for x in (accuracy(run, "seen")[-1], unseen)]
        answers += [share_of((unseen == 1).sum(), len(unseen)), *(phase(run) for _ in phases)]
        rows.append([run.folder.name, f"{run.notes['parameters']:,}", str(len(unseen)), f"{minutes:.1f}",
                     *(answers if run.notes["held_out"] else "-" * (3 + len(phases))), *loss_cells(run, "")])
    notes = NOTES + "".join(PHASE_NOTES for _ in phases) + (rank(logs, [5, 7]) if kind == "pairs" else "")
    text = markdown_table(folder.name, notes, rows)
    replace_file(Path(f"{folder}.md"), text.encode())
    print(f"wrote {folder}.md{f' and {folder}.png' * (kind != 'table')}\n\n{text}")


def main(argv: list[str]) -> int:
    """Train and draw a study. Returns 0, or 128 + the signal that stopped it."""
    keys = {name: key for name, key in KEYS.items() if name not in ("runs", "name")}
    on_line, paths = config.parse(argv, keys, __doc__, positional="STUDY")
    if len(paths) != 1:
        raise UserError(f"{len(paths)} studies named; expected one, such as config/sweep_capacity.py")
    path = paths[0].removesuffix(".py") + "_wd.py" if on_line.get("wd") else paths[0]
    study, runs = read_study(path, on_line)
    if not study["plot"] and (code := train(runs[share(study["part"])])):
        print(f"stopped; go on with:\npython sweep.py {shlex.join(argv)}", file=sys.stderr)
        return code
    logs = [run for c in runs if at(run := read_log(c)) == c["max_iters"]]
    if len(logs) < len(runs):
        print(f"{len(runs) - len(logs)} of {len(runs)} runs are not done")
    if study["draw"] != "nothing" and logs and (study["plot"] or len(logs) == len(runs)):
        draw(study["draw"], Path(study["out_dir"]), logs)
    return 0


if __name__ == "__main__":
    config.run(main)
