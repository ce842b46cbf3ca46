"""The stacked GPT against an independent plain one, its initial weights, and its checkpoints."""
import math
import pickle

import pytest
import torch

import model
from bench import plain_logits
from config import UserError
from engine.pytorch import window_losses
from helpers import SIZES, shape_of
from model import GPTConfig
from reference import SHAPES, flat_of, gpt_of, loss_of, random_weights

COUNTS = {"math": (1_456, 5_264, 19_936, 10_628_352), "facts": (1_932, 6_216, 21_840, 10_641_408),
          "both": (2_142, 6_636, 22_680, 10_647_168)}


def random_windows(cfg: GPTConfig, S: int = 3, B: int = 4) -> torch.Tensor:
    """Token ids (S, B, block_size + 1)."""
    gen = torch.Generator().manual_seed(7)
    return torch.randint(cfg.vocab_size, (S, B, cfg.block_size + 1), generator=gen)


@pytest.mark.parametrize("task", COUNTS)
def test_parameter_counts_are_the_paper_s(task):
    assert tuple(model.count_parameters(shape_of(f"{task}_mini_{size}")) for size in SIZES) == COUNTS[task]


def test_step_flops_by_hand():
    """Width 1, vocabulary of 3: c_attn 3, c_proj 1, c_fc 1, c_proj 1 and the head 3 make 9 weights.

    A token: 6 * 9, 12 * 1 * 1 * 2 for attention to both places, 4 * 3 for the embedding.
    """
    cfg = GPTConfig(block_size=2, vocab_size=3, n_embd=1)
    assert model.step_flops(cfg, 5, 4) == 5 * 4 * 2 * (54 + 24 + 12)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_those_of_plain_models(name):
    """At all positions, and at one of each text."""
    cfg = SHAPES[name]
    flat, tokens = random_weights(cfg), random_windows(cfg)[..., :-1]
    logits = model.forward(model.unflatten(flat, cfg), tokens, cfg)
    for s in range(3):
        expected = plain_logits(gpt_of(flat, s, cfg), tokens[s], cfg)
        torch.testing.assert_close(logits[s], expected, rtol=1e-9, atol=1e-9)
    last = torch.tensor([[0, 2, 1, cfg.block_size - 1]]).expand(3, 4)
    some = model.forward(model.unflatten(flat, cfg), tokens, cfg, last=last)
    torch.testing.assert_close(some[:, :, 0], logits[:, range(4), last[0]])


@pytest.mark.parametrize("name", SHAPES)
def test_losses_and_gradients_equal_those_of_plain_models(name):
    """Per seed: a gradient that sees another seed, or a mean over seeds, would differ."""
    cfg = SHAPES[name]
    flat, window = random_weights(cfg).requires_grad_(), random_windows(cfg)
    loss = window_losses(flat, window, cfg, torch.float32).mean(1)
    grad, = torch.autograd.grad(loss.sum(), flat)
    for s in range(3):
        gpt = gpt_of(flat, s, cfg)
        expected = loss_of(gpt, window[s], cfg)
        expected.backward()
        assert loss[s].item() == pytest.approx(expected.item(), rel=1e-6)
        expected = flat_of(gpt, cfg, lambda p: p.grad)
        torch.testing.assert_close(grad[s], expected, rtol=1e-4, atol=1e-6)


def test_a_seed_s_initial_weights_depend_on_that_seed_alone():
    cfg = SHAPES["deep"]
    torch.manual_seed(0)
    together = model.init_weights(cfg, [5, 6, 7])
    torch.manual_seed(1)
    assert torch.equal(together[1:2], model.init_weights(cfg, [6]))
    assert not torch.equal(together[0], together[1])


def test_initial_weights_have_the_design_s_spread():
    """N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), LayerNorm exactly 1."""
    cfg = GPTConfig(block_size=64, vocab_size=64, n_layer=3, n_head=2, n_embd=96, mlp_expansion=4)
    for name, w in model.unflatten(model.init_weights(cfg, [1]), cfg).items():
        if ".ln_" in name:
            assert (w == 1).all(), name
        else:
            std = 0.02 / math.sqrt(6) if "c_proj" in name else 0.02
            assert w.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(w.mean().item()) < 5 * std / math.sqrt(w.numel()), name


@pytest.mark.parametrize("name", SHAPES)
def test_decay_acts_on_matrices_and_embeddings_only(name):
    """By the plain model: what has two dimensions there decays, LayerNorm's vectors do not."""
    cfg = SHAPES[name]
    mask = model.unflatten(model.decayed(cfg)[None], cfg)
    plain = gpt_of(random_weights(cfg), 0, cfg)
    assert {(m == (plain[k].dim() == 2)).all().item() for k, m in mask.items()} == {True}
    assert {k for k, m in mask.items() if not m.any()} == {k for k in plain if ".ln_" in k}


def test_checkpoint_round_trip(tmp_path):
    """Saving that fails leaves it as it was, and what does not belong together is refused."""
    cfg, path = SHAPES["deep"], tmp_path / "ckpt.pt"
    flat = random_weights(cfg).float()
    saved = model.checkpoint(flat, cfg, vocab="abcdefghijk", seeds=[3, 4, 5], iter_num=[10, 20, 30])
    model.save_checkpoint(path, saved)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        model.save_checkpoint(path, {"model": lambda: None})
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"] and path.read_bytes() == before
    ckpt, cfg_read = model.load_checkpoint(path)
    assert cfg_read == cfg and ckpt["vocab"] == "abcdefghijk" and ckpt["model_args"]["bias"] is False
    assert torch.equal(model.flatten(ckpt["model"], cfg), flat)
    half = {name: weight.half() for name, weight in saved["model"].items()}
    for changed in ({"model": half}, {"seeds": [1]}, {"vocab": "aabcdefghij"}, {"vocab": "ab"}):
        model.save_checkpoint(path, saved | changed)
        with pytest.raises(UserError, match="ckpt.pt"):
            model.load_checkpoint(path)
