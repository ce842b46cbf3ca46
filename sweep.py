"""Train the runs that a study lists, then have it drawn:
  python sweep.py config/sweep_capacity.py --out_dir=capacity [--num_seeds=4] [--plot]
  torchrun --nproc_per_node=4 sweep.py config/sweep_capacity.py --out_dir=capacity

Into capacity/RUN, with the figure capacity.png and the text capacity.md; by default all that is in results/.
What is done is skipped, and what was interrupted goes on. Of several processes, under torchrun or started one
by one on machines that share the folder, each takes the next run that nobody trains; the last one draws.

A study is a file config/sweep_NAME.py: `runs`, other settings, and `def draw(fig, logs)`, which draws on a
matplotlib Figure what the runs' logs (data.log.RunLog) say; text that it returns ends the table. If it
yields, each time is a frame of a film, capacity.gif.
"""
import os
import shlex
import sys
from inspect import isgenerator
from pathlib import Path

import config  # before numpy and torch: from then on Ctrl-C is quiet
from config import MAY_CHANGE, Key, UserError

# isort: split
import data
import plot_results as plots
import train_with_eval
from data.files import Locked, replace_file
from data.log import RunLog
from data.stats import mean_and_range, share_of
from model import shape_of, step_flops
from plot_results import Figure, accuracy

KEYS = {name: key for name, key in config.KEYS.items() if name not in ("init_from", "overwrite")} | {
    **data.OPTIONS,  # which choose a variant of the dataset
    "runs": Key([], "a dict for each run, of the keys that it sets"),
    "base": Key("config/train_math_mini_14.py", "run config that the runs begin with", path=True),
    "name": Key("n_embd_14", "of a run, its folder in out_dir; by default what it sets"),
    "draw": Key(lambda fig, logs: None, "of the figure and the logs of the runs"),
    "table": Key(True, "write a table of the runs that are done"),
    "out_dir": Key("results/STUDY", "folder of the runs' folders; figure and table lie beside it",
                   path=True),
    "plot": Key(False, "only draw what is done")}
NOTES = """\
At the last iteration: scores in percent, mean (lowest to highest) over seeds; a share of seeds with Wilson's
95% interval; the way from the rule-follower's loss, 0, to the memoriser's, 100. Minutes of all processes that
trained the run, added up.
"""


def variant(name: str, options: dict, source: str) -> str:
    """The name of a dataset with other options. Raises UserError, naming the `source` that asks for them, if
    they will not do, or if that name could be read in another way."""
    prepared, old = data.origin(name)
    dataset = data.make(prepared, old | options, caller=source)
    if data.origin(dataset.name) != (prepared, old | options):
        raise UserError(f"{source}: {dataset.name} could have other options; prepare it under a --name of "
                        f"its own, python data/{prepared}/prepare.py, and set dataset to that")
    return dataset.name


def read_study(path: str, on_line: dict) -> tuple[dict, list[dict]]:
    """The settings of a study, by its file and the command line, and the effective config of each run.

    A run's name is what makes it differ, the number of seeds aside. Raises UserError for what is wrong.
    """
    study = {key: KEYS[key].default for key in ("runs", "base", "table", "plot")}
    study["out_dir"] = f"results/{Path(path).stem.removeprefix('sweep_')}"
    study |= config.read_file(path, KEYS) | on_line
    if not study["runs"] or any(type(changes) is not dict for changes in study["runs"]):
        raise UserError(f"study {path}: expected runs = [dict(n_embd=6), dict(n_embd=8)], for example")
    runs = []
    for i, changes in enumerate(study["runs"], start=1):
        source = f"study {path}, run {i}"
        changes = {key: config.check(key, value, KEYS[key], source) if key in KEYS else value
                   for key, value in changes.items()}
        settings = study | changes | on_line
        base = config.read_file(settings["base"])
        c = {key: (base | settings).get(key, default.default) for key, default in config.KEYS.items()}
        options = {k: value for k, value in settings.items() if k in data.OPTIONS or k not in KEYS}
        c["dataset"] = variant(c["dataset"], options, source) if options else c["dataset"]
        differs = [f"{key}_{value}" for key, value in changes.items() if key not in ("base", "num_seeds")]
        name = changes.get("name") or "_".join(differs) or base.get("out_dir", "run")
        c["out_dir"] = os.path.normpath(f"{settings['out_dir']}/{name}")  # of ../name: beside out_dir
        if c["out_dir"] in (other["out_dir"] for other in runs):
            raise UserError(f"{source} is {name} as one before it; give it a name of its own, name='...'")
        runs.append(c)
    return study, runs


def read_log(c: dict) -> RunLog | None:
    """The log of the run with config `c`, None if it has not begun. Raises UserError if it is damaged, or not
    of what the study asks."""
    if run := plots.find_log(Path(c["out_dir"])):
        seeds = run.info["seeds"]
        wanted = c | {"data_sha256": data.make(*data.origin(c["dataset"])).sha256}
        has = c | run.info["config"] | {"seed": min(seeds), "num_seeds": len(seeds),
                                         "data_sha256": run.info["data_sha256"]}
        for key in wanted.keys() - MAY_CHANGE:
            if wanted[key] != has[key] and "auto" not in (wanted[key], has[key]):
                raise UserError(f"{run.folder} has {key} = {has[key]}, the study asks for {wanted[key]}; ask "
                                "for that, remove the folder, or choose another --out_dir")
    return run


def last_iter(run: RunLog | None) -> int:
    """The last iteration in a log, -1 if there is none."""
    return int(run.iters[-1]) if run else -1


def time_left(runs: list[dict], logs: list[RunLog | None]) -> str:
    """How long `runs` take still, by what they took so far and the operations of an update."""
    def work(c: dict, iterations: int) -> int:
        return iterations * step_flops(shape_of(c, 32), c["num_seeds"], c["batch_size"])

    minutes = sum(run.columns["elapsed_s"][-1].max() for run in logs if last_iter(run) > 0) / 60
    spent = sum(work(c, max(0, last_iter(run))) for c, run in zip(runs, logs))
    if not spent:
        return "unknown until the first run is under way"
    return f"about {minutes * (sum(work(c, c['max_iters']) for c in runs) / spent - 1):,.1f} min"


def train(runs: list[dict]) -> int:
    """Say what there is to do, and train it run by run, but what another process trains; again, until nothing
    is left that nobody trains. Returns 0, or 128 + the signal that stopped it.

    Raises UserError, before it trains any, for a run that has done more iterations than the study asks for.
    """
    logs = [read_log(c) for c in runs]
    for c, run in zip(runs, logs):
        done, end = last_iter(run), c["max_iters"]
        if done > end:
            raise UserError(f"{run.folder} has done {done:,} iterations, the study asks for max_iters = "
                            f"{end:,}; ask for at least as many, or choose another --out_dir")
        state = "done" if done == end else f"begun, at {done:,}" if run else "to do"
        print(f"{c['out_dir']:40}{c['num_seeds']:5} seed(s)  {state}")
    print(f"{len(runs)} runs; time left: {time_left(runs, logs)}")
    trained = True
    while trained:
        trained = False
        for i, c in enumerate(runs):
            logs[i] = run = read_log(c)
            if last_iter(run) == c["max_iters"]:
                continue
            c = c | {"init_from": "auto"}
            print(f"\n{c['out_dir']}, {i + 1} of {len(runs)}; time left: {time_left(runs, logs)}", flush=True)
            try:
                code = train_with_eval.train(c, c)
            except Locked as e:
                print(f"left alone: {e}")
                continue
            if code:
                return code
            trained = True
    return 0


def table(name: str, logs: list[RunLog]) -> str:
    """A study's table in Markdown, a row for each run."""
    rows = [["run", "parameters", "seeds", "minutes", "seen", "held-out", "seeds with all held-out right",
             "loss", "rule-follower", "memoriser", "way"]]
    for run in logs:
        answers = ["-"] * 3
        if run.info["held_out"]:
            seen, unseen = (accuracy(run, name)[-1] for name in ("seen", "heldout"))
            answers = [mean_and_range(seen), mean_and_range(unseen),
                       share_of((unseen == 1).sum(), len(unseen))]
        rows.append([run.folder.name, f"{run.info['parameters']:,}", str(len(run.info["seeds"])),
                     plots.minutes(run), *answers, *plots.loss_cells(run)])
    taken = [f"{run.folder.name} is taken from {run.info['taken_from']}, which says what it took.\n"
             for run in logs if run.info.get("taken_from")]
    return plots.markdown_table(name, "".join([NOTES, *taken]), rows)


def draw(study: dict, logs: list[RunLog]) -> None:
    """Write a study's figure or film, and its table with what its `draw` says, beside its folder."""
    folder = study["out_dir"]
    texts = [table(Path(folder).name, logs)] if study["table"] else []
    if "draw" in study:
        fig = Figure(figsize=(8, 7), layout="constrained")
        with config.user_code(study["draw"].__code__.co_filename):
            drawn = study["draw"](fig, logs)  # text, nothing, or frames
            if film := isgenerator(drawn):
                plots.save_film(fig, drawn, Path(f"{folder}.gif"))
            else:
                plots.save_figure(fig, Path(f"{folder}.png"))
        print(f"wrote {folder}.{'gif' if film else 'png'}")
        texts += [drawn] if drawn and not film else []
    if text := "\n".join(texts):
        replace_file(Path(f"{folder}.md"), text.encode())
        print(f"wrote {folder}.md\n\n{text}")


def main(argv: list[str]) -> int:
    """Train and draw a study. Returns 0, or 128 + the signal that stopped it."""
    keys = {name: key for name, key in KEYS.items() if name not in ("runs", "name", "draw")}
    on_line, paths = config.parse(argv, keys, __doc__, positional="STUDY")
    if len(paths) != 1:
        raise UserError(f"{len(paths)} studies named; expected one, such as config/sweep_capacity.py")
    study, runs = read_study(paths[0], on_line)
    os.environ.pop("TORCHELASTIC_RUN_ID", None)  # under torchrun too each run is an ordinary one
    if not study["plot"] and (code := train(runs)):
        print(f"stopped; go on with:\npython sweep.py {shlex.join(argv)}", file=sys.stderr)
        return code
    logs = [run for c in runs if last_iter(run := read_log(c)) >= c["max_iters"]]
    if study["plot"] and not logs:
        raise UserError(f"no run in {study['out_dir']} is done; train them first: python sweep.py "
                        f"{paths[0]}")
    if len(logs) < len(runs):
        print(f"{len(runs) - len(logs)} of {len(runs)} runs are not done" +
              "; who trains the last of them draws" * (not study["plot"]))
    if study["plot"] or len(logs) == len(runs):
        draw(study, logs)
    return 0


if __name__ == "__main__":
    config.run(main)
