"""A run in several processes, as torchrun starts them, against the same run in one."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from helpers import ROOT, SAMPLING, log
from model import flatten, load_checkpoint

RUN = ["config/train_math_mini_14.py", "--device=cpu", "--compile=False", "--batch_size=32", "--num_seeds=3",
       "--warmup_iters=5", "--eval_interval=10", *SAMPLING]


def torchrun(*args: str, processes: int = 2) -> subprocess.Popen:
    """train_with_eval.py in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
               "train_with_eval.py", *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def alone(*args: str) -> None:
    """train_with_eval.py in one process."""
    subprocess.run([sys.executable, "train_with_eval.py", *args], cwd=ROOT, check=True, capture_output=True)


def whole(folder) -> tuple[dict, torch.Tensor, list]:
    """A run's checkpoint, its weights (S, P), and its log."""
    ckpt, cfg = load_checkpoint(folder / "ckpt.pt")
    return ckpt, flatten(ckpt["model"], cfg), log(folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run in one process, never interrupted."""
    folder = tmp_path_factory.mktemp("one")
    alone(*RUN, "--max_iters=40", f"--out_dir={folder}")
    return folder


def near(a, b) -> None:
    """Two folders hold the same run, to rounding: log, weights, and best checkpoints' iterations."""
    (ckpt_a, weights_a, log_a), (ckpt_b, weights_b, log_b) = whole(a), whole(b)
    assert ckpt_a["seeds"] == ckpt_b["seeds"] and ckpt_a["iter_num"] == ckpt_b["iter_num"]
    torch.testing.assert_close(weights_a, weights_b, rtol=1e-3, atol=1e-4)
    assert [(r["iter"], r["seed"]) for r in log_a] == [(r["iter"], r["seed"]) for r in log_b]
    for x, y in zip(log_a, log_b):
        assert float(x["train_loss"]) == pytest.approx(float(y["train_loss"]), rel=1e-4)
    assert {p.name for p in a.glob("*.pt")} == {p.name for p in b.glob("*.pt")}


def test_two_processes_equal_one_and_hand_over_to_it(one, tmp_path):
    """20 iterations in two processes, then 20 in one."""
    done = torchrun(*RUN, "--max_iters=20", f"--out_dir={tmp_path / 'two'}")
    assert done.communicate(timeout=120) and done.returncode == 0
    assert len(log(tmp_path / "two")) == 9
    alone("--init_from=resume", "--max_iters=40", f"--out_dir={tmp_path / 'two'}")
    near(tmp_path / "two", one)


def started(folder, process: subprocess.Popen) -> list[int]:
    """The process ids of the ranks, once the run has logged its first evaluation."""
    for _ in range(600):
        if (folder / "results.csv").exists() and (folder / "results.csv").read_text().count("\n") > 3:
            return [int(p) for p in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True,
                                                   text=True).stdout.split()]
        time.sleep(0.1)
    raise AssertionError("the run did not begin")


def test_a_rank_that_dies_ends_the_run_which_resumes(one, tmp_path):
    """kill -9 of the second process: a clear line of the first one within a minute, and nothing is lost."""
    folder = tmp_path / "run"
    process = torchrun(*RUN, "--max_iters=1000000", f"--out_dir={folder}")
    victim = started(folder, process)[-1]
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    err = process.communicate(timeout=60)[1]
    assert time.monotonic() - killed < 60 and process.returncode != 0
    assert "error: rank 0: another process of this run has died" in err and "--init_from=resume" in err
    assert load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] <= 40
    again = torchrun("--init_from=resume", "--max_iters=40", f"--out_dir={folder}")
    assert again.communicate(timeout=120) and again.returncode == 0
    near(folder, one)


def test_more_processes_than_seeds_are_refused_with_the_reason(tmp_path):
    process = torchrun("config/train_math_mini_14.py", f"--out_dir={tmp_path / 'run'}", "--device=cpu")
    err = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and not (tmp_path / "run").exists()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines == ["error: 2 processes for num_seeds = 1: a seed trains in one process; expected at most 1 "
                     "of them, or more seeds"]
