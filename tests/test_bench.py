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
from model import GPTConfig, flatten, forward, init_weights, unflatten


def test_step_flops_by_hand():
    """Width 1, vocabulary of 3: c_attn 3, c_proj 1, c_fc 1, c_proj 1 and the head 3 make 9 weights.

    A token of PyTorch's step: 6 * 9, 12 * 1 * 1 * 2 for attention to both places, 4 * 3 for the embedding.
    One of the C++ step: 6 * 9, and 12 * 1.5 for the mean of one place and two.
    """
    cfg = GPTConfig(block_size=2, vocab_size=3, n_embd=1)
    assert bench.step_flops(cfg, 1, 1, 100, False) == 2 * (54 + 24 + 12)
    assert bench.step_flops(cfg, 5, 4, 100, False) == 5 * 4 * 2 * (54 + 24 + 12)
    assert bench.step_flops(cfg, 1, 1, 100, True) == pytest.approx(2 * (54 + 18))
    assert bench.step_flops(cfg, 1, 2, 2, True) == pytest.approx(1.5 * 2 * (54 + 18))  # half the pairs differ


def test_distinct_windows_are_counted_as_they_occur(datasets):
    c, cfg = settings(batch_size=882), GPTConfig()
    places = len(datasets["math"].train) - c["block_size"]
    batches = Batches([1337], places, c["batch_size"], 1000).get(0, 1000)
    found = np.mean([len(np.unique(batch)) for batch in batches])
    counted = bench.step_flops(cfg, 1, 882, places, True) / bench.step_flops(cfg, 1, 1, places, True)
    assert counted == pytest.approx(found, rel=2e-3)


def test_the_plain_model_is_ours(datasets):
    cfg = GPTConfig(n_layer=2, n_head=2, mlp_expansion=4)
    flat, ids = init_weights(cfg, [7]).double() * 10, torch.randint(cfg.vocab_size, (3, 9))
    p = unflatten(flat, cfg)
    plain = bench.plain_logits({name: w[0] for name, w in p.items()}, ids, cfg, 0.0)
    torch.testing.assert_close(plain, forward(p, ids[None], cfg)[0])


def test_the_plain_loop_learns(datasets):
    """Else the ratio would be against something that is no training."""
    loop = bench.PlainLoop(settings(warmup_iters=0, batch_size=64), datasets["math"])
    torch.manual_seed(0)
    losses = [loop.update() for _ in range(60)]
    assert losses[-1] < losses[0] - 0.7
    assert loop.evaluation_seconds() > 0


@pytest.mark.parametrize("shape", [
    {}, dict(run="both_mini_14", n_layer=2, n_head=2, weight_decay=0.1, grad_clip=0.01)])
def test_jax_makes_our_updates(shape, datasets):
    """From the same weights, on the same batches: a tool for development, not among the requirements."""
    pytest.importorskip("optax")
    ours = start(num_seeds=2, warmup_iters=3, lr_decay_iters=6, **shape)
    bench.import_jax(ours.c)
    loop = bench.JaxLoop(ours.c, ours.dataset)
    losses = loop.train(ours.batches.get(0, 8))
    assert losses.shape == (8, 2) and (losses[-1] < losses[0]).all()
    params = {name: torch.from_numpy(np.array(w)) for name, w in loop.state[0].items()}
    torch.testing.assert_close(flatten(params, loop.cfg), ours.advance(8), atol=2e-4, rtol=1e-3)


def test_jax_drops_activations(datasets):
    pytest.importorskip("optax")
    c = settings(dropout=0.5, batch_size=64)
    bench.import_jax(c)
    losses = bench.JaxLoop(c, datasets["math"]).train(np.zeros((2, 1, 64), dtype=np.int32))
    assert np.isfinite(losses).all() and losses[0] != losses[1]


def test_jax_is_asked_for_by_name(monkeypatch):
    """Without its packages, one line that says what to install, before anything is timed."""
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UserError, match="pip install jax optax"):
        bench.main(["--baseline=jax"])


@pytest.mark.parametrize("argv, words", [
    (["--num_seeds=0"], "num_seeds"), (["--num_seeds=1,,2"], "num_seeds"), (["--num_seeds=8x"], "num_seeds"),
    (["--baseline=torch"], "none, plain, jax"), (["--baseline=plain,"], "baseline"), (["--json=."], "json"),
    (["--json=nowhere/x.json"], "nowhere"), (["--seconds=0"], "seconds"), (["config/none.py"], "none.py")])
def test_bad_command_lines(argv, words):
    with pytest.raises(UserError, match=words):
        bench.main(argv)


def test_timing_goes_on_past_the_end_of_a_run(datasets):
    """More iterations are timed than the config, its schedule or a block of batches has."""
    made = []
    _, each = bench.update_seconds(lambda it, batches: made.append((it, len(batches))),
                                   settings(max_iters=25), datasets["math"], 0.01)
    assert each > 0 and made[-1][0] > 1000 and {n for _, n in made} <= {1, 250}


def test_the_table_has_every_figure(datasets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "matmul_rate", lambda *_: 1e12)
    bench.main(["--seconds=0.01", "--num_seeds=1,2", "--compile=False", f"--json={tmp_path / 'x.json'}",
                "--baseline=plain"])
    lines, rows = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 2]
    at = next(i for i, line in enumerate(lines) if "ms_iter" in line)
    assert lines[at].split() == [*rows[0]] and all(len(lines[at + i].split()) == len(rows[0]) for i in (1, 2))
    assert all(v > 0 for row in rows for k, v in row.items() if k not in ("run", "step"))
    for row in rows:
        assert row["plain_times_faster"] == pytest.approx(row["plain_ms_iter"] / row["ms_iter"])


def test_without_the_unix_module(monkeypatch):
    """On Windows memory is not reported."""
    monkeypatch.setattr(bench, "resource", None)
    assert bench.peak_mib(torch.device("cpu")) is None
    assert bench.in_columns([{"run": "a", "peak_mib": None}]).split() == ["run", "peak_mib", "a", "?"]
