"""What a run leaves in out_dir beside checkpoints: config.json, results.csv and `lock`; wandb, if asked."""
import csv
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import numpy as np
import torch

import data
from config import UserError

COLUMNS = ("iter", "seed", "train_loss", "val_loss", "add_correct", "add_total", "sub_correct", "sub_total",
           "math_acc", "heldout_correct", "heldout_total", "facts_correct", "facts_total", "facts_acc",
           "combined_acc", "elapsed_s")
FILES = ("ckpt.pt", "ckpt_best_*.pt", "results.csv", "config.json")  # without the first no run resumes
WANDB_SEEDS = 10  # up to as many are logged one by one


def files(folder: Path, patterns: Iterable[str] = FILES) -> list[Path]:
    """A run's files in `folder`."""
    return [path for pattern in patterns for path in folder.glob(pattern)]


class Lock:
    """The file `lock` in a run's folder: locked while a process trains there, with its id in it.

    The system unlocks it however that process ends.
    """

    def __init__(self, folder: Path):
        self.path, self.file = folder / "lock", None

    def __enter__(self):
        return self

    def look(self) -> None:
        """Lock the file if it is there. Raises UserError if another process has it."""
        if self.path.exists():
            self.take()

    def take(self) -> None:
        """Lock the file, made if it is not there. Raises UserError if another process has it."""
        with data.writing(self.path):
            self.file = open(self.path, "a+b", buffering=0)
        try:
            if fcntl is None:
                raise OSError("no fcntl")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise UserError(f"process {self.file.read().decode()} is training in {self.path.parent}; wait "
                            "until it ends, or choose another --out_dir") from None
        except OSError as e:
            print(f"warning: no file locks here ({e}): nothing prevents a second run in {self.path.parent}")

    def claim(self) -> None:
        """Make the folder if it is not there, and put our process id into the file."""
        with data.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.file:
                self.take()
            self.file.truncate(0)
            self.file.write(str(os.getpid()).encode())

    def __exit__(self, *_):
        if self.file:
            self.file.close()


def lines_before(path: Path, before: int) -> list[str]:
    """The lines of results.csv for iterations below `before`. Raises UserError for a damaged one."""
    # what follows the last newline is half a line, of a run that was killed
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")[1:-1]
    for number, line in enumerate(lines, start=2):
        if not re.fullmatch(rf"[0-9]+(,[-+.e0-9]*){{{len(COLUMNS) - 1}}}", line):
            raise UserError(f"{path}, line {number}: damaged; mend or delete the line, then resume again")
    return [line for line in lines if int(line.split(",")[0]) < before]


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to results.csv, on the disk before a checkpoint that goes on after them."""
    with data.writing(path), open(path, "a", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([row[k] for k in COLUMNS] for row in rows)
        f.flush()
        os.fsync(f.fileno())


def git_commit() -> str | None:
    """The repository's commit, with '-dirty' if its files differ from it; None outside git."""
    if shutil.which("git") is None:
        return None
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or None


def device_name(device: str) -> str:
    """The name of the GPU or of the processor, as the system tells it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"


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


def log_to_wandb(c: dict, rows: list[dict]) -> None:
    """With `wandb_log`, send an evaluation: the mean over seeds of each column; of few seeds, each one's."""
    if c["wandb_log"]:
        import wandb
        names = [k for k in COLUMNS[2:] if rows[0][k] != ""]
        values = {k: sum(row[k] for row in rows) / len(rows) for k in names}
        if 1 < len(rows) <= WANDB_SEEDS:
            values |= {f"seed_{row['seed']}/{k}": row[k] for row in rows for k in names}
        wandb.log(values, step=rows[0]["iter"])


def summary(rows: list[dict]) -> str:
    """Loss, accuracies and held-out score, the mean over seeds, for the progress bar."""
    parts = []
    for label, key in (("loss", "train_loss"), ("math", "math_acc"), ("facts", "facts_acc")):
        if rows[0][key] != "":
            mean = sum(row[key] for row in rows) / len(rows)
            parts.append(f"{label} {mean:.3f}" if label == "loss" else f"{label} {mean:.1%}")
    if rows[0]["heldout_total"] != "":
        right, asked = (sum(row[f"heldout_{k}"] for row in rows) for k in ("correct", "total"))
        parts.append(f"held-out {right}/{asked}")
    return ", ".join(parts)


def about(c: dict, parameters: int, seeds: list[int], dataset: data.Dataset, step: str) -> dict:
    """What config.json holds. `step`: what computes the updates, fused, torch or eager."""
    ids, T, newline = dataset.train, c["block_size"], dataset.vocab.find("\n")
    return {"config": c, "parameters": parameters, "seeds": seeds, "tasks": dataset.tasks,
            "loss_floor": data.loss_floor(ids, T), "rule_loss": data.rule_loss(ids, T, newline),
            "data_sha256": dataset.sha256, "device": device_name(c["device"]),
            "threads": torch.get_num_threads(), "step": step,
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "numpy": np.__version__},
            "git_commit": git_commit()}
