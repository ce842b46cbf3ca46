"""The benchmark: its count of work, its command line, and that the plain loop is the same training."""
import pytest
import torch

import bench
from bench import PlainLoop, seed_counts, table, work
from config import UserError
from helpers import settings
from model import GPTConfig


def test_work_by_hand():
    """One seed, one window of two tokens, width 1, vocabulary of 3.

    Matrices: wte 3, c_attn 3, c_proj 1, c_fc 1, c_proj 1 and the head 3 again: 12, times 6, and 12 * 2 * 1
    for attention, for each of 2 tokens. Activations: 2 * 3 + 2 + 9 + 2 + 2 * 2 = 23 a token; weights 9, wpe 2
    and LayerNorm 3.
    """
    cfg = GPTConfig(block_size=2, vocab_size=3, n_embd=1)
    assert work(cfg, 1, 1) == (2 * (6 * 12 + 24), 4 * (4 * 2 * 23 + 8 * 14))
    assert work(cfg, 5, 1) == tuple(5 * x for x in work(cfg, 1, 1))


def test_seed_counts():
    assert seed_counts("1,8,64") == [1, 8, 64]
    for text in ("", "0", "1,,2", "8x", "-1"):
        with pytest.raises(UserError, match="num_seeds"):
            seed_counts(text)


def test_the_plain_loop_learns(datasets):
    """Else the ratio would be against something that is no training."""
    loop = PlainLoop(settings(warmup_iters=0, batch_size=64), datasets["math"])
    torch.manual_seed(0)
    first = loop.loss().item()
    for _ in range(60):
        loop.advance()
    assert loop.loss().item() < first - 0.7


def test_timing_goes_on_past_the_end_of_a_run(datasets, monkeypatch):
    """More iterations are timed than the config, or its schedule, has."""
    monkeypatch.setattr(bench.trainer, "BLOCK", 30)
    steps = []
    monkeypatch.setattr(bench.trainer.Run, "evaluate", lambda run: steps.append(run.iter_num))
    assert bench.measure(settings(batch_size=8, max_iters=25), datasets["math"], 0.3)["ms_iter"] > 0
    assert max(steps) <= 30


def test_the_table_has_every_figure(datasets):
    row = bench.measure(settings(batch_size=8), datasets["math"], 0.01)
    lines = table([row]).splitlines()
    assert lines[0].split() == [*row] and len(lines[1].split()) == len(row)
    assert all(v > 0 for k, v in row.items() if k != "run")
