"""The benchmark: its count of work, its command line, and that both baselines are the same training."""
import json
import sys

import numpy as np
import pytest
import torch

import bench
from config import UserError
from data.batches import Batches
from helpers import settings, start
from model import GPTConfig, flatten


def test_step_flops_by_hand():
    """Width 1, vocabulary of 3: c_attn 3, c_proj 1, c_fc 1, c_proj 1 and the head 3 make 9 weights.

    A token of PyTorch's step: 6 * 9, 12 * 1 * 1 * 2 for attention to both places, 4 * 3 for the embedding.
    One of the C++ step: 6 * 9, and 12 * 1.5 for the mean of one place and two.
    """
    cfg = GPTConfig(block_size=2, vocab_size=3, n_embd=1)
    assert bench.step_flops(cfg, 5, 4, 100, False) == 5 * 4 * 2 * (54 + 24 + 12)
    assert bench.step_flops(cfg, 1, 1, 100, True) == pytest.approx(2 * (54 + 18))
    assert bench.step_flops(cfg, 1, 2, 2, True) == pytest.approx(1.5 * 2 * (54 + 18))  # half the pairs differ


def test_distinct_windows_are_counted_as_they_occur():
    c, places = settings(batch_size=882), 1764 - 9
    batches = Batches([1337], places, c["batch_size"], 1000).get(0, 1000)
    found = np.mean([len(np.unique(batch)) for batch in batches])
    one, all_of_them = (bench.step_flops(GPTConfig(), 1, n, places, True) for n in (1, 882))
    assert all_of_them / one == pytest.approx(found, rel=2e-3)


def test_the_plain_loop_learns(datasets):
    """Else the ratio would be against something that is no training."""
    loop = bench.PlainLoop(settings(warmup_iters=0, batch_size=64), datasets["math"])
    torch.manual_seed(0)
    losses = [loop.update() for _ in range(60)]
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


def test_timing_goes_on_past_the_end_of_a_run(datasets):
    """More iterations are timed than the config, its schedule or a block of batches has."""
    made = []
    _, each = bench.update_seconds(lambda it, batches: made.append((it, len(batches))),
                                   settings(max_iters=25), datasets["math"], 0.01)
    assert each > 0 and made[-1][0] > 1000 and {n for _, n in made} == {1, 250}


def test_a_line_has_every_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "matmul_rate", lambda *_: 1e12)
    bench.main(["--seconds=0.01", "--num_seeds=1,2", "--compile=False", f"--json={tmp_path / 'x.json'}",
                "--baseline=plain"])
    lines, rows = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 2]
    for row in rows:
        line = next(line for line in lines if f"seeds {row['seeds']}" in line)
        assert [words.split()[0] for words in line.split(", ")] == [*row] and row["run"] in line
        assert all(value > 0 for name, value in row.items() if name not in ("run", "step"))
        assert row["plain_times_faster"] == pytest.approx(row["plain_ms_iter"] / row["ms_iter"])
