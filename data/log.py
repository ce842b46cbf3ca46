"""What a run writes down, and the reading of it: config.json ("info") and results.csv. No torch.

results.csv has a row for each evaluation and seed. What a dataset has no prompts for is empty there, never 0.
"""
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
from config import Key, UserError
from data import pairs_of
from data.files import replace_file, table, writing

COUNT, SHARE = Key(0, "", lo=0, hi=10**9), Key(0.0, "", lo=0, hi=1)
LOSS = Key(0.0, "", lo=-1e-3, hi=1e39)  # down to float32's rounding of 0, up to its largest number
CELLS = {  # the columns of results.csv, and what a cell may hold
    "iter": config.KEYS["max_iters"], "seed": config.KEYS["seed"], "train_loss": LOSS, "val_loss": LOSS,
    "add_correct": COUNT, "add_total": COUNT, "sub_correct": COUNT, "sub_total": COUNT, "math_acc": SHARE,
    "heldout_correct": COUNT, "heldout_total": COUNT, "facts_correct": COUNT, "facts_total": COUNT,
    "facts_acc": SHARE, "combined_acc": SHARE, "elapsed_s": Key(0.0, "", lo=0, hi=1e12)}
COLUMNS = tuple(CELLS)
NEVER_EMPTY = ("iter", "seed", "train_loss", "val_loss", "elapsed_s")
EVERY_RANK_ITS_OWN = (*config.MAY_CHANGE, "seed", "num_seeds", "dtype")  # settings that may differ
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
        info = {"numbers": 10, "ranks": 1} | json.loads(path.read_text(encoding="utf-8"))
        seeds, tasks = info["seeds"], info["tasks"]
        if {*map(type, seeds)} != {int} or len({*seeds}) < len(seeds) or not {*tasks} <= {*SCORES}:
            raise ValueError("its seeds or tasks are not such as train_with_eval.py writes")
        if lacking := {"parameters", "device", "data_sha256", "loss_floor", "rule_loss"} - info.keys():
            raise KeyError(min(lacking))
        config.check("max_iters", info["config"]["max_iters"], CELLS["iter"], path)
        pairs_of(info["held_out"], f"{path}: held_out", info["numbers"])
        return info


def read_rows(path: Path) -> list[dict]:
    """The rows of results.csv as {column: value}, "" where empty, without half a line at the end, which a
    killed run leaves. Raises UserError, with the line's number, for a damaged line."""
    with reading(path):
        header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        if header != ",".join(COLUMNS):
            raise ValueError(f"its first line is not the header {','.join(COLUMNS)}")
    rows = []
    for number, line in enumerate(lines, start=2):
        with reading(source := f"{path}, line {number}"):
            texts = line.split(",")
            if len(texts) != len(COLUMNS):
                raise ValueError(f"{len(texts)} values, expected {len(COLUMNS)}")
            rows.append({name: config.check(name, config.from_text(text, key), key, source)
                         if text or name in NEVER_EMPTY else ""
                         for (name, key), text in zip(CELLS.items(), texts)})
    return rows


def rank_folders(folder: Path) -> list[Path]:
    """The folders that a run lies in: its own, or the rank_0/, rank_1/, ... in it of a run under torchrun,
    without those of ranks that have not begun."""
    ranks = [path for path in folder.glob("rank_*") if re.fullmatch("rank_[0-9]+", path.name)
             and any(file.name != "lock" for file in path.iterdir())]
    return sorted(ranks, key=lambda path: int(path.name[5:])) or [folder]


def seeds_together(folder: Path, infos: list[dict]) -> list[int]:
    """The seeds of all folders of a run, by the config.json or the checkpoint of each.

    Raises NoEvaluation if the folder of a rank is not there, UserError if they are of different runs.
    """
    there, ranks = rank_folders(folder), infos[0].get("ranks", 1)
    missing = {f"rank_{i}" for i in range(ranks)} - {path.name for path in there}
    if missing and ranks > 1 and there != [folder]:
        raise NoEvaluation(f"{folder}: of its {ranks} rank folders {min(missing)} is not there; wait until "
                           "it has begun, or put it back")
    seeds = [seed for info in infos for seed in info["seeds"]]
    same = [[info.get(k) for k in ("vocab", "model_args", "tasks", "held_out", "data_sha256")] +
            [info["config"].get(k) for k in config.KEYS if k not in EVERY_RANK_ITS_OWN]
            for info in infos if len(infos) > 1]
    if len(set(seeds)) < len(seeds) or same != same[:1] * len(same):
        raise UserError(f"{folder}: its rank folders are of different runs; remove those that do not belong")
    return seeds


def read_run(folder: Path) -> RunLog:
    """The log of the run in `folder`, its ranks taken together: the evaluations that all seeds have.

    Raises UserError for what is missing or damaged, NoEvaluation if there is no evaluation yet.
    """
    infos = [read_info(rank / "config.json") for rank in rank_folders(folder)]
    seeds = seeds_together(folder, infos)
    rows = [row for rank in rank_folders(folder) for row in read_rows(rank / "results.csv")]
    row_of = {(row["iter"], row["seed"]): row for row in rows}
    begun = sorted({it for it, _ in row_of})
    iters = [it for it in begun if all((it, seed) in row_of for seed in seeds)]
    if not iters:
        raise NoEvaluation(f"{folder}: no complete evaluation; expected a line in results.csv for each of "
                           f"{len(seeds)} seeds; wait, or train the run further")
    columns = {name: np.array([[np.nan if row_of[it, seed][name] == "" else row_of[it, seed][name]
                                for seed in seeds] for it in iters], dtype=float) for name in COLUMNS}
    scores = [f"{kind}_correct" for task in infos[0]["tasks"] for kind in SCORES[task]]
    if (len(row_of) < len(rows) or any(np.isnan(columns[name]).any() for name in scores)
            or len(infos) == 1 and begun[:len(iters)] != iters):
        raise UserError(f"{folder}: results.csv is damaged or of another run: an evaluation stands twice, or "
                        "lacks a seed or its scores; restore the file or train the run again")
    return RunLog(folder, infos[0] | {"seeds": seeds}, np.array(iters), columns)


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
