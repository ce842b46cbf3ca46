"""Runs as the trainer would leave them, written here: small, and with numbers that a test can work out."""
import json
from pathlib import Path

import numpy as np

import config
import data
from data import log

SEEDS = [7, 8, 9]
ITERS = [0, 10, 20, 30]
# right answers of 100 at each iteration (rows) and seed (columns)
ADD = [[0, 10, 20], [50, 60, 100], [100, 90, 100], [100, 100, 98]]
SUB = [[0, 5, 1], [40, 70, 100], [100, 100, 99], [100, 100, 97]]
HELDOUT = [[0, 0, 1], [2, 3, 4], [4, 4, 4], [4, 3, 1]]  # of 4
FACTS = [[0, 0, 0], [50, 50, 20], [50, 49, 50], [50, 10, 50]]  # of 50
LOSS = [[3.0, 2.9, 2.8], [1.5, 1.2, 0.8], [0.9, 0.8, 0.7], [0.8, 0.75, 0.6]]
TASKS = {"none": [], "math": ["math"], "facts": ["facts"], "both": ["math", "facts"]}


def row(i: int, s: int, tasks: list[str]) -> dict:
    """The row of results.csv at the evaluation i of seed s."""
    right, asked = 0, 0
    cells = dict.fromkeys(log.COLUMNS, "") | {"iter": ITERS[i], "seed": SEEDS[s], "train_loss": LOSS[i][s],
                                              "val_loss": LOSS[i][s], "elapsed_s": 50.0 * i}
    if "math" in tasks:
        cells |= {"add_correct": ADD[i][s], "add_total": 100, "sub_correct": SUB[i][s], "sub_total": 100,
                  "math_acc": (ADD[i][s] + SUB[i][s]) / 200,
                  "heldout_correct": HELDOUT[i][s], "heldout_total": 4}
        right, asked = right + ADD[i][s] + SUB[i][s], asked + 200
    if "facts" in tasks:
        cells |= {"facts_correct": FACTS[i][s], "facts_total": 50, "facts_acc": FACTS[i][s] / 50}
        right, asked = right + FACTS[i][s], asked + 50
    return cells | ({"combined_acc": right / asked} if tasks else {})


def info_of(tasks: list[str], seeds: list[int], **changed) -> dict:
    """The config.json of a run."""
    return {"config": {"max_iters": ITERS[-1]}, "parameters": 1456, "seeds": seeds, "tasks": tasks,
            "held_out": [[5, 7]] if "math" in tasks else [], "loss_floor": 0.531, "rule_loss": 0.767,
            "device": "an abacus", "data_sha256": "8d87"} | changed


def write_run(folder: Path, operation: str = "math", seeds: range = range(3), evaluations: int = 4,
              change=lambda row: row, **info) -> Path:
    """A run's folder: those of the seeds and so many evaluations, every row as `change` has it."""
    folder.mkdir(parents=True)
    tasks = TASKS[operation]
    rows = [change(row(i, s, tasks)) for i in range(evaluations) for s in seeds]
    log.start(folder, info_of(tasks, [SEEDS[s] for s in seeds], **info), rows)
    return folder


def change_info(folder: Path, **changed) -> None:
    """Put other values into a run's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


CURVES = {  # right answers of 196 seen and 4 held-out prompts at iterations 0, 10, 20, 30, and their phase
    "confusion": ([0, 100, 150, 180], [0, 0, 0, 4]), "memorisation": ([0, 196, 196, 196], [0, 4, 4, 3]),
    "comprehension": ([0, 196, 196, 196], [0, 0, 4, 4]), "grokking": ([0, 196, 196, 196], [0, 0, 3, 4])}


def write_log(folder: Path, seen: list, unseen: list, pair: tuple = (5, 7), n_embd: int = 14,
              seed: int = 1337) -> dict:
    """A run of two seeds by hand: right answers at iterations 0, 10, ..., the same for both or, of what is
    held out, one number for each; 6 s for 10 iterations. Its config is returned."""
    c = {key: config.KEYS[key].default for key in config.KEYS}
    c |= {"out_dir": str(folder), "n_embd": n_embd, "num_seeds": 2, "max_iters": 10 * len(seen) - 10}
    both = [np.broadcast_to(n, 2).tolist() for n in unseen]
    rows = [dict.fromkeys(log.COLUMNS, "") | {
        "iter": 10 * i, "seed": seed + s, "train_loss": 0.649, "val_loss": 0.649, "elapsed_s": 6.0 * i,
        "add_correct": (seen[i] + both[i][s]) // 2, "add_total": 100, "math_acc": 0.5, "combined_acc": 0.5,
        "sub_correct": (seen[i] + both[i][s] + 1) // 2, "sub_total": 100,
        "heldout_correct": both[i][s], "heldout_total": 4} for i in range(len(seen)) for s in range(2)]
    folder.mkdir(parents=True)
    info = info_of(["math"], [seed, seed + 1], config=c, held_out=[pair], parameters=100 * n_embd,
                     data_sha256=data.load("as_math").sha256)
    log.start(folder, info, rows)
    return c
