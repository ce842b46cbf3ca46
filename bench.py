"""Time the training of run configs, and what one would write instead, on the same data in the same process:
  python bench.py config/train_math_mini_14.py --num_seeds=1,8 --baseline=plain,jax

The baselines: `plain`, a nanoGPT-style loop, eager, batches stacked on the host; `jax`, the same update in
float32 and without dropout, jitted, scanned over iterations and vmapped over seeds. A line for each config
and number of seeds; its figures are for all the seeds, which the plain loop trains in turn:
ms_iter, ms_eval: of an iteration, of an evaluation, medians; times_faster: a baseline's ms_iter over ours
s_start: until the engine stands, compiled, and has evaluated and updated once; s_full: a whole run, projected
"""
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import config
import data
import engine
import train_with_eval as trainer
from config import Key, UserError
from data.batches import Batches
from data.files import replace_file
from engine.pytorch import autocast
from engine.run import fresh
from model import GPTConfig, Params, init_weights, seeds_of, shape_of, unflatten

KEYS = {
    "num_seeds": Key("1", "numbers of seeds to time, such as 1,8,64"),
    "seconds": Key(5.0, "how long to time the iterations of each", lo=0.01, hi=600),
    "baseline": Key("none", "what to compare with", choices=("none", "plain", "jax", "plain,jax")),
    "json": Key("", "file for the figures as well; by default none is written", path=True),
    **{name: config.KEYS[name] for name in ("device", "dtype", "compile")},
}


def plain_logits(p: Params, ids: torch.Tensor, cfg: GPTConfig, dropout: float = 0.0) -> torch.Tensor:
    """nanoGPT's forward pass of one seed: token ids (B, T) -> logits (B, T, vocab_size)."""

    def norm(x, name):
        return F.layer_norm(x, (cfg.n_embd,), p[name + ".weight"])

    wte, wpe = p["transformer.wte.weight"], p["transformer.wpe.weight"]
    x = F.dropout(F.embedding(ids, wte) + wpe[:ids.shape[1]], dropout)
    for h in (f"transformer.h.{i}." for i in range(cfg.n_layer)):
        q, k, v = (y.unflatten(2, (cfg.n_head, -1)).transpose(1, 2) for y in
                   F.linear(norm(x, h + "ln_1"), p[h + "attn.c_attn.weight"]).chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).transpose(1, 2)
        x = x + F.dropout(F.linear(y.flatten(2), p[h + "attn.c_proj.weight"]), dropout)
        y = F.gelu(F.linear(norm(x, h + "ln_2"), p[h + "mlp.c_fc.weight"]))
        x = x + F.dropout(F.linear(y, p[h + "mlp.c_proj.weight"]), dropout)
    return F.linear(norm(x, "transformer.ln_f"), wte)


def plain_updates(c: dict, dataset: data.Dataset) -> Callable[[], float]:
    """nanoGPT's training of one seed: makes an update on a random batch, and returns the loss before."""
    ids, T, device, iteration = dataset.train, c["block_size"], torch.device(c["device"]), itertools.count()
    cfg = shape_of(c, len(dataset.vocab))
    weights = unflatten(init_weights(cfg, [c["seed"]]), cfg)
    p = {name: w[0].to(device).clone().requires_grad_() for name, w in weights.items()}
    groups = [{"params": [w for w in p.values() if w.dim() == dim], "weight_decay": decay}
              for dim, decay in ((2, c["weight_decay"]), (1, 0.0))]
    optimizer = torch.optim.AdamW(groups, betas=(c["beta1"], c["beta2"]), fused=device.type == "cuda")

    def update() -> float:
        """One update: the loss before."""
        offsets = torch.randint(len(ids) - T, (c["batch_size"],))
        x, y = (torch.stack([torch.from_numpy(ids[i + k:i + k + T].astype(np.int64)) for i in offsets])
                for k in (0, 1))
        rate = trainer.learning_rate(next(iteration), c)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, getattr(torch, c["dtype"])):
            logits = plain_logits(p, x.to(device), cfg, c["dropout"])
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.to(device).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), c["grad_clip"] or math.inf)
        optimizer.step()
        return loss.item()

    return update


def import_jax(c: dict) -> None:
    """Make jax, jnp and optax names of this module, for a config's device and as many threads as PyTorch has.

    Raises UserError if they are not installed.
    """
    global jax, jnp, optax
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))
    try:
        import jax
        import jax.numpy as jnp
        import optax
        jax.config.update("jax_platforms", c["device"])
        jax.config.update("jax_default_matmul_precision", "highest")  # float32 on a GPU too
        jax.devices()
    except (ImportError, RuntimeError):
        name = "'jax[cuda13]'" if c["device"] == "cuda" else "jax"
        raise UserError(f"--baseline=jax needs packages for {c['device']}: pip install {name} optax, "
                        "or leave it out") from None


class JaxLoop:
    """The same training in JAX; but for `train`, methods are of one seed, p its parameters by name."""

    def __init__(self, c: dict, dataset: data.Dataset):
        self.cfg, self.text = shape_of(c, len(dataset.vocab)), jnp.asarray(dataset.train.astype(np.int32))
        params = unflatten(init_weights(self.cfg, seeds_of(c)), self.cfg)
        params = {name: jnp.asarray(weight.numpy()) for name, weight in params.items()}
        rate = optax.warmup_cosine_decay_schedule(
            c["learning_rate"] / (c["warmup_iters"] + 1), c["learning_rate"], c["warmup_iters"],
            max(c["lr_decay_iters"], c["warmup_iters"] + 1), c["min_lr"])
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(c["grad_clip"] or math.inf),
            optax.adamw(rate, c["beta1"], c["beta2"], weight_decay=c["weight_decay"],
                        mask={name: ".ln_" not in name for name in params}))
        self.state = params, jax.vmap(self.optimizer.init)(params)
        self.scan = jax.jit(partial(jax.lax.scan, jax.vmap(self.update)), donate_argnums=0)

    def logits(self, p: dict, ids):
        """Token ids (B, T) -> logits (B, T, vocab_size)."""
        B, T = ids.shape

        def norm(x, name):
            x = x - x.mean(-1, keepdims=True)
            return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p[name + ".weight"]

        past = jnp.tril(jnp.ones((T, T), bool))
        x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][:T]
        for h in (f"transformer.h.{i}." for i in range(self.cfg.n_layer)):
            qkv = norm(x, h + "ln_1") @ p[h + "attn.c_attn.weight"].T
            q, k, v = (y.reshape(B, T, self.cfg.n_head, -1) for y in jnp.split(qkv, 3, axis=2))
            weight = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[3] ** -0.5
            weight = jax.nn.softmax(jnp.where(past, weight, -jnp.inf))
            y = jnp.einsum("bhqk,bkhd->bqhd", weight, v).reshape(B, T, -1)
            x = x + y @ p[h + "attn.c_proj.weight"].T
            y = jax.nn.gelu(norm(x, h + "ln_2") @ p[h + "mlp.c_fc.weight"].T, approximate=False)
            x = x + y @ p[h + "mlp.c_proj.weight"].T
        return norm(x, "transformer.ln_f") @ p["transformer.wte.weight"].T

    def loss(self, p: dict, offsets):
        """Mean cross-entropy of the windows at `offsets` (B,)."""
        window = self.text[offsets[:, None] + jnp.arange(self.cfg.block_size + 1)]
        logits = self.logits(p, window[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()

    def update(self, state: tuple, offsets):
        """One update on the windows at `offsets` (B,): (the next state, the loss before)."""
        p, optimizer = state
        loss, grad = jax.value_and_grad(self.loss)(p, offsets)
        change, optimizer = self.optimizer.update(grad, optimizer, p)
        return (optax.apply_updates(p, change), optimizer), loss

    def train(self, batches: np.ndarray) -> np.ndarray:
        """n updates of every seed on `batches` (n, S, B) of offsets: the losses before each (n, S)."""
        self.state, losses = self.scan(self.state, batches)
        return np.asarray(losses)


def median_seconds(call: Callable, seconds: float = 0.0) -> float:
    """Of a call that returns when all is done, made for `seconds` and at least three times."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def update_seconds(train: Callable, c: dict, dataset: data.Dataset, seconds: float) -> tuple[float, float]:
    """Seconds of the first update, which may compile, and of a later one: the median of some in a burst, as
    the trainer makes them. `train(it, batches)` makes those from iteration `it` on."""
    batches = Batches(seeds_of(c), len(dataset.train) - c["block_size"], c["batch_size"], 10**9,
                      engine.host_memory(c["device"]))
    start = time.perf_counter()
    train(0, batches.get(0, 1))
    first = time.perf_counter() - start
    one = median_seconds(lambda: train(0, batches.get(0, 1)))
    # a burst of a size that divides a block of batches
    n = max(n for n in (1, 5, 10, 50, 250) if n == 1 or n * one < trainer.LOOK_EVERY_S)
    begin = itertools.count(0, n)

    def burst():
        it = next(begin)
        train(it, batches.get(it, n))

    burst()  # JAX compiles for its length
    return first, median_seconds(burst, seconds) / n


def time_config(c: dict, dataset: data.Dataset, seconds: float) -> dict:
    """Time one config, c["num_seeds"] seeds at once: the figures of a row."""
    start = time.perf_counter()
    engine.begin(c["seed"])
    cfg, seeds = shape_of(c, len(dataset.vocab)), seeds_of(c)
    text = torch.from_numpy(dataset.train.astype(np.int32))
    model = engine.make(c, cfg, fresh(cfg, seeds), text)
    evaluate = partial(trainer.evaluate, model, dataset, seeds, 0, c)
    evaluate()
    begin = time.perf_counter() - start
    first, iteration = update_seconds(
        lambda it, batches: model.update(torch.from_numpy(batches), trainer.rates(it, len(batches), c)),
        c, dataset, seconds)
    begin, evaluation = begin + first, median_seconds(evaluate)
    evaluations = c["max_iters"] // c["eval_interval"] + 1
    return {"run": Path(c["out_dir"]).name, "step": c["step"], "seeds": len(seeds),
            "ms_iter": 1e3 * iteration, "ms_seed_iter": 1e3 * iteration / len(seeds),
            "ms_eval": 1e3 * evaluation, "s_start": begin,
            "s_full": begin + c["max_iters"] * iteration + evaluations * evaluation}


def time_plain(c: dict, dataset: data.Dataset, seconds: float) -> dict:
    """Time the plain loop with one seed: its figures, as if for all."""
    update = plain_updates(c, dataset)
    update()
    return {"ms_iter": 1e3 * c["num_seeds"] * median_seconds(update, seconds)}


def time_jax(c: dict, dataset: data.Dataset, seconds: float) -> dict:
    """Time JAX's updates of all seeds at once: its figures."""
    loop = JaxLoop(c, dataset)
    first, iteration = update_seconds(lambda it, batches: loop.train(batches), c, dataset, seconds)
    return {"s_compile": first, "ms_iter": 1e3 * iteration}


def in_words(figures: dict) -> str:
    """`figures` in a line, each after its name."""
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in figures.items())


def main(argv: list[str]) -> None:
    """Time what the command line says and print the figures."""
    explicit, paths = config.parse(argv, KEYS, __doc__, positional="CONFIG")
    args, key = config.defaults(KEYS) | explicit, config.KEYS["num_seeds"]
    counts = [config.check("num_seeds", config.from_text(n, key), key, "command line")
              for n in args["num_seeds"].split(",")]
    jobs, rows = [], []
    for path, n in itertools.product(paths or ["config/train_math_mini_14.py"], counts):
        changed = {name: value for name, value in explicit.items() if name in config.KEYS}
        c = engine.resolve(config.read([path], __doc__)[0] | changed | {"num_seeds": n})
        dataset = data.load(c["dataset"])
        trainer.check_together(c, dataset)
        jobs.append((c, dataset, args["seconds"]))
    if "jax" in args["baseline"]:
        import_jax(c)
    machine = {"device": c["device"], "name": engine.device_name(c["device"]),
               "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(in_words(machine))
    for job in jobs:
        row = time_config(*job)
        for name, timed in (("plain", time_plain), ("jax", time_jax)):
            if name in args["baseline"]:
                figures = timed(*job)
                figures["times_faster"] = figures["ms_iter"] / row["ms_iter"]
                row |= {f"{name}_{figure}": value for figure, value in figures.items()}
        print(in_words(row))
        rows.append(row)
    if args["json"]:
        replace_file(Path(args["json"]), (json.dumps(machine | {"rows": rows}, indent=1) + "\n").encode())
        print(f"wrote {args['json']}")


if __name__ == "__main__":
    config.run(main)
