"""Runs killed by SIGKILL at any moment and resumed: the result must be that of the run left alone."""
import random
import signal
import time

import pytest
import torch

from engine import fused
from helpers import contents, log, same, spawn, train, weights

RUNS = {"one seed": [], "two seeds, dropout": ["--num_seeds=2", "--dropout=0.1"]}
LONG = ["--max_iters=30", "--eval_interval=3", "--overwrite"]  # the latter: of a log without a checkpoint


def last_logged(folder) -> int:
    """The last iteration in a run's log, -1 if there is none."""
    rows = log(folder) if (folder / "results.csv").exists() else []
    return int(rows[-1]["iter"]) if rows else -1


def equal(folder, reference) -> bool:
    """Whether log, final and best weights are the same, and nothing else lies in the folder."""
    best = "ckpt_best_math.pt"
    return (same(folder, reference) and torch.equal(weights(folder, best), weights(reference, best))
            and {*contents(folder)} == {*contents(reference)})


@pytest.mark.parametrize("args", RUNS.values(), ids=RUNS)
def test_killed_at_random_moments(tmp_path, args):
    """20 kills of each kind of run, several in the life of each."""
    reference, began = tmp_path / "reference", time.monotonic()
    spawn(reference, [*LONG, *args]).join()
    took = time.monotonic() - began
    draw, kills, folder = random.Random(len(args)), 0, tmp_path / "0"
    while kills < 20:
        child = spawn(folder, [*LONG, *args])
        child.join(draw.uniform(0, took / 3))
        if child.exitcode is None:
            child.kill()
            child.join()
            kills += 1
        else:
            assert child.exitcode == 0 and equal(folder, reference)
            folder = tmp_path / str(kills)
    child = spawn(folder, [*LONG, *args])
    child.join()
    assert child.exitcode == 0 and equal(folder, reference)


@pytest.mark.skipif(fused.compiler() is None, reason="no C++ compiler")
def test_a_compiled_run_killed_as_it_trains(tmp_path):
    """Two kills of a process that trains two seeds, each after it has gone on for some evaluations."""
    args = ["--num_seeds=2", "--compile=True", "--max_iters=40", "--eval_interval=2"]
    reference, folder, draw = train(tmp_path / "reference", *args), tmp_path / "run", random.Random(0)
    for kill in (True, True, False):
        child, before = spawn(folder, args), last_logged(folder)
        while kill and child.is_alive():
            if last_logged(folder) > before + 3:
                time.sleep(draw.uniform(0, 0.03))
                child.kill()
            time.sleep(0.01)
        child.join()
        assert child.exitcode == (-signal.SIGKILL if kill else 0)
    assert equal(folder, reference)
