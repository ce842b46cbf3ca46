"""Train num_seeds GPTs at once and evaluate them as they learn. One command a run:
  python train_with_eval.py config/train_math_mini_14.py --num_seeds=8
  python train_with_eval.py config/train_math_mini_14.py --init_from=resume

Into out_dir go config.json, results.csv (a row per evaluation and seed), ckpt.pt and ckpt_best_*.pt, and
`lock`, the id of the process that trains there, or did last.
"""
import gc
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config as configs
import data
import eval_as_math
import eval_capitals
import fused
from config import UserError
from log import COLUMNS, FILES, Lock, about, append, files, lines_before, log_to_wandb, start_wandb, summary
from model import (
    GPTConfig,
    activations,
    check_memory,
    checkpoint,
    count_parameters,
    decayed,
    flatten,
    forward,
    init_weights,
    load_checkpoint,
    losses,
    memory_of,
    sampling_bytes,
    save_checkpoint,
    shape_of,
    shapes,
    unflatten,
)
from ranks import Ranks

EVALUATORS = {"math": eval_as_math, "facts": eval_capitals}
BEST_BY = {"math": "math_acc", "facts": "facts_acc", "combined": "combined_acc"}
BLOCK = 1000  # iterations whose batches are drawn, and moved to the device, at once
BURST = 10  # iterations between two looks at the signals, the progress bar's steps
COMPILE_FROM = {"fused": 500, "torch": 3000}  # iterations from which compiling earns its time back
SAVE_EVERY_S = 30
MAY_CHANGE = ("out_dir", "init_from", "overwrite", "max_iters", "device",
              "wandb_log", "wandb_project", "wandb_run_name")  # on resume


def learning_rate(it: int, c: dict) -> float:
    """The learning rate of update `it`: linear warm-up, cosine to min_lr, then constant (nanoGPT's)."""
    if it < c["warmup_iters"]:
        return c["learning_rate"] * (it + 1) / (c["warmup_iters"] + 1)
    if it >= c["lr_decay_iters"]:
        return c["min_lr"]
    ratio = (it - c["warmup_iters"]) / (c["lr_decay_iters"] - c["warmup_iters"])
    return c["min_lr"] + 0.5 * (1 + math.cos(math.pi * ratio)) * (c["learning_rate"] - c["min_lr"])


def schedule(c: dict) -> torch.Tensor:
    """(max_iters, 3): learning rate and Adam's bias corrections 1 - beta1^t, sqrt(1 - beta2^t); t = it+1."""
    rows = [(learning_rate(it, c), 1 - c["beta1"] ** (it + 1), math.sqrt(1 - c["beta2"] ** (it + 1)))
            for it in range(c["max_iters"])]
    return torch.tensor(rows, dtype=torch.float64).view(-1, 3).float()


def draw_offsets(seeds: list[int], block: int, offsets: int, batch_size: int) -> torch.Tensor:
    """The batches of iterations block * BLOCK and on: (BLOCK, S, B) offsets, uniform in 0 .. offsets - 1."""
    draws = np.empty((BLOCK, len(seeds), batch_size), dtype=np.int32)
    for i, seed in enumerate(seeds):
        draws[:, i] = data.rng(seed, "batches", block).integers(0, offsets, draws[:, i].shape, dtype=np.int32)
    return torch.from_numpy(draws)


def take(text: torch.Tensor, offsets: torch.Tensor, block_size: int) -> torch.Tensor:
    """The windows of `text` at `offsets` (S, B), with the character after each: (S, block_size + 1, B)."""
    span = torch.arange(block_size + 1, dtype=offsets.dtype, device=text.device)[:, None]
    return text[offsets[:, None, :] + span]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; nothing at all for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


def window_losses(flat: torch.Tensor, window: torch.Tensor, cfg: GPTConfig, dtype: torch.dtype,
                  dropout: float = 0.0) -> torch.Tensor:
    """Cross-entropy of windows (S, T + 1, B) under parameters (S, P), in nats per character: (S, B)."""
    with autocast(flat.device, dtype):
        logits = forward(unflatten(flat, cfg), window[:, :-1], cfg, dropout)
    return losses(logits, window[:, 1:]).mean(1)


def update(state: dict[str, torch.Tensor], window: torch.Tensor, table: torch.Tensor, decay: torch.Tensor,
           cfg: GPTConfig, c: dict, dtype: torch.dtype) -> None:
    """One AdamW update of every seed, in place, on the batch `window` (S, T + 1, B).

    `state`: params, exp_avg, exp_avg_sq (S, P); it (1,); first_bad (S,), the first iteration whose loss was
    not finite, or -1. `table` is from `schedule`, `decay` (P,) the weight decay of each parameter.
    """
    it = state["it"]
    lr, bias1, bias2 = table.index_select(0, it)[0].unbind()

    def loss_sum(flat):
        loss = window_losses(flat, window, cfg, dtype, cfg.dropout).mean(1)
        return loss.sum(), loss  # the sum: a seed's gradient does not see the other seeds

    grad, (_, loss) = torch.func.grad_and_value(loss_sum, has_aux=True)(state["params"])
    if c["grad_clip"]:
        norm = grad.square().sum(1, keepdim=True).sqrt()
        grad = grad * (c["grad_clip"] / (norm + 1e-6)).clamp(max=1)
    m = state["exp_avg"].lerp(grad, 1 - c["beta1"])
    v = state["exp_avg_sq"].lerp(grad.square(), 1 - c["beta2"])
    state["params"].copy_(state["params"] * (1 - lr * decay) - lr / bias1 * m / (v.sqrt() / bias2 + 1e-8))
    state["exp_avg"].copy_(m)
    state["exp_avg_sq"].copy_(v)
    state["first_bad"].copy_(torch.where(loss.isfinite() | (state["first_bad"] >= 0), state["first_bad"], it))
    it += 1


def record(step, state: dict[str, torch.Tensor]):
    """`step` as the replay of one CUDA graph; `state` and the random generator are left as they were."""
    saved = {k: v.clone() for k, v in state.items()}
    random_state = torch.cuda.get_rng_state()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and lets the libraries allocate what they need
            step()
            for k, v in saved.items():
                state[k].copy_(v)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, without running
        step()
    torch.cuda.set_rng_state(random_state)
    graph.step = step  # a graph knows but addresses: what `step` holds there must live as long as it does
    return graph.replay


class Run:
    """A run in memory: what `update` needs on the device, and what evaluations and checkpoints need."""

    def __init__(self, c: dict, dataset: data.Dataset, ckpt: dict | None = None, share: slice = slice(None),
                 rank: int = 0):
        """Start `c` (without 'auto's) on `dataset`, or go on from the dict of a ckpt.pt.

        With several processes, `share` are the seeds, among those of `c`, of this one, number `rank`.
        """
        self.c, self.dataset = c, dataset
        self.seeds = seeds_of(c)[share]
        self.cfg = shape_of(c, len(dataset.vocab))
        self.device = torch.device(c["device"])
        self.dtype = getattr(torch, c["dtype"])
        self.iter_num, self.elapsed_s, self.best = 0, 0.0, {}
        self.block = -1  # of the batches that lie on the device
        params = init_weights(self.cfg, self.seeds)
        first, second = torch.zeros_like(params), torch.zeros_like(params)
        if ckpt:
            self.iter_num, self.elapsed_s = ckpt["iter_num"], ckpt["elapsed_s"]
            params = flatten(ckpt["model"], self.cfg)[share]
            first, second = (ckpt["optimizer"][k][share] for k in ("exp_avg", "exp_avg_sq"))
            self.best = {kind: {k: v[share] for k, v in best.items()} for kind, best in ckpt["best"].items()}
        self.state = {"params": params, "exp_avg": first, "exp_avg_sq": second,
                      "it": torch.tensor([self.iter_num]), "first_bad": torch.full((len(self.seeds),), -1)}
        self.state = {k: v.to(self.device, copy=True) for k, v in self.state.items()}
        ids = {"train": dataset.train, "val": dataset.val}
        self.text = {k: torch.from_numpy(v.astype(np.int32)).to(self.device) for k, v in ids.items()}
        self.batches = torch.zeros(BLOCK, len(self.seeds), c["batch_size"], dtype=torch.int32,
                                   device=self.device)
        seed_everything(self.seeds[0])
        if ckpt and rank < len(ckpt["random"]):
            torch.set_rng_state(ckpt["random"][rank]["cpu"])
            if self.device.type == "cuda" and "cuda" in ckpt["random"][rank]:
                torch.cuda.set_rng_state(ckpt["random"][rank]["cuda"])
        self.build()

    def build(self) -> None:
        """Make `self.steps(n)`, n updates: compiled, and on CUDA recorded, as the config says."""
        c, decay = self.c, decayed(self.cfg) * self.c["weight_decay"]
        table, decay = schedule(c).to(self.device), decay.to(self.device)
        step, self.window_losses, self.fused = update, window_losses, None
        if c["compile"] and step_kind(c) == "fused":
            self.fused = fused.Fused(self.cfg, len(self.seeds), c["batch_size"])
            text = self.text["train"]
            self.steps = partial(self.fused.train, self.state, text, self.batches, table, decay, c)
            return
        if c["compile"]:
            torch.compiler.reset()  # a process may compile more runs than its cache of eight takes
            # on CUDA without benchmarks that choose kernels, and with them the order of sums, run by run
            options = {"deterministic": True} if self.device.type == "cuda" else None
            step, self.window_losses = (torch.compile(f, fullgraph=True, dynamic=False, options=options)
                                        for f in (step, window_losses))

        @torch.no_grad()
        def one_step():
            offsets = self.batches.index_select(0, self.state["it"] % BLOCK)[0]
            window = take(self.text["train"], offsets, self.cfg.block_size)
            step(self.state, window, table, decay, self.cfg, c, self.dtype)

        if self.device.type == "cuda" and c["max_iters"] > self.iter_num:
            one_step = record(one_step, self.state)

        def steps(n):
            for _ in range(n):
                one_step()

        self.steps = steps

    def advance(self, iterations: int = 1) -> None:
        """Some updates; draws the next block of batches when one begins."""
        end = self.iter_num + iterations
        while self.iter_num < end:
            block = self.iter_num // BLOCK
            if block != self.block:
                offsets = len(self.dataset.train) - self.cfg.block_size
                self.batches.copy_(draw_offsets(self.seeds, block, offsets, self.c["batch_size"]))
                self.block = block
            n = min(end, (block + 1) * BLOCK) - self.iter_num
            self.steps(n)
            self.iter_num += n

    @torch.no_grad()
    def loss(self, split: str) -> np.ndarray:
        """The exact mean loss of each seed over every window of a split, (S,), in float64."""
        if self.fused:
            losses = self.fused.losses(self.state["params"], self.text[split])
            return losses.double().mean(1).numpy()
        S, B = len(self.seeds), self.c["batch_size"]
        n = len(self.text[split]) - self.cfg.block_size
        chunks = []
        for i in range(0, n, B):
            offsets = torch.arange(i, i + B, dtype=torch.int32, device=self.device).clamp(max=n - 1)
            window = take(self.text[split], offsets.expand(S, B), self.cfg.block_size)
            chunks.append(self.window_losses(self.state["params"], window, self.cfg, self.dtype).float())
        return torch.cat(chunks, 1)[:, :n].cpu().double().mean(1).numpy()

    @torch.no_grad()
    def evaluate(self) -> list[dict]:
        """The rows of results.csv at this iteration, a dict for each seed; empty what the data has not.

        Raises UserError if a seed's loss has ceased to be finite.
        """
        train = self.loss("train")
        val = train if np.array_equal(self.dataset.train, self.dataset.val) else self.loss("val")
        self.check_finite(train, val)
        rows = [dict.fromkeys(COLUMNS, "") | dict(iter=self.iter_num, seed=s, train_loss=a, val_loss=b)
                for s, a, b in zip(self.seeds, train.tolist(), val.tolist())]
        sampling = {k: self.c[k] for k in ("num_samples", "temperature", "top_k")}
        if self.fused:
            sampling["logits_of"] = partial(self.fused.logits, self.state["params"])
        p, right, asked = unflatten(self.state["params"], self.cfg), 0, 0
        with autocast(self.device, self.dtype), fused.one_thread() if self.fused else nullcontext():
            texts = {task: EVALUATORS[task].ask(p, self.cfg, self.dataset.vocab, self.seeds, self.iter_num,
                                                **sampling) for task in self.dataset.tasks}
        for task, said in texts.items():
            evaluator = EVALUATORS[task]
            correct = evaluator.is_correct(said)
            right, asked = right + correct.sum((1, 2)), asked + correct[0].size
            for row, one in zip(rows, correct):
                row |= evaluator.totals(one)
        for i, row in enumerate(rows if self.dataset.tasks else []):
            row["combined_acc"] = float(right[i] / asked)
        return rows

    def check_finite(self, *losses: np.ndarray) -> None:
        """Raises UserError if a loss so far, one of `losses` (S,) or a weight is not finite."""
        weights = self.state["params"].isfinite().all(1).cpu().numpy()
        finite = np.all([weights, *map(np.isfinite, losses)], axis=0)
        for seed, it, good in zip(self.seeds, self.state["first_bad"].tolist(), finite):
            if it >= 0 or not good:
                first = it if it >= 0 else self.iter_num
                raise UserError(f"seed {seed}: the loss is not finite at iteration {first}; what was logged "
                                "and saved before is kept; start a new run with a lower learning_rate")

    def keep_best(self, rows: list[dict]) -> None:
        """Keep each seed's weights where its score is strictly better than ever before."""
        kinds = [*self.dataset.tasks, *(["combined"] if len(self.dataset.tasks) > 1 else [])]
        for kind in kinds:
            score = torch.tensor([row[BEST_BY[kind]] for row in rows], dtype=torch.float64)
            best = self.best.get(kind, {
                "score": torch.full_like(score, -1), "iter_num": torch.zeros(len(rows), dtype=torch.long),
                "params": torch.zeros(self.state["params"].shape)})
            better = score > best["score"]
            if better.any():
                best = self.best[kind] = {k: v.clone() for k, v in best.items()}
                best["score"][better] = score[better]
                best["iter_num"][better] = self.iter_num
                best["params"][better] = self.state["params"].cpu()[better]

    def snapshot(self, before: dict) -> dict:
        """All that a checkpoint holds of these seeds, tensors on the CPU with the seed axis first.

        `before` is `self.best` without an evaluation at this very iteration, which resuming makes again.
        Raises UserError rather than return what is not finite.
        """
        self.check_finite()
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        state = {k: self.state[k].cpu() for k in ("params", "exp_avg", "exp_avg_sq")}
        return {"state": state, "best": self.best, "before": before, "random": random}


def join(parts: list[dict]) -> dict:
    """Dicts of dicts of tensors as one, the tensors joined along the seed axis."""
    return {k: join([p[k] for p in parts]) if isinstance(v, dict) else torch.cat([p[k] for p in parts])
            for k, v in parts[0].items()}


def save(run: Run, folder: Path, ranks: Ranks, rows: list[dict], before: dict) -> None:
    """Write the best checkpoints, then the latest, of all ranks' seeds; `before` as `snapshot` has it."""
    parts = ranks.gather(run.snapshot(before))
    if parts is None:
        return
    random = [part.pop("random") for part in parts]  # dropout's, of each rank
    whole = join(parts)
    about = {"config": run.c, "vocab": run.dataset.vocab, "data_sha256": run.dataset.sha256,
             "seeds": seeds_of(run.c)}
    for kind, best in whole["best"].items():
        save_checkpoint(folder / f"ckpt_best_{kind}.pt", checkpoint(
            best["params"], run.cfg, **about, iter_num=best["iter_num"].tolist(),
            metrics={BEST_BY[kind]: best["score"].tolist()}))
    state = whole["state"]
    save_checkpoint(folder / "ckpt.pt", checkpoint(
        state["params"], run.cfg, **about, iter_num=run.iter_num, metrics=rows, best=whole["before"],
        random=random, optimizer={k: state[k] for k in ("exp_avg", "exp_avg_sq")}, elapsed_s=run.elapsed_s))


def seeds_of(c: dict) -> list[int]:
    """The seeds of a run."""
    return [c["seed"] + i for i in range(c["num_seeds"])]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch; deterministic cuDNN, no TF32, denormal numbers taken as zero."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(True)


def resolve(c: dict) -> dict:
    """`c` with every 'auto' decided. Raises UserError for what this machine has not."""
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = c["device"] if c["device"] != "auto" else "cuda" if have["cuda"] else "cpu"
    if not have[device]:
        raise UserError(f"--device={device}: there is none here; expected one of "
                        + ", ".join(k for k, v in have.items() if v))
    dtype = c["dtype"]
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" and c["n_layer"] > 1 else "float32"
    c = c | {"device": device, "dtype": dtype}
    compiler = fused.compiler() if device == "cpu" else shutil.which(os.environ.get("CC", "gcc"))
    found = compiler is not None and device != "mps"
    compiled = c["compile"]
    if compiled is True and not found:
        raise UserError("--compile=True: no C++ compiler here; install one, or leave --compile=auto")
    if compiled == "auto":
        worth = c["max_iters"] >= COMPILE_FROM[step_kind(c)]
        compiled = found and worth
        if worth and not found:
            print("no C++ compiler here: training without, which is slower by far; install g++ or clang++")
    return c | {"compile": compiled}


def step_kind(c: dict) -> str:
    """What compiles the step of a config whose device and dtype are decided: fused (our C++), or torch."""
    can = c["device"] == "cpu" and c["dtype"] == "float32" and c["dropout"] == 0
    return "fused" if can else "torch"


def memory(c: dict, dataset: data.Dataset) -> dict[str, int]:
    """Bytes that a run takes at least, by the settings that ask for them."""
    cfg, S = shape_of(c, len(dataset.vocab)), c["num_seeds"]
    weights = sum(math.prod(shape) for shape in shapes(cfg).values())
    tile, kept = 0, c["block_size"] * activations(cfg)  # numbers, those of each window for the backward pass
    if c["compile"] and step_kind(c) == "fused":  # a tile for each thread, and a gradient of each tile
        windows = fused.windows_per_tile(cfg)
        tile, kept = torch.get_num_threads() * windows * kept, weights // windows
    asked = [sampling_bytes(S * c["num_samples"] * len(e.prompts()), e.NEW_TOKENS, c["top_k"], cfg)
             for e in (EVALUATORS[task] for task in dataset.tasks)]
    return {"n_embd, n_layer and num_seeds": 32 * S * weights,  # Adam's state, gradient, best, temporaries
            "batch_size, block_size and num_seeds": S * c["batch_size"] * (4 * kept + 8 * BLOCK),
            "n_embd, n_layer and block_size": 4 * tile,
            "num_samples and num_seeds": max(asked, default=0),
            "max_iters": 180 * c["max_iters"]}  # the schedule, as Python makes it


def check_together(c: dict, dataset: data.Dataset) -> None:
    """Raises UserError for settings that are good alone but not together, or not with this text or memory."""
    if c["n_embd"] % c["n_head"]:
        raise UserError(f"n_embd = {c['n_embd']} is not divisible by n_head = {c['n_head']}; make it so")
    if c["lr_decay_iters"] < c["warmup_iters"]:
        raise UserError(f"lr_decay_iters = {c['lr_decay_iters']} is before the end of warmup_iters = "
                        f"{c['warmup_iters']}; expected at least that")
    if c["min_lr"] > c["learning_rate"]:
        raise UserError(f"min_lr = {c['min_lr']} is above learning_rate = {c['learning_rate']}; lower it")
    for split in ("train", "val"):
        n = len(getattr(dataset, split))
        if n <= c["block_size"]:
            raise UserError(f"block_size = {c['block_size']} needs more than the {n} characters of "
                            f"data/{dataset.name}/{split}.bin; choose a smaller one")
    for task in dataset.tasks:
        data.encode("".join(EVALUATORS[task].prompts()), dataset.vocab, f"data/{dataset.name}: task {task}")
    check_memory(memory(c, dataset), c["device"])


def attempt(c: dict, *others) -> Run | None:
    """A run on a GPU that has taken all the memory it will need, or None if that is too much."""
    try:
        run = Run(c, *others)
        run.c = c | {"temperature": 1e6}  # evaluations need most where all samples differ
        run.evaluate()
        run.c = c
        return run
    except RuntimeError as e:  # PyTorch's own, or what compilers, libraries and a broken recording make of it
        if not re.search("out of memory|ALLOC_FAILED", f"{e} {e.__context__}", re.IGNORECASE):
            raise
        return None


def most_seeds(c: dict, dataset: data.Dataset, tried: int, guess: int) -> int:
    """How many seeds, fewer than `tried`, fit in the GPU's memory, measured at about a quarter of a `guess`
    and at twice that: it grows linearly."""

    def free() -> int:
        gc.collect()  # what failed may lie in cycles
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()

    def peak(n: int) -> float:
        free()
        torch.cuda.reset_peak_memory_stats()
        fits = attempt(c, dataset, None, slice(n)) is not None
        return torch.cuda.max_memory_reserved() if fits else math.inf

    n = max(1, min(tried, guess) // 4)
    while math.isinf(once := peak(n)) and n > 1:
        n //= 2
    twice = peak(2 * n) if once < math.inf and 2 * n < tried else math.inf
    if math.isinf(twice):
        return n if once < math.inf else 0
    return min(tried - 1, n + int(n * (free() - once) / max(twice - once, 1)))


def fit(c: dict, dataset: data.Dataset, ckpt: dict | None, share: slice, rank: int) -> Run:
    """`Run` of these. Raises UserError for more seeds than a GPU's memory takes, with the number it does."""
    if c["device"] != "cuda":
        return Run(c, dataset, ckpt, share, rank)
    seeds, have = len(seeds_of(c)[share]), memory_of("cuda")
    need = sum(memory(c | {"num_seeds": seeds}, dataset).values())
    run = attempt(c, dataset, ckpt, share, rank) if need < 2 * have else None  # `need` is rough
    if run:
        return run
    print(f"{seeds:,} seeds do not fit in the memory of the GPU: measuring how many do")
    most = most_seeds(c, dataset, seeds, int(seeds * have / need))
    of_each = " a process" if c["num_seeds"] > seeds else ""
    raise UserError(f"num_seeds = {c['num_seeds']} does not fit in the {have / 2**30:,.0f} GiB of the GPU; "
                    f"the largest that does is {most}{of_each}; "
                    + ("lower it" if most else "lower batch_size, block_size, n_embd or n_layer"))


def read_resumed(given: dict, out_dir: Path) -> tuple[dict, dict]:
    """The config and the ckpt.pt of the run in `out_dir`, with what of `given` may change.

    Raises UserError for a setting that differs from the run's and may not.
    """
    if not (out_dir / "ckpt.pt").is_file():
        raise UserError(f"no {out_dir}/ckpt.pt to resume; train without --init_from=resume first")
    ckpt, _ = load_checkpoint(out_dir / "ckpt.pt")
    if not {"optimizer", "best"} <= ckpt.keys():
        raise UserError(f"{out_dir}/ckpt.pt cannot be resumed: it is not the latest state of a run here")
    c = {name: ckpt["config"].get(name, key.default) for name, key in configs.KEYS.items()}
    for name, value in given.items():
        if value != c[name] and value != "auto" and name not in MAY_CHANGE:
            raise UserError(f"{name} = {value} differs from the run's {c[name]}, which resuming cannot "
                            "change; leave it out, or start a new run")
    if given.get("device", "auto") not in ("auto", c["device"]):
        print(f"warning: the run was on {c['device']}; results go on equal to rounding only")
    c |= {name: given[name] for name in MAY_CHANGE if given.get(name, "auto") != "auto"}
    c["out_dir"] = str(out_dir)
    if c["max_iters"] < ckpt["iter_num"]:
        raise UserError(f"max_iters = {c['max_iters']} is below the {ckpt['iter_num']} that the run has done")
    return c, ckpt


class Signals:
    """SIGINT and SIGTERM as a number to look at between two iterations; a second one acts at once."""

    def __enter__(self):
        self.caught = 0
        self.before = {n: signal.signal(n, self.catch) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def catch(self, number, frame):
        self.caught = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(run: Run, folder: Path, signals: Signals, ranks: Ranks) -> int:
    """The training loop: evaluate, log and save at every eval_interval, update in between.

    Returns the signal that ended it, or 0.
    """
    c, saved, rows = run.c, time.monotonic(), []
    with tqdm(total=c["max_iters"], initial=run.iter_num, unit="it", dynamic_ncols=True,
              disable=ranks.rank > 0) as bar:
        started = time.monotonic() - run.elapsed_s
        while not (caught := ranks.most(signals.caught)):
            if run.iter_num % c["eval_interval"] == 0 or run.iter_num == c["max_iters"]:
                own = run.evaluate()
                run.elapsed_s = time.monotonic() - started
                before = dict(run.best)
                run.keep_best(own)
                parts = ranks.gather(own)
                if parts:
                    rows = [row | {"elapsed_s": round(run.elapsed_s, 2)} for part in parts for row in part]
                    append(folder / "results.csv", rows)
                    log_to_wandb(c, rows)
                    bar.set_postfix_str(summary(rows))
                caught = ranks.most(signals.caught)
                stop = caught or run.iter_num == c["max_iters"]
                if stop or ranks.most(time.monotonic() - saved >= SAVE_EVERY_S):
                    save(run, folder, ranks, rows, before)
                    saved = time.monotonic()
                if stop:
                    return caught
            # up to the next evaluation, in bursts
            left = min(c["eval_interval"] - run.iter_num % c["eval_interval"], c["max_iters"] - run.iter_num)
            run.advance(min(left, BURST))
            bar.update(min(left, BURST))
        run.elapsed_s = time.monotonic() - started
        save(run, folder, ranks, rows, run.best)
    return caught


def plan(c: dict, given: dict, folder: Path, ranks: Ranks, lock: Lock
         ) -> tuple[dict, dict | None, list[str]]:
    """A run's config without 'auto's; if it is resumed its ckpt.pt, and the lines that its log begins with.

    Raises UserError for settings that cannot be, and for a new run where there is one.
    """
    ckpt, lines = None, []
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out_dir = {folder} is a file; expected a folder, or a name for a new one")
    lock.look()
    if c["init_from"] == "resume":
        c, ckpt = read_resumed(given, folder)
        lines = lines_before(folder / "results.csv", ckpt["iter_num"])
        if c["dropout"] and len(ckpt["random"]) != ranks.size:
            raise UserError(f"the run has dropout and was trained by {len(ckpt['random'])} process(es); "
                            f"resume it with as many, not {ranks.size}")
    elif not c["overwrite"]:
        old = files(folder)
        if old:
            raise UserError(f"{folder} already holds a run ({old[0].name}); go on with --init_from=resume, "
                            "replace it with --overwrite=True, or choose another --out_dir")
    c = resolve(c)
    dataset = data.load(c["dataset"])
    if ckpt and (ckpt["vocab"], ckpt["data_sha256"]) != (dataset.vocab, dataset.sha256):
        raise UserError(f"{folder}/ckpt.pt was trained on another text than data/{dataset.name} holds now")
    seeds = len(range(c["num_seeds"])[ranks.share(c["num_seeds"])])
    # one seed at least must fit on a GPU; how many do is for `fit` to say
    check_together(c | {"num_seeds": 1 if c["device"] == "cuda" else seeds}, dataset)
    return c, ckpt, lines


def clear(folder: Path, c: dict) -> None:
    """Remove an older run's files, if `c` begins a new one, and what a killed process left half written."""
    old = files(folder) if c["init_from"] == "scratch" else []
    for path in old + files(folder, [f".{name}.*.part" for name in FILES]):
        path.unlink()


def describe(run: Run, folder: Path, lines: list[str]) -> None:
    """Write config.json and the beginning of results.csv, and say what will run."""
    c = run.c
    step = step_kind(c) if c["compile"] else "eager"
    notes = about(c, count_parameters(run.cfg), seeds_of(c), run.dataset, step)
    for name, text in (("config.json", json.dumps(notes, indent=1)),
                       ("results.csv", "\n".join([",".join(COLUMNS), *lines]))):
        data.replace_file(folder / name, lambda f, text=text: f.write(f"{text}\n".encode()))
    print(f"{folder}: {notes['parameters']:,} parameters, {c['num_seeds']} seed(s) from {c['seed']}, "
          f"{c['device']} ({notes['device']}), {c['dtype']}, step: {step}\nreference losses: memoriser "
          f"{notes['loss_floor']:.3f}, rule-follower {notes['rule_loss']:.3f}")


def main(argv: list[str]) -> int:
    """Train as the command line says. Returns the exit code: 0, or 128 + the signal that ended the run."""
    c, given = configs.read(argv, __doc__)
    folder = Path(c["out_dir"])
    with Ranks() as ranks, Lock(folder) as lock, Signals() as signals:
        c, ckpt, lines = ranks.from_first(lambda: plan(c, given, folder, ranks, lock))
        run = fit(c, data.load(c["dataset"]), ckpt, ranks.share(c["num_seeds"]), ranks.rank)
        ranks.ready()
        if ranks.rank == 0:
            start_wandb(c)
            lock.claim()
            data.prepare_missing(c["dataset"])
            clear(folder, c)
        save(run, folder, ranks, [], run.best)
        if ranks.rank == 0:
            describe(run, folder, lines)
        caught = train(run, folder, signals, ranks)
    if caught and ranks.rank == 0:
        print(f"stopped at iteration {run.iter_num}; go on with:\npython train_with_eval.py "
              f"--init_from=resume --out_dir={shlex.quote(str(folder))}", file=sys.stderr)
    return 128 + caught if caught else 0


if __name__ == "__main__":
    configs.run(main)
