"""A run in several processes, as torchrun starts them: each an ordinary run of its share of the seeds."""
import csv
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_as_math
import plot_results
import sample
import train_with_eval
from config import UserError
from data.log import read_run
from helpers import SAMPLING, contents, log, popen, resume, run_script, same
from model import load_checkpoint

RUN = ["config/train_math_mini_14.py", "--device=cpu", "--compile=False", "--batch_size=32", "--num_seeds=3",
       "--warmup_iters=5", "--eval_interval=10", *SAMPLING]


def torchrun(*args: str, processes: int = 2) -> subprocess.Popen:
    """train_with_eval.py in several processes."""
    return popen("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                 "train_with_eval.py", *args)


@contextmanager
def as_rank(rank: int, processes: int = 2):
    """This process is one of those that torchrun starts; none waits for another."""
    with pytest.MonkeyPatch.context() as m:
        for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", rank), ("WORLD_SIZE", processes)):
            m.setenv(name, str(value))
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """20 iterations in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(*RUN, "--max_iters=20", f"--out_dir={folder}")
    assert done.communicate() and done.returncode == 0
    return folder


def test_readers_take_the_ranks_together_as_the_run_in_one_process(two, tmp_path):
    """The log, the weights and every tool; to rounding."""
    assert run_script("train_with_eval.py", *RUN, "--max_iters=20", f"--out_dir={tmp_path}").returncode == 0
    assert {*contents(two / "rank_0")} == {*contents(tmp_path)} and len(log(two / "rank_1")) == 3 * 2
    together, one = read_run(two), read_run(tmp_path)
    assert together.info["seeds"] == one.info["seeds"] == [1337, 1338, 1339]
    assert np.array_equal(together.iters, one.iters) and together.iters.tolist() == [0, 10, 20]
    assert np.allclose(together.columns["train_loss"], one.columns["train_loss"], rtol=1e-4)
    (a, b) = (sample.open_model(str(folder)) for folder in (two, tmp_path))
    assert (a.seeds, a.iters) == (b.seeds, b.iters)
    torch.testing.assert_close(a.params, b.params, rtol=1e-3, atol=1e-4)
    sample.main([f"--out_dir={two}", "--start=<", "--model_seed=1339", "--num_samples=1"])
    eval_as_math.main([f"--out_dir={two}", "--all_seeds", "--num_samples=1", f"--csv={tmp_path}/t.csv"])
    with open(tmp_path / "t.csv", newline="") as f:
        assert len(list(csv.DictReader(f))) == 3 * 200
    plot_results.main([f"--model_folder={two}"])
    assert (two / "plot.png").exists()


def test_a_rank_that_dies_is_resumed_alone(two, tmp_path):
    """kill -9 of one process: torchrun stops the other, which saves; each goes on by itself."""
    ranks = [tmp_path / "rank_0", tmp_path / "rank_1"]
    for rank in (0, 1):
        with as_rank(rank):
            assert train_with_eval.main([*RUN, "--max_iters=10", f"--out_dir={tmp_path}"]) == 0
    process = torchrun("--init_from=resume", "--max_iters=1000000", f"--out_dir={tmp_path}")
    while not all(int(log(rank)[-1]["iter"]) >= 20 for rank in ranks):
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(int((ranks[1] / "lock").read_text()), signal.SIGKILL)
    err = process.communicate()[1]
    assert process.returncode != 0 and "--init_from=resume --out_dir=" in err
    assert load_checkpoint(ranks[0] / "ckpt.pt")[0]["iter_num"] >= 20
    done = run_script("train_with_eval.py", "--init_from=resume", f"--out_dir={ranks[1]}", "--max_iters=20")
    assert done.stderr.startswith("10 of 20:") and same(ranks[1], two / "rank_1")


def test_a_run_in_processes_is_resumed_and_refuses_what_is_not_its_own(two):
    """Last of this file: it changes the run."""
    before = log(two / "rank_0")
    for how in ([*RUN, "--max_iters=20", "--overwrite"], ["--init_from=resume", "--max_iters=30"]):
        with as_rank(0, 1), pytest.raises(UserError, match="holds a run of another number of processes"):
            train_with_eval.main([*how, f"--out_dir={two}"])
        assert log(two / "rank_0") == before
    with pytest.raises(UserError, match=re.escape(f"go on with each alone, --out_dir={two}/rank_0")):
        resume(two)
    for end, how in ((40, ["--init_from=resume", "--seed=1337"]), (50, [*RUN, "--init_from=auto"])):
        for rank in (0, 1):
            with as_rank(rank):
                assert train_with_eval.main([*how, f"--max_iters={end}", f"--out_dir={two}"]) == 0
        assert read_run(two).iters.tolist() == list(range(0, end + 1, 10))
    (two / "rank_1").rename(two / "lost")
    for main, key in ((sample.main, "out_dir"), (plot_results.main, "model_folder")):
        with pytest.raises(UserError, match="of its 2 rank folders rank_1 is not there"):
            main([f"--{key}={two}"])


def test_more_processes_than_seeds_are_refused_with_the_reason(tmp_path):
    with as_rank(1), pytest.raises(UserError, match="2 processes for num_seeds = 1: .*; expected at most 1"):
        train_with_eval.main(["config/train_math_mini_14.py", f"--out_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
