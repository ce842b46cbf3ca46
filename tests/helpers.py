"""What several test files need: short trainings, their logs, and scripts as real processes."""
import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config
import data
import engine
import model
import train_with_eval
from data.batches import Batches
from engine.run import fresh
from model import GPTConfig, flatten, load_checkpoint

CHECKOUT = Path(__file__).resolve().parents[1]
SCRATCH = Path(tempfile.mkdtemp(prefix="too_big_to_think_"))  # of all that tests leave; removed at the end
ROOT = SCRATCH / "checkout"  # a copy of the repository, the working directory
TASKS = {"math": "as_math", "facts": "facts_char", "both": "both_math_and_facts"}
SIZES = ("14", "28", "56", "mlt")
RUNS = [f"{task}_mini_{size}{wd}" for task in TASKS for size in SIZES for wd in ("", "_wd")]
VOCAB = {"math": 17, "facts": 51, "both": 66}
SAMPLING = ["--num_samples=2", "--temperature=1"]  # warm: an untrained model's cold samples all say the same
TINY = ["--device=cpu", "--compile=False", "--batch_size=128", "--warmup_iters=5", "--lr_decay_iters=30",
        "--eval_interval=10", "--max_iters=20", *SAMPLING]
children: list[subprocess.Popen] = []  # of the test that runs


def settings(run: str = "math_mini_14", **changed) -> dict:
    """The effective config of a run, decided for this machine: small batches, CPU, not compiled."""
    c = config.read([f"config/train_{run}.py"], "")[0]
    return engine.resolve(c | dict(device="cpu", compile=False, batch_size=8) | changed)


def shape_of(run: str) -> GPTConfig:
    """The GPTConfig of a run config."""
    return model.shape_of(config.read([f"config/train_{run}.py"], "")[0], VOCAB[run.split("_")[0]])


@dataclass
class Training:
    """A run in memory: config, engine, and what it trains on; `done` counts its updates."""
    c: dict
    engine: engine.Engine
    dataset: data.Dataset
    text: torch.Tensor  # of dataset.train, int32
    batches: Batches
    done: int = 0

    def advance(self, n: int) -> torch.Tensor:
        """Make n updates as the trainer would; the weights (S, P) after them, on the CPU."""
        end = self.done + n
        while self.done < end:
            batch = self.batches.get(self.done, end - self.done)
            self.engine.update(torch.from_numpy(batch), train_with_eval.rates(self.done, len(batch), self.c))
            self.done += len(batch)
        return self.engine.state["params"].cpu().clone()


def start(step: str = "", **changed) -> Training:
    """A run in memory, of `settings(**changed)`; `step`: what computes it, if not what that decides."""
    c = settings(**changed)
    c["step"] = step or c["step"]
    dataset, seeds = data.load(c["dataset"]), model.seeds_of(c)
    cfg, text = model.shape_of(c, len(dataset.vocab)), torch.from_numpy(dataset.train.astype(np.int32))
    batches = Batches(seeds, len(text) - c["block_size"], c["batch_size"], c["max_iters"])
    return Training(c, engine.make(c, cfg, fresh(cfg, seeds), text), dataset, text, batches)


def train(folder: Path, *args: str, run: str = "math_mini_14", code: int = 0) -> Path:
    """Train a run config, shortened by TINY and `args`, into `folder`; its exit code must be `code`."""
    assert train_with_eval.main([f"config/train_{run}.py", f"--out_dir={folder}", *TINY, *args]) == code
    return folder


def resume(folder: Path, *args: str) -> None:
    """Go on with the run in `folder`."""
    assert train_with_eval.main([f"--out_dir={folder}", "--init_from=resume", *args]) == 0


def log(folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv without the elapsed time."""
    with open(folder / "results.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        assert float(row.pop("elapsed_s")) >= 0
    return rows


def rows_of(text: str) -> dict[str, list[list[str]]]:
    """The rows of each table in Markdown, below its header, by the table's heading."""
    tables: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            rows = tables[line[3:]] = []
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[2:] for heading, rows in tables.items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def tracked() -> list[str]:
    """The repository's files, so that nothing left lying reaches a test: what git tracks and is there; of an
    unpacked archive, or without git, all that lies where code and results do."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # whoever owns it
    known = shutil.which("git") and (CHECKOUT / ".git").exists()
    found = subprocess.run(git, cwd=CHECKOUT, capture_output=True, text=True).stdout if known else ""
    if found:
        paths = [CHECKOUT / file for file in found.split("\0")]
    else:
        folders = (CHECKOUT / name for name in ("config", "data", "engine", "results", "tests"))
        paths = [*CHECKOUT.glob("*.*"), *(path for folder in folders for path in folder.rglob("*.*"))]
    return [str(path.relative_to(CHECKOUT)) for path in paths
            if path.is_file() and "__pycache__" not in path.parts]


@contextmanager
def heeding_signals():
    """What is started here acts on signals, though this process may ignore some, as in the background."""
    numbers = signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
    before = {n: signal.signal(n, signal.SIG_DFL) for n in numbers}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def popen(*argv: str, cwd: Path = ROOT, stdout=subprocess.DEVNULL, program: str = sys.executable,
          **env: str) -> subprocess.Popen:
    """A script, started in a session of its own."""
    with heeding_signals():
        children.append(subprocess.Popen([program, *argv], cwd=cwd, env=os.environ | env, text=True,
                                         stdout=stdout, stderr=subprocess.PIPE, start_new_session=True))
    return children[-1]


def end_children() -> None:
    """End whatever a test has left running, and its children with it."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    for child in children:
        if child.poll() is None:
            child.terminate()  # torchrun ends its own, which have other sessions
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    children.clear()


def run_script(*argv: str, **how) -> subprocess.CompletedProcess:
    """A script as a real process, to its end; `how`: see `popen`."""
    child = popen(*argv, stdout=subprocess.PIPE, **how)
    out, err = child.communicate()
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


def weights(folder: Path, name: str = "ckpt.pt") -> torch.Tensor:
    """Flat weights (S, P) of a run's checkpoint."""
    ckpt, cfg = load_checkpoint(folder / name)
    return flatten(ckpt["model"], cfg)


def same(a: Path, b: Path) -> bool:
    """Whether two runs have the same log (elapsed time aside) and the same final weights, to the bit."""
    return log(a) == log(b) and torch.equal(weights(a), weights(b))


def command(folder: Path, args=()) -> list[str]:
    """What a user types: start a run in `folder`, shortened by TINY and `args`, or resume the one there."""
    if (folder / "ckpt.pt").exists():
        return ["--init_from=resume", f"--out_dir={folder}"]
    return ["config/train_math_mini_14.py", f"--out_dir={folder}", *TINY, *args]


def spawn(folder: Path, args=(), first=lambda: None) -> multiprocessing.Process:
    """A process that calls `first()` and then runs `command`, saving at every evaluation.

    It is forked, which saves the import of torch; what it prints on stderr goes to a file beside `folder`.
    """

    def work():
        sys.stdout, sys.stderr = open(os.devnull, "w"), open(folder.with_suffix(".err"), "w")
        sys.argv = ["train_with_eval.py", *command(folder, args)]
        train_with_eval.SAVE_EVERY_S = 0
        tqdm.set_lock(threading.RLock())  # its own one is shared by all children: a killed one may have it
        first()
        config.run(train_with_eval.main)

    child = multiprocessing.get_context("fork").Process(target=work)
    with heeding_signals():
        child.start()
    return child
