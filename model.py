"""The GPT of all the experiments, and its checkpoints.

GPT-2's decoder as in nanoGPT (pre-LayerNorm, learned positions, tied embedding and head, no biases), with one
difference: a leading seed axis S. S models train at once, and every product is a batched one; S = 1 is the
usual run. Token ids are (S, B, T), an activation is (S, B * T, n_embd).

Parameters are a dict of nanoGPT's names and shapes, each with S in front; the trainer keeps them in one flat
(S, P) tensor, so that an optimizer step is one elementwise operation whatever the number of layers.
"""
import io
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
from config import KEYS, Key, UserError, check, nearest
from data import rng
from data.files import replace_file

Params = dict[str, torch.Tensor]  # by nanoGPT's names, each (S, *its shape)
SIZES = ("block_size", "n_layer", "n_head", "n_embd", "mlp_expansion", "dropout")  # keys of a model's shape
MODEL_ARGS = {"vocab_size": Key(17, "", lo=1, hi=256), "bias": Key(False, "", choices=(False,)),
              **{name: KEYS[name] for name in SIZES}}
SHORT = 12  # characters of a block, up to which compiled attention is sums


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a model: what nanoGPT's GPTConfig holds, and `mlp_expansion` (nanoGPT: 4)."""
    block_size: int = 9
    vocab_size: int = 17
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 14
    mlp_expansion: int = 1
    dropout: float = 0.0
    bias: bool = False


def shape_of(c: dict, vocab_size: int) -> GPTConfig:
    """The model that a run config's settings describe."""
    return GPTConfig(vocab_size=vocab_size, **{name: c[name] for name in SIZES})


def seeds_of(c: dict) -> list[int]:
    """The seeds of a run."""
    return [c["seed"] + i for i in range(c["num_seeds"])]


def shapes(cfg: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of one seed, in nanoGPT's order, the tied head left out."""
    n, m = cfg.n_embd, cfg.mlp_expansion * cfg.n_embd
    out = {"transformer.wte.weight": (cfg.vocab_size, n), "transformer.wpe.weight": (cfg.block_size, n)}
    for i in range(cfg.n_layer):
        out |= {f"transformer.h.{i}.{name}.weight": shape for name, shape in (
            ("ln_1", (n,)), ("attn.c_attn", (3 * n, n)), ("attn.c_proj", (n, n)),
            ("ln_2", (n,)), ("mlp.c_fc", (m, n)), ("mlp.c_proj", (n, m)))}
    return out | {"transformer.ln_f.weight": (n,)}


def count_parameters(cfg: GPTConfig) -> int:
    """Parameters of one seed without the position embeddings, as nanoGPT and the paper count."""
    return sum(math.prod(s) for name, s in shapes(cfg).items() if "wpe" not in name)


def step_flops(cfg: GPTConfig, seeds: int, batch_size: int) -> int:
    """Floating-point operations of the products in an iteration of PyTorch's step.

    For each token 6 a weight of a matrix (forward 2, backward 4), 12 n_layer n_embd T for attention, and 4 a
    weight of the embedding, which is a product too.
    """
    n, T, table = cfg.n_embd, cfg.block_size, cfg.vocab_size * cfg.n_embd
    matrices = table + sum(math.prod(s) for name, s in shapes(cfg).items() if ".h." in name and len(s) == 2)
    return seeds * batch_size * T * (6 * matrices + 12 * cfg.n_layer * n * T + 4 * table)


def decayed(cfg: GPTConfig) -> torch.Tensor:
    """(P,) 1.0 where weight decay acts: matrices and embeddings, never LayerNorm, which the name tells."""
    return torch.cat([torch.full((math.prod(s),), float(".ln_" not in k)) for k, s in shapes(cfg).items()])


def init_weights(cfg: GPTConfig, seeds: list[int]) -> torch.Tensor:
    """Initial parameters (S, P): N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), LayerNorm 1.

    A seed's row is a function of that seed alone.
    """
    rows = []
    for seed in seeds:
        gen, parts = rng(seed, "weights"), []
        for name, shape in shapes(cfg).items():
            std = 0.02 / math.sqrt(2 * cfg.n_layer) if name.endswith("c_proj.weight") else 0.02
            parts.append(np.ones(shape) if ".ln_" in name else gen.standard_normal(shape) * std)
        rows.append(np.concatenate([p.ravel() for p in parts]))
    return torch.from_numpy(np.stack(rows)).float()


def unflatten(flat: torch.Tensor, cfg: GPTConfig) -> Params:
    """Views of a flat (S, P) tensor as {name: (S, *shape)}."""
    parts = flat.split([math.prod(s) for s in shapes(cfg).values()], dim=1)
    return {name: p.view(-1, *s) for p, (name, s) in zip(parts, shapes(cfg).items())}


def flatten(model: Params, cfg: GPTConfig) -> torch.Tensor:
    """The flat (S, P) tensor of a checkpoint's `model`."""
    return torch.cat([model[name].flatten(1) for name in shapes(cfg)], dim=1)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(S, M, I), (S, O, I) -> (S, M, O)."""
    if len(weight) == 1:  # a plain product; by it attention's sums were measured
        return F.linear(x[0], weight[0]).unsqueeze(0)
    return x @ weight.mT


def layer_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """LayerNorm without bias over the last dimension of (S, M, n), with each seed's gain (S, n)."""
    if len(weight) == 1:  # 4% of an iteration of a wide model
        return F.layer_norm(x, x.shape[-1:], weight[0])
    return F.layer_norm(x, x.shape[-1:]) * weight.unsqueeze(1)


def attention(x: torch.Tensor, p: Params, prefix: str, cfg: GPTConfig, T: int, dropout: float
              ) -> torch.Tensor:
    """Causal self-attention over each T rows of (S, B * T, n_embd) -> the same.

    Written out: PyTorch's fused kernels gain nothing at T <= 24, and their backward sums in no fixed order.
    Compiled, its two products of very small matrices are sums, which the compiler fuses with what stands
    around them: on an H200, at T = 9, an iteration of 64 seeds of n14 takes 1.95 ms, not 2.69, one of the
    MLT 3.37, not 3.73; at T = 24 sums are slower.
    """
    S, _, n = x.shape
    q, k, v = (y.reshape(-1, T, cfg.n_head, n // cfg.n_head).transpose(1, 2)
               for y in linear(x, p[prefix + "c_attn.weight"]).split(n, dim=2))  # (S * B, H, T, n / H)
    q, by_sums = q * q.shape[3] ** -0.5, torch.compiler.is_compiling() and T <= SHORT
    weight = (q.unsqueeze(3) * k.unsqueeze(2)).sum(4) if by_sums else q @ k.mT  # (S * B, H, T query, T key)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    weight = F.dropout(weight.masked_fill(future, -torch.inf).softmax(3), dropout)
    y = (weight.unsqueeze(4) * v.unsqueeze(2)).sum(3) if by_sums else weight @ v
    y = y.transpose(1, 2).reshape(S, -1, n)
    return F.dropout(linear(y, p[prefix + "c_proj.weight"]), dropout)


def forward(p: Params, tokens: torch.Tensor, cfg: GPTConfig, dropout: float = 0.0,
            last: torch.Tensor | None = None) -> torch.Tensor:
    """Token ids (S, B, T) -> logits (S, B, T, vocab_size); with `last` (S, B), of that position alone."""
    S, B, T = tokens.shape
    wte, wpe = p["transformer.wte.weight"], p["transformer.wpe.weight"]
    # a one-hot product rather than an index, whose backward adds up in no fixed order
    one_hot = tokens.unsqueeze(3) == torch.arange(cfg.vocab_size, dtype=tokens.dtype, device=tokens.device)
    x = linear(one_hot.to(wte.dtype).flatten(1, 2), wte.mT)
    x = F.dropout(x + wpe[:, :T].repeat(1, B, 1), dropout)
    for i in range(cfg.n_layer):
        h = f"transformer.h.{i}."
        x = x + attention(layer_norm(x, p[h + "ln_1.weight"]), p, h + "attn.", cfg, T, dropout)
        y = F.gelu(linear(layer_norm(x, p[h + "ln_2.weight"]), p[h + "mlp.c_fc.weight"]))
        x = x + F.dropout(linear(y, p[h + "mlp.c_proj.weight"]), dropout)
    if last is not None:
        rows = torch.arange(B, device=last.device) * T + last
        x = x.gather(1, rows.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return linear(layer_norm(x, p["transformer.ln_f.weight"]), wte).view(S, B, -1, cfg.vocab_size)


def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each prediction in nats: (..., V), (...) -> (...)."""
    flat = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten().long(), reduction="none")
    return flat.view(targets.shape)


def checkpoint(flat: torch.Tensor, cfg: GPTConfig, **others) -> dict:
    """What a checkpoint file holds: `model` (nanoGPT's names, seed axis first), `model_args` and `others`."""
    model = {name: w.detach().cpu().clone() for name, w in unflatten(flat, cfg).items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]
    return {"model": model, "model_args": asdict(cfg), **others}


def save_checkpoint(path: Path, ckpt: dict) -> None:
    """Write a checkpoint file at once, or leave the one that is there and raise UserError."""
    out = io.BytesIO()  # torch.save hides what a full disk says
    torch.save(ckpt, out)
    replace_file(path, out.getbuffer())


def read_tensors(path: Path) -> object:
    """What a checkpoint file holds, of tensors and plain values: no code in it is run.

    Raises UserError if it is missing (names those that are there), truncated, or something else.
    """
    if not path.is_file():
        there = [p.name for p in sorted(path.parent.glob("*.pt"))]
        raise UserError(f"no checkpoint {path}{nearest(path.name, there)}; "
                        f"there {'are ' + ', '.join(there) if there else 'is none in ' + str(path.parent)}")
    content = io.BytesIO(path.read_bytes())
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch.save did not write
            return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as e:  # bytes that are no checkpoint make the unpickler raise anything
        raise UserError(f"{path} is truncated or no checkpoint of tensors and plain values "
                        f"({type(e).__name__}); expected one that train_with_eval.py wrote") from None


def from_nanogpt(ckpt: dict) -> dict:
    """A checkpoint of nanoGPT as one of ours: of a single seed, and without vocabulary."""
    model = {name.removeprefix("_orig_mod."): w[None].float() for name, w in ckpt["model"].items()
             if not name.endswith(".attn.bias")}  # the causal mask
    args = {"mlp_expansion": 4, "dropout": 0.0, "bias": False} | ckpt["model_args"]
    return {"iter_num": 0} | ckpt | {"seeds": [KEYS["seed"].default], "model": model, "model_args": args}


def checked(ckpt: dict, of_data: dict) -> tuple[dict, GPTConfig]:
    """A checkpoint's dict and its GPTConfig, if all of it belongs together; `of_data` are the `vocab`,
    `numbers` and `held_out` of one that does not say them.

    Raises one of the errors that `load_checkpoint` puts into words, for whatever is not as it should be.
    """
    ckpt = {"numbers": 10, "held_out": ()} | of_data | (ckpt if "seeds" in ckpt else from_nanogpt(ckpt))
    weights, seeds, vocab, _ = (ckpt[name] for name in ("model", "seeds", "vocab", "iter_num"))
    args = ckpt["model_args"]
    cfg = GPTConfig(**{name: args[name] for name in args | MODEL_ARGS})  # neither more nor less
    for name, key in MODEL_ARGS.items():
        check(name, getattr(cfg, name), key, "its model_args")
    meant = {name: (len(seeds), *shape) for name, shape in shapes(cfg).items()}
    meant["lm_head.weight"] = meant["transformer.wte.weight"]
    shape_of_weight = {name: (*w.shape,) for name, w in weights.items()}
    wrong = [name for name in meant | weights if shape_of_weight.get(name) != meant.get(name)]
    if wrong or cfg.n_embd % cfg.n_head:
        raise ValueError(f"{', '.join(wrong[:3]) or 'n_head'} not what its model_args describe, "
                         "a GPT without biases")
    if {w.dtype for w in weights.values()} != {torch.float32}:
        raise ValueError("its tensors are not float32")
    if not weights["lm_head.weight"].equal(weights["transformer.wte.weight"]):
        raise ValueError("lm_head and wte are not tied")
    if not (len(set(vocab)) == len(vocab) == cfg.vocab_size and vocab == of_data.get("vocab", vocab)):
        raise ValueError(f"its vocabulary of {cfg.vocab_size} characters is another one, or none")
    return ckpt | {"held_out": data.pairs_of(ckpt["held_out"], "held_out", ckpt["numbers"])}, cfg


def load_checkpoint(path: Path, dataset: str = "") -> tuple[dict, GPTConfig]:
    """Read a checkpoint: (its dict, its GPTConfig). nanoGPT's is taken too, as trained on `dataset`.

    Raises UserError as `read_tensors` does, and if it is not of this GPT, or of another vocabulary.
    """
    ckpt, of_data = read_tensors(path), {}
    if dataset:
        known = data.load(dataset)
        of_data = {"vocab": known.vocab, "numbers": known.numbers, "held_out": known.held_out}
    if isinstance(ckpt, dict) and ckpt.get("vocab") is None and not dataset:
        raise UserError(f"{path} holds no vocabulary: it is not of a run here; to sample from it, name the "
                        "data that it was trained on, as --dataset=as_math")
    try:
        return checked(ckpt, of_data)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as e:
        raise UserError(f"{path}: {e or 'damaged'} ({type(e).__name__}); expected a checkpoint of "
                        "train_with_eval.py or of nanoGPT" + f", of data/{dataset}" * bool(dataset)) from None
