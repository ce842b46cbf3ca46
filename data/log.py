"""What a run writes down, and the reading of it: config.json ("info") and results.csv. No torch.

results.csv has a row for each evaluation and seed. What a dataset has no prompts for is empty there, never 0.
"""
import json
import os
import re
from collections import ChainMap
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
from config import Key, UserError
from data import OPTIONS, pairs_of
from data.files import replace_file, table, writing

COUNT, TOTAL, ACCURACY = Key(0, "", lo=0, hi=10**9), Key(0, "", lo=1, hi=10**9), Key(0.0, "", lo=0, hi=1)
LOSS = Key(0.0, "", lo=-1e-3, hi=1e39)  # down to float32's rounding of 0, up to its largest number
CELLS = {  # the columns of results.csv, and what a cell may hold
    "iter": config.KEYS["max_iters"], "seed": config.KEYS["seed"], "train_loss": LOSS, "val_loss": LOSS,
    "add_correct": COUNT, "add_total": TOTAL, "sub_correct": COUNT, "sub_total": TOTAL, "math_acc": ACCURACY,
    "heldout_correct": COUNT, "heldout_total": COUNT, "facts_correct": COUNT, "facts_total": TOTAL,
    "facts_acc": ACCURACY, "combined_acc": ACCURACY, "elapsed_s": Key(0.0, "", lo=0, hi=1e12)}
COLUMNS = tuple(CELLS)
INFO = {"seeds": Key([], ""), "tasks": Key([], ""), "parameters": Key(1, "", lo=1), "device": Key("cpu", ""),
         "data_sha256": Key("8d87", ""), "loss_floor": LOSS, "rule_loss": LOSS}  # of config.json
OWN = (*config.MAY_CHANGE, "seed", "num_seeds", "dtype")  # settings in which a run's ranks may differ
SCORES = {"math": ("add", "sub"), "facts": ("facts",)}  # of each task, all that is asked


@dataclass(frozen=True)
class RunLog:
    """What a run's folder says: `info` is config.json; of results.csv, `iters` (N,) and `columns`
    {name: (N, S)}, the seeds in the order of `info["seeds"]`, NaN where the log is empty."""
    folder: Path
    info: dict
    iters: np.ndarray
    columns: dict[str, np.ndarray]


class NoEvaluation(UserError):
    """A run that has only begun: a part of it is not there, or its log has no evaluation of all seeds yet."""


def start(folder: Path, info: dict, rows: list[dict]) -> None:
    """Write config.json, and results.csv with the rows that it begins with, each at once or not at all."""
    replace_file(folder / "config.json", (json.dumps(info, indent=1, allow_nan=False) + "\n").encode())
    replace_file(folder / "results.csv", table([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]))


def append(folder: Path, rows: list[dict]) -> None:
    """Add rows to results.csv; they are on the disk when this returns."""
    path = folder / "results.csv"
    with writing(path), open(path, "ab") as f:
        f.write(table([row[name] for name in COLUMNS] for row in rows))
        f.flush()
        os.fsync(f.fileno())


@contextmanager
def reading(source: Path | str):
    """Around the reading of a run's file: whatever is wrong becomes a UserError that names `source`."""
    try:
        yield
    except OSError as e:
        kind = NoEvaluation if isinstance(e, FileNotFoundError) else UserError
        raise kind(f"{source}: {e.strerror}; expected the config.json and results.csv that "
                   "train_with_eval.py leaves in its out_dir") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as e:
        why = f"it lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"{source}: damaged, {why}; restore the file or train the run again") from None


def read_info(path: Path) -> dict:
    """config.json; raises UserError if it is damaged."""
    with reading(path):
        info = json.loads(path.read_text(encoding="utf-8"))
        seeds, tasks = info["seeds"], info["tasks"]
        config.check("max_iters", info["config"]["max_iters"], CELLS["iter"], path)
        for name, key in INFO.items():
            if key is not LOSS or info[name] is not None:
                config.check(name, info[name], key, path)
        if ({*map(type, seeds)} != {int} or len({*seeds}) < len(seeds)
                or len({*tasks} & {*SCORES}) < len(tasks)):
            raise ValueError("its seeds or tasks are not such as train_with_eval.py writes")
        info["numbers"] = config.check("numbers", info.get("numbers", 10), OPTIONS["numbers"], path)
        pairs_of(info["held_out"], f"{path}: held_out", info["numbers"])
    return info


def read_rows(path: Path, seeds: list[int], tasks: list[str]) -> list[dict]:
    """The rows of results.csv as {column: value}, "" where empty, without half a line at the end, which a
    killed run leaves. Raises UserError, with the line's number, for a damaged line."""
    with reading(path):
        header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        if header != ",".join(COLUMNS):
            raise ValueError(f"its first line is not the header {','.join(COLUMNS)}")
    asked = {"iter", "seed", "train", "val", "elapsed", *tasks, *["combined"] * bool(tasks)}
    asked |= {kind for task in tasks for kind in SCORES[task]}  # columns whose names begin so are never empty
    others = [name for name in CELLS if name.split("_")[0] not in asked]  # empty, but of arithmetic heldout_*
    others = [name for name in others if "math" not in tasks or "heldout" not in name]
    rows = {}
    for number, line in enumerate(lines, start=2):
        values, source = line.split(","), f"{path}, line {number}"
        with reading(source):
            if len(values) != len(COLUMNS):
                raise ValueError(f"{len(values)} values, expected {len(COLUMNS)}")
            row = {name: "" if not text and name.split("_")[0] not in asked else
                   config.check(name, config.from_text(text, key), key, source)
                   for (name, key), text in zip(CELLS.items(), values)}
            if any(row[name] != "" for name in others):
                raise ValueError("it has scores that the run's data do not ask for: it is of another run")
            if row["seed"] not in seeds:
                raise ValueError(f"seed {row['seed']} is none of config.json's, so that is of another run")
            if rows.setdefault((row["iter"], row["seed"]), row) is not row:
                raise ValueError(f"iteration {row['iter']} of seed {row['seed']} for the second time")
            for kind in ("add", "sub", "heldout", "facts"):
                correct, total = row[f"{kind}_correct"], row[f"{kind}_total"]
                if (correct == "") != (total == "") or correct > total:
                    raise ValueError(f"{kind}_correct = {correct} of {kind}_total = {total}")
    return list(rows.values())


def rank_folders(folder: Path) -> list[Path]:
    """The folders that a run lies in: its own, or the rank_0/, rank_1/, ... in it of a run under torchrun,
    without those of ranks that have not begun."""
    ranks = [path for path in folder.glob("rank_*") if re.fullmatch("rank_[0-9]+", path.name)
             and any(file.name != "lock" for file in path.iterdir())]
    return sorted(ranks, key=lambda path: int(path.name[5:])) or [folder]


def seeds_together(folder: Path, about: list[dict]) -> list[int]:
    """The seeds of all folders of a run, by the config.json or the checkpoint of each.

    Raises NoEvaluation if the folder of a rank is not there, UserError if they are of different runs.
    """
    there = rank_folders(folder)
    with reading(folder):
        ranks = max(config.check("ranks", part.get("ranks", 1), config.KEYS["num_seeds"], "config.json")
                    for part in about)
        missing = {f"rank_{i}" for i in range(ranks)} - {path.name for path in there}
        if missing and ranks > 1 and there != [folder]:
            raise NoEvaluation(f"{folder}: of its {ranks} rank folders {', '.join(sorted(missing))} is not "
                               "there; wait until it has begun, or put it back")
        seeds = [seed for part in about for seed in part["seeds"]]
        same = [[part.get(k) for k in ("vocab", "model_args", "tasks", "held_out", "data_sha256")] +
                [part["config"].get(k) for k in config.KEYS if k not in OWN]
                for part in about if len(about) > 1]
    if len(set(seeds)) < len(seeds) or same != same[:1] * len(same):
        raise UserError(f"{folder}: its rank folders are of different runs; remove those that do not belong")
    return seeds


def read_part(folder: Path) -> tuple[dict, set[int], dict]:
    """Of one of a run's folders: config.json, the complete evaluations, the rows by (iteration, seed)."""
    info, path = read_info(folder / "config.json"), folder / "results.csv"
    row_of = {(row["iter"], row["seed"]): row for row in read_rows(path, info["seeds"], info["tasks"])}
    iters = {it for it, _ in row_of}
    lacking = [(it, seed) for it in sorted(iters) for seed in info["seeds"] if (it, seed) not in row_of]
    if lacking and lacking[0][0] < max(iters):
        raise UserError("{}: damaged, iteration {} lacks seed {}; train again".format(path, *lacking[0]))
    return info, iters - {it for it, _ in lacking}, row_of  # the last one may be half written


def read_run(folder: Path) -> RunLog:
    """The log of the run in `folder`, its parts taken together: the evaluations that all seeds have.

    Raises UserError for what is missing or damaged, NoEvaluation if there is no evaluation yet.
    """
    info, complete, row_of = zip(*map(read_part, rank_folders(folder)))
    seeds, iters = seeds_together(folder, info), sorted(set.intersection(*complete))
    if not iters:
        raise NoEvaluation(f"{folder}: no complete evaluation; expected a line in results.csv for each of "
                           f"{len(seeds)} seeds; wait, or train the run further")
    rows = [ChainMap(*row_of)[it, seed] for it in iters for seed in seeds]
    columns = {name: np.array([np.nan if row[name] == "" else row[name] for row in rows], dtype=float)
               .reshape(-1, len(seeds)) for name in COLUMNS}
    return RunLog(folder, info[0] | {"seeds": seeds}, np.array(iters), columns)


def start_wandb(c: dict) -> None:
    """Begin a run of wandb, if the config says so. Raises UserError if wandb is not installed or will not."""
    if not c["wandb_log"]:
        return
    try:
        from wandb import Error, init  # which a folder wandb, of its logs, has not
    except ImportError:
        raise UserError("wandb_log = True needs a package: pip install wandb, or leave it out") from None
    try:
        name = Path(c["out_dir"]).name if c["wandb_run_name"] == "out_dir" else c["wandb_run_name"]
        init(project=c["wandb_project"], name=name, config=c)
    except Error as e:
        raise UserError(f"wandb_log = True: {e}; or leave it out") from None


def to_wandb(c: dict, rows: list[dict]) -> None:
    """With `wandb_log`, send an evaluation: the mean over seeds of each column; of few seeds, each one's."""
    if c["wandb_log"]:
        import wandb
        names = [k for k in COLUMNS[2:] if rows[0][k] != ""]
        values = {k: sum(row[k] for row in rows) / len(rows) for k in names}
        if 1 < len(rows) <= 10:
            values |= {f"seed_{row['seed']}/{k}": row[k] for row in rows for k in names}
        wandb.log(values, step=rows[0]["iter"])


def finish_wandb(c: dict) -> None:
    """End the run that `start_wandb` began, so that the next one of this process is a run of its own."""
    if c["wandb_log"]:
        import wandb
        wandb.finish()
