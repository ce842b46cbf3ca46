"""The benchmark: its command line, and that both baselines are the same training."""
import itertools
import json
import sys

import numpy as np
import pytest
import torch

import bench
from config import UserError
from helpers import settings, start
from model import flatten


def test_the_plain_loop_learns(datasets):
    """Else the ratio would be against something that is no training."""
    update = bench.plain_updates(settings(warmup_iters=0, batch_size=64), datasets["math"])
    torch.manual_seed(0)
    losses = [update() for _ in range(60)]
    assert losses[-1] < losses[0] - 0.7


@pytest.mark.parametrize("shape", [
    {}, dict(run="both_mini_14", n_layer=2, n_head=2, weight_decay=0.1, grad_clip=0.01)])
def test_jax_makes_our_updates(shape):
    """From the same weights, on the same batches: a tool for development, not among the requirements."""
    pytest.importorskip("optax")
    ours = start(num_seeds=2, warmup_iters=3, lr_decay_iters=6, **shape)
    bench.import_jax(ours.c)
    loop = bench.JaxLoop(ours.c, ours.dataset)
    losses = loop.train(ours.batches.get(0, 8))
    assert losses.shape == (8, 2) and (losses[-1] < losses[0]).all()
    params = {name: torch.from_numpy(np.array(w)) for name, w in loop.state[0].items()}
    torch.testing.assert_close(flatten(params, loop.cfg), ours.advance(8), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("argv, words", [
    (["--num_seeds=0"], "num_seeds"), (["--num_seeds=1,,2"], "num_seeds"), (["--num_seeds=8x"], "num_seeds"),
    (["--baseline=torch"], "none, plain, jax"), (["config/none.py"], "none.py"),
    (["--baseline=plain,jax"], "pip install jax optax")])
def test_bad_command_lines(monkeypatch, argv, words):
    """Packages that are missing too are said before anything is timed."""
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UserError, match=words):
        bench.main(argv)


def test_timing_goes_on_past_the_end_of_a_run(datasets, monkeypatch):
    """More iterations are timed than the config, its schedule or a block of batches has."""
    made = []
    monkeypatch.setattr(bench.time, "perf_counter", itertools.count(0, 1e-4).__next__)
    _, each = bench.update_seconds(lambda it, batches: made.append((it, len(batches))),
                                   settings(max_iters=25), datasets["math"], 1e-3)
    assert each == pytest.approx(1e-4 / 250) and made[-1][0] > 1000 and {n for _, n in made} == {1, 250}


def test_a_line_has_every_figure(tmp_path, capsys):
    bench.main(["--seconds=0.01", "--num_seeds=1,2", "--compile=False", f"--json={tmp_path / 'x.json'}",
                "--baseline=plain"])
    lines, rows = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 2]
    for row in rows:
        line = next(line for line in lines if f"seeds {row['seeds']}" in line)
        assert [words.split()[0] for words in line.split(", ")] == [*row] and row["run"] in line
        assert all(value > 0 for name, value in row.items() if name not in ("run", "step"))
        assert row["plain_times_faster"] == pytest.approx(row["plain_ms_iter"] / row["ms_iter"])
