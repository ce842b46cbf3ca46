"""The GPT of all the experiments, and its checkpoints.

GPT-2's decoder as in nanoGPT (pre-LayerNorm, learned positions, tied embedding and head, no biases), with two
differences, both for speed:
- A leading seed axis S: S models train at once, and every product is a batched one. S = 1 is the usual run.
- Tokens last: an activation is (S, n_embd, T, B), a batch of token ids (S, T, B). The long axis B is then
  what the processor's vector lanes run along, however narrow the model.

Parameters are a dict of nanoGPT's names and shapes, each with S in front; the trainer keeps them in one flat
(S, P) tensor, so that an optimizer step is one elementwise operation whatever the number of layers.
"""
import io
import math
import pickle
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from config import KEYS, Key, UserError, nearest, parse
from data import encode, replace_file, rng

Params = dict[str, torch.Tensor]  # by nanoGPT's names, each (S, *its shape)


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
    names = ("block_size", "n_layer", "n_head", "n_embd", "mlp_expansion", "dropout")
    return GPTConfig(vocab_size=vocab_size, **{name: c[name] for name in names})


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


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(S, I, T, B), (S, O, I) -> (S, O, T, B)."""
    return (weight @ x.flatten(2)).unflatten(2, x.shape[2:])


def layer_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """LayerNorm without bias over dim 1 of (S, n_embd, T, B)."""
    x = x - x.mean(1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * weight[:, :, None, None]


def one_hot(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """(S, T, B) -> bool (S, vocab_size, T, B)."""
    ids = torch.arange(vocab_size, dtype=tokens.dtype, device=tokens.device)
    return tokens.unsqueeze(1) == ids[:, None, None]


def attention(x: torch.Tensor, p: Params, at: str, cfg: GPTConfig, dropout: float) -> torch.Tensor:
    """Causal self-attention, (S, n_embd, T, B) -> the same.

    T is at most 24: a matmul for each window would be tiny, so whole B-vectors are multiplied and summed.
    """
    T = x.shape[2]
    qkv = linear(x, p[at + "c_attn.weight"]).split(cfg.n_embd, dim=1)
    q, k, v = (y.unflatten(1, (cfg.n_head, -1)) for y in qkv)  # (S, H, n_embd / H, T, B)
    q = q * q.shape[2] ** -0.5
    weight = (q.unsqueeze(4) * k.unsqueeze(3)).sum(2)  # (S, H, T query, T key, B)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)[:, :, None]
    weight = F.dropout(weight.masked_fill(future, -torch.inf).softmax(3), dropout)
    y = (weight.unsqueeze(2) * v.unsqueeze(3)).sum(4)  # (S, H, n_embd / H, T, B)
    return F.dropout(linear(y.flatten(1, 2), p[at + "c_proj.weight"]), dropout)


def forward(p: Params, tokens: torch.Tensor, cfg: GPTConfig, dropout: float = 0.0,
            last: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens (S, T, B) -> logits (S, vocab_size, T, B); with `last` (S, B) of that position alone (T = 1)."""
    wte, wpe = p["transformer.wte.weight"], p["transformer.wpe.weight"]
    # a one-hot product rather than an index, whose backward adds up in no fixed order
    x = linear(one_hot(tokens, cfg.vocab_size).to(wte.dtype), wte.mT)
    x = F.dropout(x + wpe[:, :tokens.shape[1]].mT.unsqueeze(3), dropout)
    for i in range(cfg.n_layer):
        h = f"transformer.h.{i}."
        x = x + attention(layer_norm(x, p[h + "ln_1.weight"]), p, h + "attn.", cfg, dropout)
        y = F.gelu(linear(layer_norm(x, p[h + "ln_2.weight"]), p[h + "mlp.c_fc.weight"]))
        x = x + F.dropout(linear(y, p[h + "mlp.c_proj.weight"]), dropout)
    if last is not None:
        x = x.gather(2, last[:, None, None, :].expand(-1, x.shape[1], 1, -1))
    return linear(layer_norm(x, p["transformer.ln_f.weight"]), wte)


def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each prediction in nats: (S, V, T, B), (S, T, B) -> (S, T, B)."""
    logits = logits.float()
    return logits.logsumexp(1) - (logits * one_hot(targets, logits.shape[1])).sum(1)


def sample(logits: torch.Tensor, row: torch.Tensor, u: torch.Tensor, temperature: float, top_k: int
           ) -> torch.Tensor:
    """Draw a token for each sample (S, M), from the logits (S, R, V) of its `row`, by its `u` in [0, 1)."""
    best, ids = logits.float().topk(min(top_k, logits.shape[-1]))
    row = row[:, :, None].expand(-1, -1, best.shape[2])
    ids = ids.gather(1, row)
    if temperature == 0:
        return ids[:, :, 0]
    # the best is 0, and stays so divided by the smallest temperature that float32 can tell from 0
    cdf = ((best - best[..., :1]) / max(temperature, 1e-30)).softmax(-1).cumsum(-1).gather(1, row)
    rank = torch.searchsorted(cdf, u[:, :, None] * cdf[:, :, -1:], right=True).clamp(max=best.shape[2] - 1)
    return ids.gather(2, rank)[:, :, 0]


def merge(parent: torch.Tensor, token: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number each seed's distinct (parent, token) pairs: the group (S, M) of each entry, and an entry (S, R)
    of each group. Seeds with fewer groups repeat their last entry."""
    key, order = (parent * vocab_size + token).sort(dim=1, stable=True)
    new = F.pad(key[:, 1:] != key[:, :-1], (1, 0))
    rank = new.cumsum(1)
    group = torch.empty_like(rank).scatter_(1, order, rank)
    first = torch.arange(int(rank.max()) + 1, device=key.device).expand(len(key), -1).contiguous()
    return group, order.gather(1, torch.searchsorted(rank, first).clamp(max=key.shape[1] - 1))


@torch.no_grad()
def generate(p: Params, cfg: GPTConfig, prompts: list[np.ndarray], u: np.ndarray,
             temperature: float, top_k: int, stop: int | None = None, logits_of=None) -> np.ndarray:
    """Continue prompts, token ids each: (S, prompts, samples, new tokens), by uniforms `u` of that shape.

    A text longer than the block is cropped to its last block_size tokens. Samples of a prompt whose texts
    agree so far share a row of the forward pass, so ten cold samples cost hardly more than one. With a `stop`
    token the generation ends when every sample has produced it; what follows it is `stop` again.
    `logits_of(tokens, last)` stands in for `forward`.
    """
    device = p["transformer.wte.weight"].device
    logits_of = logits_of or (lambda tokens, last: forward(p, tokens, cfg, last=last))
    S, P, N, new = u.shape
    u = torch.from_numpy(u).to(device)
    longest = max(map(len, prompts))
    text = torch.zeros(S, P, longest + new, dtype=torch.long, device=device)  # one row per distinct text
    for i, prompt in enumerate(prompts):
        text[:, i, :len(prompt)] = torch.from_numpy(prompt.astype(np.int64)).to(device)
    length = torch.tensor([len(prompt) for prompt in prompts], device=device).expand(S, P)
    row = torch.arange(P, device=device).repeat_interleave(N).expand(S, P * N)  # the row of each sample
    out = torch.full((S, P * N, new), 0 if stop is None else stop, device=device)
    done = torch.zeros(S, P * N, dtype=torch.bool, device=device)
    for t in range(new):
        T = min(longest + t, cfg.block_size)
        start = (length - T).clamp(min=0)
        window = text.gather(2, start[:, :, None] + torch.arange(T, device=device))
        logits = logits_of(window.mT.contiguous(), length - start - 1)[:, :, 0].mT  # (S, R, V)
        token = sample(logits, row, u[..., t].reshape(S, P * N), temperature, top_k)
        if stop is not None:
            token = token.masked_fill(done, stop)
            done = done | (token == stop)
        out[:, :, t] = token
        if t == new - 1 or (stop is not None and bool(done.all())):
            break
        parent, (row, entry) = row, merge(row, token, cfg.vocab_size)
        origin = parent.gather(1, entry)
        text = text.gather(1, origin[:, :, None].expand(-1, -1, text.shape[2]))
        length = length.gather(1, origin)
        text.scatter_(2, length[:, :, None], token.gather(1, entry)[:, :, None])
        length = length + 1
    return out.view(S, P, N, new).cpu().numpy()


def complete(p: Params, cfg: GPTConfig, vocab: str, prompts: list[str], gens: list[np.random.Generator],
             new: int, num_samples: int, temperature: float, top_k: int, stop: str = "",
             logits_of=None) -> np.ndarray:
    """The texts, `new` characters long, that each seed writes after each prompt: (S, prompts, num_samples).

    `gens` holds a random generator for each seed. Raises UserError for a prompt that is empty or that has
    characters which the vocabulary lacks.
    """
    if not all(prompts):
        raise UserError("the prompt is empty; expected at least one character of the vocabulary")
    ids = [encode(prompt, vocab, f"prompt {prompt!r}") for prompt in prompts]
    u = np.stack([gen.random((len(prompts), num_samples, new), dtype=np.float32) for gen in gens])
    stop_id = vocab.index(stop) if stop and stop in vocab else None
    tokens = generate(p, cfg, ids, u, temperature, top_k, stop_id, logits_of)
    return np.ascontiguousarray(np.array(list(vocab))[tokens]).view(f"<U{new}")[..., 0]


def checkpoint(flat: torch.Tensor, cfg: GPTConfig, **others) -> dict:
    """What a checkpoint file holds: `model` (nanoGPT's names, seed axis first), `model_args` and `others`."""
    model = {name: w.detach().cpu().clone() for name, w in unflatten(flat, cfg).items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]
    return {"model": model, "model_args": asdict(cfg), **others}


def flatten(model: Params, cfg: GPTConfig) -> torch.Tensor:
    """The flat (S, P) tensor of a checkpoint's `model`."""
    return torch.cat([model[name].flatten(1) for name in shapes(cfg)], dim=1)


def save_checkpoint(path: Path, ckpt: dict) -> None:
    """Write a checkpoint file at once, or leave the one that is there and raise UserError."""
    out = io.BytesIO()  # torch.save hides what a full disk says
    torch.save(ckpt, out)
    replace_file(path, lambda f: f.write(out.getbuffer()))


def load_checkpoint(path: Path) -> tuple[dict, GPTConfig]:
    """Read a checkpoint: (its dict, its GPTConfig). Tensors and plain values only; no code in it is run.

    Raises UserError if it is missing (names those that are there), truncated, or not one of ours.
    """
    if not path.is_file():
        there = [p.name for p in sorted(path.parent.glob("*.pt"))]
        raise UserError(f"no checkpoint {path}{nearest(path.name, there)}; "
                        f"there {'are ' + ', '.join(there) if there else 'is none in ' + str(path.parent)}")
    try:
        ckpt = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path} is truncated or no checkpoint of tensors and plain values; "
                        "expected one that train_with_eval.py wrote") from None
    keys = ("model", "model_args", "vocab", "seeds", "iter_num")
    missing = [k for k in keys if not isinstance(ckpt, dict) or k not in ckpt]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; expected one that train_with_eval.py wrote")
    args, kinds = ckpt["model_args"], {f.name: f.type for f in fields(GPTConfig)}
    if not isinstance(args, dict) or {k: type(v) for k, v in args.items()} != kinds or args["bias"]:
        raise UserError(f"{path}: its model_args are not those of this repository's GPT, which has no biases")
    cfg, seeds = GPTConfig(**args), len(ckpt["seeds"])
    if not isinstance(ckpt["vocab"], str) or len(ckpt["vocab"]) != cfg.vocab_size:
        raise UserError(f"{path}: its vocab is not the {cfg.vocab_size} characters that model_args promise")
    model = ckpt["model"] if isinstance(ckpt["model"], dict) else {}
    for name, shape in shapes(cfg).items():
        found = tuple(getattr(model.get(name), "shape", ()))
        if found != (seeds, *shape):
            raise UserError(f"{path}: {name} has shape {found}, expected {(seeds, *shape)}")
    return ckpt, cfg


def load_model(out_dir: str, name: str, model_seed: int) -> tuple[Params, GPTConfig, dict]:
    """One trained seed, on the CPU: (parameters with S = 1, its GPTConfig, the checkpoint's dict).

    `model_seed` -1 is the first seed; the dict's `model_seed` and `iter_num` are that seed's own. Raises
    UserError as `load_checkpoint` does, and for a missing folder or a seed that was not trained.
    """
    if not Path(out_dir).is_dir():
        raise UserError(f"no folder {out_dir}; expected the out_dir of a run of train_with_eval.py")
    ckpt, cfg = load_checkpoint(Path(out_dir) / name)
    seeds = ckpt["seeds"]
    if model_seed != -1 and model_seed not in seeds:
        raise UserError(f"model_seed {model_seed} is not among those trained: {', '.join(map(str, seeds))}")
    i = 0 if model_seed == -1 else seeds.index(model_seed)
    own = ckpt["iter_num"]  # a number, or in a best checkpoint one for each seed
    ckpt |= {"model_seed": seeds[i], "iter_num": own[i] if isinstance(own, list) else own}
    return unflatten(flatten(ckpt["model"], cfg)[i:i + 1], cfg), cfg, ckpt


# what every tool that reads a run takes
RUN_KEYS = {"out_dir": KEYS["out_dir"],
            "ckpt": Key("ckpt.pt", "checkpoint in out_dir, such as ckpt_best_math.pt"),
            "model_seed": Key(-1, "which trained seed; -1 is the first", lo=-1)}


def open_run(argv: list[str], keys: dict[str, Key], description: str):
    """Read a tool's command line of RUN_KEYS and `keys`: (its settings, then what `load_model` returns)."""
    keys = RUN_KEYS | keys
    args = {name: key.default for name, key in keys.items()} | parse(argv, keys, description)[0]
    return args, *load_model(args["out_dir"], args["ckpt"], args["model_seed"])


def ask_run(argv: list[str], description: str, ask) -> tuple[dict, list[tuple[int, int]], np.ndarray]:
    """An evaluator's command line: (its settings, (seed, iteration) of each seed that it asks, their texts).

    The texts are what `ask` got from the seeds, one at a time: (S, prompts, num_samples).
    """
    keys = {name: KEYS[name] for name in ("num_samples", "temperature", "top_k")}
    every = {"all_seeds": Key(False, "ask every trained seed instead of model_seed alone")}
    args, *_, ckpt = open_run(argv, keys | every, description)
    asked, texts = [], []
    for seed in ckpt["seeds"] if args["all_seeds"] else [ckpt["model_seed"]]:
        run = args | {"model_seed": seed}
        p, cfg, ckpt = load_model(*(run[name] for name in RUN_KEYS))
        asked.append((seed, ckpt["iter_num"]))
        texts.append(ask(p, cfg, ckpt["vocab"], [seed], ckpt["iter_num"], **{k: args[k] for k in keys})[0])
    seeds, iters = (" to ".join(map(str, sorted({min(x), max(x)}))) for x in zip(*asked))
    print(f"{args['out_dir']}/{args['ckpt']}: seed {seeds}, iteration {iters}\n")
    return args, asked, np.array(texts)


def distinct(texts: np.ndarray) -> np.ndarray:
    """The distinct texts, stripped, of (..., N), the most frequent first and joined by "|": (...)."""
    counts = [Counter(text.strip() for text in row) for row in texts.reshape(-1, texts.shape[-1])]
    return np.array(["|".join(text for text, _ in c.most_common()) for c in counts]).reshape(texts.shape[:-1])


def tally(texts: np.ndarray) -> str:
    """Distinct texts, stripped, each with how often it occurs: "'12' x3, '7>' x1"."""
    unique, counts = np.unique([text.strip() for text in texts], return_counts=True)
    return ", ".join(f"'{text}' x{n}" for text, n in zip(unique, counts))
