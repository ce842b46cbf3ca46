"""What a run writes down, and the reading of it: config.json ("notes") and results.csv. No torch.

results.csv has a row for each evaluation and seed. What a dataset has no prompts for is empty there, never 0.
"""
import csv
import io
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

import config
from config import Key, UserError
from data.files import replace_file, writing

COUNT, TOTAL, ACCURACY = Key(0, "", lo=0, hi=10**9), Key(0, "", lo=1, hi=10**9), Key(0.0, "", lo=0, hi=1)
LOSS = Key(0.0, "", lo=-1e-3, hi=1e39)  # down to float32's rounding of 0, up to its largest number
CELLS = {  # the columns of results.csv, and what a cell may hold
    "iter": config.KEYS["max_iters"], "seed": config.KEYS["seed"], "train_loss": LOSS, "val_loss": LOSS,
    "add_correct": COUNT, "add_total": TOTAL, "sub_correct": COUNT, "sub_total": TOTAL, "math_acc": ACCURACY,
    "heldout_correct": COUNT, "heldout_total": COUNT, "facts_correct": COUNT, "facts_total": TOTAL,
    "facts_acc": ACCURACY, "combined_acc": ACCURACY, "elapsed_s": Key(0.0, "", lo=0, hi=1e12)}
COLUMNS = tuple(CELLS)
WANDB_SEEDS = 10  # up to as many are logged one by one
SCORES = {"math": ("add", "sub"), "facts": ("facts",)}  # of each task, all that is asked


@dataclass(frozen=True)
class RunLog:
    """What a run's folder says: `notes` is config.json; of results.csv, `iters` (N,) and `columns`
    {name: (N, S)}, the seeds in the order of `notes["seeds"]`, NaN where the log is empty."""
    folder: Path
    notes: dict
    iters: np.ndarray
    columns: dict[str, np.ndarray]


class NoEvaluation(UserError):
    """A run that has only begun: its log has no evaluation of all seeds yet."""


def start(folder: Path, notes: dict, rows: list[dict]) -> None:
    """Write config.json, and results.csv with the rows that it begins with, each at once or not at all."""
    table = io.StringIO()
    lines = [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]
    csv.writer(table, lineterminator="\n").writerows(lines)
    for name, text in (("config.json", json.dumps(notes, indent=1, allow_nan=False) + "\n"),
                       ("results.csv", table.getvalue())):
        replace_file(folder / name, lambda f, text=text: f.write(text.encode()))


def append(folder: Path, rows: list[dict]) -> None:
    """Add rows to results.csv; they are on the disk when this returns."""
    path = folder / "results.csv"
    with writing(path), open(path, "a", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([row[name] for name in COLUMNS] for row in rows)
        f.flush()
        os.fsync(f.fileno())


@contextmanager
def reading(source: Path | str, fix: str = "restore the file or train the run again"):
    """Around the reading of a run's file: whatever is wrong becomes a UserError that names `source`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{source}: {e.strerror}; expected the config.json and results.csv that "
                        "train_with_eval.py leaves in its out_dir") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError, csv.Error) as e:
        why = f"it lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"{source}: damaged, {why}; {fix}") from None


def read_notes(path: Path) -> dict:
    """config.json; raises UserError if it is damaged."""
    with reading(path):
        notes = json.loads(path.read_text(encoding="utf-8"))
        if type(notes) is not dict:
            raise ValueError("no JSON object")
        seeds, tasks, pairs = notes["seeds"], notes["tasks"], notes["held_out"]
        losses = [value for value in (notes["loss_floor"], notes["rule_loss"]) if value is not None]
        for name, good in {
            "seeds": type(seeds) is list and {*map(type, seeds)} == {int} and len({*seeds}) == len(seeds),
            "tasks": type(tasks) is list and len({*tasks} & {*SCORES}) == len(tasks),
            "held_out": type(pairs) is list and all([*map(type, pair)] == [int, int] for pair in pairs),
            "max_iters": type(notes["config"]["max_iters"]) is int and notes["config"]["max_iters"] >= 0,
            "parameters": type(notes["parameters"]) is int and notes["parameters"] > 0,
            "device": type(notes["device"]) is str and notes["device"] != "",
            "a reference loss": all(type(v) in (int, float) and LOSS.lo <= v <= LOSS.hi for v in losses),
        }.items():
            if not good:
                raise ValueError(f"{name} is not such as train_with_eval.py writes")
    return notes


def read_rows(path: Path, seeds: list[int], tasks: list[str]) -> list[dict]:
    """The rows of results.csv as {column: value}, "" where empty, without half a line at the end, which a
    killed run leaves. Raises UserError, with the line's number, for a damaged line."""
    with reading(path):
        header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        if header != ",".join(COLUMNS):
            raise ValueError(f"its first line is not the header {','.join(COLUMNS)}")
    may_lack = {"heldout", *([] if tasks else ["combined"]),
                *(kind for task in SCORES if task not in tasks for kind in (task, *SCORES[task]))}
    rows = {}
    for number, line in enumerate(lines, start=2):
        cells, source = line.split(","), f"{path}, line {number}"
        with reading(source):
            if len(cells) != len(COLUMNS):
                raise ValueError(f"{len(cells)} values, expected {len(COLUMNS)}")
            row = {name: "" if not cell and name.split("_")[0] in may_lack else
                   config.check(name, config.from_text(cell, CELLS[name]), CELLS[name], source)
                   for name, cell in zip(COLUMNS, cells)}
            it, seed = row["iter"], row["seed"]
            if seed not in seeds:
                raise ValueError(f"seed {seed} is none of config.json's, so that is of another run")
            if (it, seed) in rows:
                raise ValueError(f"iteration {it} of seed {seed} for the second time")
            for kind in ("add", "sub", "heldout", "facts"):
                correct, total = (row[f"{kind}_{k}"] for k in ("correct", "total"))
                if (correct == "") != (total == "") or correct != "" and correct > total:
                    raise ValueError(f"{kind}_correct = {correct} of {kind}_total = {total}")
            rows[it, seed] = row
    return list(rows.values())


def parts(folder: Path) -> list[Path]:
    """The folders that a run lies in: its own, or the rank_0/, rank_1/, ... in it of a run under torchrun."""
    ranks = [path for path in folder.glob("rank_*") if re.fullmatch("rank_[0-9]+", path.name)]
    return sorted(ranks, key=lambda path: int(path.name[5:])) or [folder]


def read_part(folder: Path) -> RunLog:
    """The log of one of a run's `parts`; it may have no evaluation yet."""
    notes, path = read_notes(folder / "config.json"), folder / "results.csv"
    seeds, rows = notes["seeds"], read_rows(path, notes["seeds"], notes["tasks"])
    row_of = {(row["iter"], row["seed"]): row for row in rows}
    iters = sorted({it for it, _ in row_of})
    if iters and any((iters[-1], seed) not in row_of for seed in seeds):
        iters.pop()  # it is being written, or the run was killed
    with reading(path):
        for it, seed in ((it, seed) for it in iters for seed in seeds):
            if (it, seed) not in row_of:
                raise ValueError(f"iteration {it} lacks seed {seed}")
    cells = {name: [row_of[it, seed][name] for it in iters for seed in seeds] for name in COLUMNS}
    columns = {name: np.array([np.nan if x == "" else x for x in column], dtype=float).reshape(-1, len(seeds))
               for name, column in cells.items()}
    return RunLog(folder, notes, np.array(iters, dtype=int), columns)


def read_run(folder: Path) -> RunLog:
    """The log of the run in `folder`, its parts taken together: the evaluations that all seeds have.

    Raises UserError for what is missing or damaged, NoEvaluation if there is no evaluation yet.
    """
    logs = [read_part(part) for part in parts(folder)]
    iters = reduce(np.intersect1d, [log.iters for log in logs])
    notes = logs[0].notes | {"seeds": [seed for log in logs for seed in log.notes["seeds"]]}
    same = [[log.notes[k] for k in ("parameters", "tasks", "held_out", "loss_floor")] for log in logs]
    if len(set(notes["seeds"])) < len(notes["seeds"]) or same != same[:1] * len(same):
        raise UserError(f"{folder}: its rank folders are of different runs; remove those that do not belong")
    if not iters.size:
        raise NoEvaluation(f"{folder}: no complete evaluation; expected a line in results.csv for each of "
                           f"{len(notes['seeds'])} seeds; wait, or train the run further")
    columns = {name: np.hstack([log.columns[name][np.isin(log.iters, iters)] for log in logs])
               for name in COLUMNS}
    return RunLog(folder, notes, iters, columns)


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
        if 1 < len(rows) <= WANDB_SEEDS:
            values |= {f"seed_{row['seed']}/{k}": row[k] for row in rows for k in names}
        wandb.log(values, step=rows[0]["iter"])
