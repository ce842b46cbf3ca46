"""The C++ step of a CPU against the PyTorch step that it stands in for."""
import pytest
import torch

import fused
from config import UserError
from helpers import settings, start
from model import forward, unflatten
from train_with_eval import BLOCK, Run, memory, step_kind, take, window_losses

SHAPES = {
    "n14": {},
    "wide": dict(run="facts_mini_28", num_seeds=2, weight_decay=0.1, batch_size=300),
    "deep": dict(run="both_mini_14", n_layer=3, n_head=2, n_embd=10, mlp_expansion=3, block_size=7),
    "odd": dict(n_embd=15, n_head=3, block_size=5, num_seeds=3, weight_decay=0.01, batch_size=33),
    "tiny": dict(n_embd=2, block_size=1, batch_size=1, grad_clip=0.0),
}
pytestmark = pytest.mark.skipif(fused.compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def runs(request) -> tuple[Run, Run]:
    """The same run twice, by C++ and by PyTorch, after 50 updates."""
    changed = dict(batch_size=128, warmup_iters=500) | request.param
    both = [start(compile=yes, **changed) for yes in (True, False)]
    # away from the start, where attention's gradients are so small that Adam makes steps of their rounding
    noise = 0.2 * torch.randn(both[0].state["params"].shape, generator=torch.Generator().manual_seed(0))
    for run in both:
        run.state["params"] += noise
        run.start = run.state["params"].clone()
        run.advance(50)
    assert both[0].fused and not both[1].fused
    return tuple(both)


def test_50_updates_equal_pytorch_s_to_rounding(runs):
    a, b = runs
    assert a.state["it"].item() == b.state["it"].item() == 50
    for name in ("params", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(a.state[name], b.state[name], rtol=1e-3, atol=2e-5)
    assert (a.state["params"] - a.start).abs().max() > 5e-3, "hardly anything moved: nothing was tested"


def test_losses_equal_pytorch_s(runs):
    a, b = runs
    windows = take(a.text["train"], torch.arange(40).expand(len(a.seeds), 40), a.cfg.block_size)
    expected = window_losses(a.state["params"], windows, a.cfg, torch.float32)
    found = a.fused.losses(a.state["params"], a.text["train"])
    assert found.shape == (len(a.seeds), len(a.dataset.train) - a.cfg.block_size)
    torch.testing.assert_close(found[:, :40], expected, rtol=1e-4, atol=1e-5)
    assert a.loss("train") == pytest.approx(b.loss("train"), rel=1e-5)


def test_logits_equal_pytorch_s(runs):
    """Of texts shorter than the block too, each at a position of its own."""
    run, cfg = runs[0], runs[0].cfg
    for T in {1, cfg.block_size}:
        tokens = torch.randint(cfg.vocab_size, (len(run.seeds), T, 37))
        last = torch.randint(T, (len(run.seeds), 37))
        expected = forward(unflatten(run.state["params"], cfg), tokens, cfg, last=last)
        torch.testing.assert_close(run.fused.logits(run.state["params"], tokens, last), expected,
                                   rtol=1e-4, atol=1e-5)


def test_logits_of_positions_that_lie_apart_in_memory():
    """As `generate` has them of several seeds when it samples more texts than fit one forward pass."""
    run = start(compile=True, num_seeds=2)
    tokens, last = torch.randint(run.cfg.vocab_size, (2, 9, 4)), torch.randint(9, (4, 2)).mT
    expected = run.fused.logits(run.state["params"], tokens, last.contiguous())
    for _ in range(20):
        assert torch.equal(run.fused.logits(run.state["params"], tokens, last), expected)


def test_the_estimate_of_memory_is_of_what_the_step_takes(runs):
    """Within a factor: with narrower vectors a gradient serves fewer windows."""
    run = runs[0]
    needs = memory(run.c, run.dataset)
    estimate = (needs["n_embd, n_layer and block_size"] + needs["batch_size, block_size and num_seeds"]
                - 8 * BLOCK * len(run.seeds) * run.c["batch_size"])  # but for the batches
    assert estimate / 3 < run.fused.scratch.numel() < 10 * estimate


def test_the_number_of_threads_changes_no_bit():
    weights, losses = [], []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = start(compile=True, num_seeds=2, batch_size=128)
        torch.set_num_threads(1)
        assert run.fused.threads == threads
        run.advance(20)
        weights.append(run.state["params"])
        losses.append(run.loss("train"))
    assert all(torch.equal(weights[0], w) for w in weights)
    assert all((losses[0] == x).all() for x in losses)


def test_a_loss_that_is_not_finite_is_told_apart_by_seed():
    run = start(compile=True, num_seeds=2)
    run.advance(3)
    run.state["params"][1, 5] = torch.nan
    run.advance(3)
    assert run.state["first_bad"].tolist() == [-1, 3]
    assert run.state["params"][0].isfinite().all()


def test_what_takes_the_fused_step():
    """float32 without dropout, on a CPU; all else is PyTorch's."""
    c = dict(device="cpu", dtype="float32", dropout=0.0)
    assert step_kind(c) == "fused"
    for other in (dict(device="cuda"), dict(dtype="bfloat16"), dict(dropout=0.1)):
        assert step_kind(c | other) == "torch"


def test_auto_compiles_a_run_that_is_long_enough():
    for iters, worth in ((0, False), (100, False), (30_000, True)):
        assert settings(compile="auto", max_iters=iters)["compile"] is worth


def test_without_a_compiler(monkeypatch, capsys):
    """Asked for, it is refused; else the run is trained without, and says so."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile=True: no C.. compiler"):
        settings(compile=True)
    assert settings(compile="auto", max_iters=30_000)["compile"] is False
    assert "no C++ compiler here" in capsys.readouterr().out


def test_a_folder_for_temporary_files_that_holds_no_programs_is_named(monkeypatch):
    """As one mounted noexec. A compiler that makes no library stands in for it."""
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(UserError, match="cannot load step.cpp, compiled: .*TMPDIR.*--compile=False"):
        start(compile=True)


def test_no_update_is_made_past_the_schedule():
    run = start(compile=True, max_iters=3)
    run.advance(3)
    with pytest.raises(AssertionError):
        run.advance()


def test_a_compiler_that_fails_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(UserError, match="false cannot compile step.cpp: exit code 1; .*--compile=False"):
        start(compile=True)
