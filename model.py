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
import os
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
from config import KEYS, Key, UserError, check, nearest, parse
from data import encode, replace_file, rng

Params = dict[str, torch.Tensor]  # by nanoGPT's names, each (S, *its shape)
ROWS = 4096  # texts in one forward pass of sampling, at most
SIZES = ("block_size", "n_layer", "n_head", "n_embd", "mlp_expansion", "dropout")  # keys of a model's shape
MODEL_ARGS = {"vocab_size": Key(17, "", lo=1, hi=256), "bias": Key(False, "", choices=(False,)),
              **{name: KEYS[name] for name in SIZES}}


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


def activations(cfg: GPTConfig) -> int:
    """Numbers that the forward pass keeps for the backward pass, for each character of a batch."""
    layer = 9 * cfg.n_embd + 2 * cfg.mlp_expansion * cfg.n_embd + 2 * cfg.n_head * cfg.block_size
    return 2 * cfg.vocab_size + 2 * cfg.n_embd + cfg.n_layer * layer


def sampling_bytes(samples: int, new: int, top_k: int, cfg: GPTConfig) -> int:
    """Memory that `complete` takes at least for `samples`, of all seeds and prompts, of `new` characters."""
    return samples * (24 * new + 8 * min(top_k, cfg.vocab_size))


def memory_of(device: str) -> float:
    """Bytes of memory of the GPU, or else of this machine, or the container's share of it."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if not hasattr(os, "sysconf"):
        return math.inf  # Windows does not tell
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = Path("/sys/fs/cgroup/memory.max")
    limit = share.read_text().strip() if share.exists() else "max"
    return min(machine, int(limit)) if limit.isdecimal() else machine


def check_memory(needs: dict[str, int], device: str) -> None:
    """Raises UserError, which names the largest, if `needs`, bytes by what asks for them, cannot fit."""
    need, have = sum(needs.values()), memory_of(device)
    if need > have:
        raise UserError(f"about {need / 2**30:,.0f} GiB of memory are needed, most of it for "
                        f"{max(needs, key=needs.get)}, and {device} has {have / 2**30:,.0f}; lower these")


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
    text = torch.zeros(P, longest + new, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        text[i, :len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
    text = text.to(device).repeat(S, 1, 1)  # one row per distinct text
    length = torch.tensor([len(prompt) for prompt in prompts], device=device).expand(S, P)
    row = torch.arange(P, device=device).repeat_interleave(N).expand(S, P * N)  # the row of each sample
    out = torch.full((S, P * N, new), 0 if stop is None else stop, device=device)
    done = torch.zeros(S, P * N, dtype=torch.bool, device=device)
    for t in range(new):
        T = min(longest + t, cfg.block_size)
        start = (length - T).clamp(min=0)
        window = text.gather(2, start[:, :, None] + torch.arange(T, device=device))
        parts = zip(window.mT.split(ROWS, dim=2), (length - start - 1).split(ROWS, dim=1))
        logits = torch.cat([logits_of(w.contiguous(), at) for w, at in parts], 3)
        logits = logits[:, :, 0].mT  # (S, R, V)
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
    characters which the vocabulary lacks, and for more samples than fit in memory.
    """
    if not all(prompts):
        raise UserError("the prompt is empty; expected at least one character of the vocabulary")
    ids = [encode(prompt, vocab, f"prompt {prompt!r}") for prompt in prompts]
    need = sampling_bytes(len(gens) * len(prompts) * num_samples, new, top_k, cfg)
    check_memory({"the number and length of the samples": need}, "cpu")
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
    model = {str(name).removeprefix("_orig_mod."): w[None].float() if isinstance(w, torch.Tensor) else w
             for name, w in ckpt["model"].items() if not str(name).endswith(".attn.bias")}  # the causal mask
    args = {"mlp_expansion": 4, "dropout": 0.0, "bias": False} | ckpt["model_args"]
    return {"iter_num": 0} | ckpt | {"seeds": [KEYS["seed"].default], "model": model, "model_args": args}


def alike(value: object, model: object) -> bool:
    """Whether `value` is what `model` is: a dict with its keys, a list of what it holds one of, a tensor of
    its shape, or of its type."""
    if isinstance(model, list):
        return isinstance(value, list) and bool(value) and all(alike(v, model[0]) for v in value)
    if isinstance(model, dict):
        return isinstance(value, dict) and all(k in value and alike(value[k], m) for k, m in model.items())
    if isinstance(model, torch.Tensor):
        same = isinstance(value, torch.Tensor) and value.is_cpu and value.layout == torch.strided
        return same and (value.shape, value.dtype) == (model.shape, model.dtype)
    return type(value) is type(model)


def check_resumable(path: Path, ckpt: dict, cfg: GPTConfig) -> None:
    """Raises UserError if what resuming takes from a ckpt.pt is missing, or does not fit its model."""
    seeds, best, c = (ckpt.get(key) for key in ("seeds", "best", "config"))
    state = torch.empty(len(seeds), sum(math.prod(s) for s in shapes(cfg).values()), device="meta")
    each = {"params": state, "score": state[:, 0].double(), "iter_num": state[:, 0].long()}
    whole = {"config": {}, "iter_num": 0, "elapsed_s": 0.0, "random": [{"cpu": torch.get_rng_state()}],
             "data_sha256": "", "optimizer": {"exp_avg": state, "exp_avg_sq": state},
             "best": dict.fromkeys(best, each) if isinstance(best, dict) else {}}
    wrong = [name for name, model in whole.items() if not alike(ckpt.get(name), model)]
    if not wrong:
        c = {k: check(k, c.get(k, key.default), key, f"{path}, config") for k, key in KEYS.items()}
        if (shape_of(c, cfg.vocab_size), [c["seed"] + i for i in range(c["num_seeds"])]) != (cfg, seeds):
            wrong = ["config"]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)} not as train_with_eval.py writes it, the run cannot be "
                        "resumed; restore the file, or train anew")


def load_checkpoint(path: Path, dataset: str = "") -> tuple[dict, GPTConfig]:
    """Read a checkpoint: (its dict, its GPTConfig). nanoGPT's is taken too, with the vocabulary of `dataset`.

    Raises UserError as `read_tensors` does, and if it is not of this GPT, or of another vocabulary.
    """

    def need(good: bool, wrong: str) -> None:
        if not good:
            raise UserError(f"{path}: {wrong}; expected a checkpoint of train_with_eval.py or of nanoGPT")

    ckpt = read_tensors(path)
    need(alike(ckpt, {"model": {}, "model_args": {}}), "it has no dicts model and model_args")
    ours = "seeds" in ckpt
    ckpt = ckpt if ours else from_nanogpt(ckpt)
    model, args, seeds, iters = (ckpt.get(key) for key in ("model", "model_args", "seeds", "iter_num"))
    unknown = ", ".join(str(name) for name in args if name not in MODEL_ARGS)
    need(not unknown, f"its model_args have {unknown}, which this repository's GPT has not")
    cfg = GPTConfig(**{name: check(name, args.get(name), key, f"{path}, model_args")
                       for name, key in MODEL_ARGS.items()})
    need(cfg.n_embd % cfg.n_head == 0, f"n_embd = {cfg.n_embd} is not divisible by n_head = {cfg.n_head}")
    need(isinstance(seeds, list) and all(type(s) is int for s in seeds) and 0 < len(seeds) == len(set(seeds)),
         "its seeds are not distinct whole numbers")
    each = iters if isinstance(iters, list) else [iters] * len(seeds)
    need(len(each) == len(seeds) and all(type(i) is int and i >= 0 for i in each), "iter_num is no iteration")
    meant = {name: torch.empty(len(seeds), *shape, device="meta") for name, shape in shapes(cfg).items()}
    meant["lm_head.weight"] = meant["transformer.wte.weight"]
    wrong = [str(name) for name in meant | model if not alike(model.get(name), meant.get(name))]
    need(not wrong, f"{', '.join(wrong[:3])}: not what its model_args describe, a GPT without biases")
    need(model["lm_head.weight"].equal(model["transformer.wte.weight"]), "lm_head and wte are not tied")
    if ours and "optimizer" in ckpt:
        check_resumable(path, ckpt, cfg)

    own = ckpt.get("vocab")
    if own is None and not dataset:
        raise UserError(f"{path} holds no vocabulary; name the data it was trained on, as --dataset=as_math")
    vocab = data.load(dataset).vocab if dataset else own
    need(own in (None, vocab), f"its vocabulary is not that of data/{dataset}")
    need(isinstance(vocab, str) and len(vocab) == len(set(vocab)) == cfg.vocab_size,
         f"vocab_size = {cfg.vocab_size} is not that of {f'data/{dataset}' if dataset else 'its own vocab'}")
    return ckpt | {"vocab": vocab}, cfg


def load_model(out_dir: str, name: str, model_seed: int, dataset: str = "") -> tuple[Params, GPTConfig, dict]:
    """One trained seed, on the CPU: (parameters with S = 1, its GPTConfig, the checkpoint's dict).

    `model_seed` -1 is the first seed; the dict's `model_seed` and `iter_num` are that seed's own. Raises
    UserError as `load_checkpoint` does, and for a missing folder or a seed that was not trained.
    """
    if not Path(out_dir).is_dir():
        raise UserError(f"no folder {out_dir}; expected the out_dir of a run of train_with_eval.py")
    ckpt, cfg = load_checkpoint(Path(out_dir) / name, dataset)
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
            "model_seed": Key(-1, "which trained seed; -1 is the first", lo=-1),
            "dataset": Key("", "whose vocabulary a checkpoint without one, nanoGPT's, was trained with")}


def open_run(argv: list[str], keys: dict[str, Key], description: str):
    """Read a tool's command line of RUN_KEYS and `keys`: (its settings, then what `load_model` returns)."""
    keys = RUN_KEYS | keys
    args = {name: key.default for name, key in keys.items()} | parse(argv, keys, description)[0]
    return args, *load_model(*(args[name] for name in RUN_KEYS))


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
