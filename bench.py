"""Time the training of run configs, and a plain nanoGPT-style loop on the same data in the same process.
  python bench.py config/train_math_mini_14.py --num_seeds=1,8 --baseline

A row for each config and number of seeds: medians after a warm-up, the full run projected from them, and how
much of this machine's own matmul rate and copy bandwidth, measured here too, an iteration reaches.
"""
import json
import math
import statistics
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import config
import data
import train_with_eval as trainer
from config import Key, UserError
from log import device_name
from model import GPTConfig, activations, shape_of, shapes

KEYS = {
    "num_seeds": Key("1", "numbers of seeds to time, such as 1,8,64"),
    "seconds": Key(5.0, "how long to time the iterations of each", lo=0.01, hi=600),
    "baseline": Key(False, "time the plain loop too, and print the ratio"),
    "json": Key("none", "write the figures to this file as well"),
    "device": config.KEYS["device"],
    "compile": config.KEYS["compile"],
}


class PlainAttention(nn.Module):
    """nanoGPT's causal self-attention."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = cfg.n_head, cfg.dropout
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=False)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2) for y in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout * self.training)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class PlainMLP(nn.Module):
    """nanoGPT's MLP."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.dropout = cfg.dropout
        self.c_fc = nn.Linear(cfg.n_embd, cfg.mlp_expansion * cfg.n_embd, bias=False)
        self.c_proj = nn.Linear(cfg.mlp_expansion * cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class PlainBlock(nn.Module):
    """nanoGPT's block."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(cfg.n_embd, bias=False) for _ in range(2))
        self.attn, self.mlp = PlainAttention(cfg), PlainMLP(cfg)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainGPT(nn.Module):
    """The model as nanoGPT writes it, one seed: token ids (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg = cfg
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(cfg.vocab_size, cfg.n_embd), "wpe": nn.Embedding(cfg.block_size, cfg.n_embd),
            "h": nn.ModuleList(PlainBlock(cfg) for _ in range(cfg.n_layer)),
            "ln_f": nn.LayerNorm(cfg.n_embd, bias=False)})
        self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * cfg.n_layer) if "c_proj" in name else 0.02)

    def forward(self, ids):
        t = self.transformer
        x = t.wte(ids) + t.wpe(torch.arange(ids.shape[1], device=ids.device))
        x = F.dropout(x, self.cfg.dropout, self.training)
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x))


class PlainLoop:
    """The loop that the benchmark compares with: eager, a batch stacked on the host, one sample at a time."""

    def __init__(self, c: dict, dataset: data.Dataset):
        self.c, self.dataset, self.device = c, dataset, torch.device(c["device"])
        self.cfg = shape_of(c, len(dataset.vocab))
        self.model = PlainGPT(self.cfg).to(self.device)
        groups = [{"params": [p for p in self.model.parameters() if p.dim() == dim], "weight_decay": decay}
                  for dim, decay in ((2, c["weight_decay"]), (1, 0.0))]
        self.optimizer = torch.optim.AdamW(groups, lr=c["learning_rate"], betas=(c["beta1"], c["beta2"]))
        self.iter_num = 0

    def loss(self) -> torch.Tensor:
        """Cross-entropy of one random batch."""
        ids, T = self.dataset.train, self.c["block_size"]
        at = torch.randint(len(ids) - T, (self.c["batch_size"],))
        x, y = (torch.stack([torch.from_numpy(ids[i + k:i + k + T].astype(np.int64)) for i in at])
                for k in (0, 1))
        with trainer.autocast(self.device, getattr(torch, self.c["dtype"])):
            logits = self.model(x.to(self.device))
        return F.cross_entropy(logits.float().flatten(0, 1), y.to(self.device).flatten())

    def advance(self) -> None:
        """One update."""
        for group in self.optimizer.param_groups:
            group["lr"] = trainer.learning_rate(self.iter_num, self.c)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.c["grad_clip"])
        self.optimizer.step()
        self.iter_num += 1

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss over 100 batches of each split; a forward pass for every prompt, sample and character."""
        self.model.eval()
        statistics.fmean(self.loss().item() for _ in range(200))
        for task in self.dataset.tasks:
            evaluator = trainer.EVALUATORS[task]
            for prompt in evaluator.prompts():
                for _ in range(self.c["num_samples"]):
                    ids = torch.from_numpy(data.encode(prompt, self.dataset.vocab).astype(np.int64))[None]
                    self.generate(ids.to(self.device), evaluator.NEW_TOKENS)
        self.model.train()

    def generate(self, ids: torch.Tensor, new: int) -> torch.Tensor:
        """nanoGPT's generate."""
        for _ in range(new):
            logits = self.model(ids[:, -self.c["block_size"]:])[:, -1].float() / self.c["temperature"]
            best, _ = logits.topk(min(self.c["top_k"], logits.shape[1]))
            logits[logits < best[:, -1:]] = -torch.inf
            ids = torch.cat([ids, logits.softmax(1).multinomial(1)], dim=1)
        return ids


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call, device: torch.device, seconds: float) -> float:
    """Median seconds of a call, for `seconds` and at least three calls."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """This machine's rate of a large matmul in `dtype` (FLOP/s) and of a copy (bytes/s, both ways)."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * n ** 3 / timed(lambda: a @ b, device, 1.0)
    x = torch.empty(2 ** 26, device=device)
    y = torch.empty_like(x)
    return flops, 2 * 4 * x.numel() / timed(lambda: y.copy_(x), device, 1.0)


def work(cfg: GPTConfig, seeds: int, batch_size: int) -> tuple[float, float]:
    """Floating-point operations and bytes of one iteration by the book, by formula.

    The fused step of a CPU leaves some out (a window for the second time, the future in attention) and keeps
    activations in the cache: its shares of the machine's peaks may exceed 100%.

    FLOP: 6 a matrix weight and token (forward 2, backward 4), the one-hot embedding and the head counted as
    the products they are, and 12 n_layer T n_embd a token for attention. Bytes: each float32 activation is
    written and read in the forward pass, and so is its gradient in the backward pass; a parameter 8 times.
    """
    n, T, V = cfg.n_embd, cfg.block_size, cfg.vocab_size
    tokens = seeds * batch_size * T
    matrices = sum(math.prod(s) for k, s in shapes(cfg).items() if len(s) == 2 and "wpe" not in k) + V * n
    flops = tokens * (6 * matrices + 12 * cfg.n_layer * T * n)
    weights = seeds * sum(math.prod(s) for s in shapes(cfg).values())
    return flops, 4 * (4 * tokens * activations(cfg) + 8 * weights)


def measure(c: dict, dataset: data.Dataset, seconds: float) -> dict:
    """Time one config, c["num_seeds"] seeds at once: the figures of a row."""
    start = time.perf_counter()
    last = max(c["max_iters"], trainer.BLOCK)
    run = trainer.Run(c | {"max_iters": last}, dataset)
    built = time.perf_counter()
    run.advance()
    run.evaluate()
    wait(run.device)
    first = time.perf_counter()
    run.advance(2 * trainer.BURST)

    def burst():
        if run.iter_num + trainer.BURST > last:  # the learning rate's schedule ends: begin it again
            run.iter_num = 0
            run.state["it"].zero_()
        run.advance(trainer.BURST)

    iteration = timed(burst, run.device, seconds) / trainer.BURST
    evaluation = timed(run.evaluate, run.device, 0.0)
    flops, moved = work(run.cfg, c["num_seeds"], c["batch_size"])
    peak_flops, peak_bytes = peaks(run.device, run.dtype)
    on_gpu = run.device.type == "cuda"
    # ru_maxrss: KiB, of the whole process so far
    memory = torch.cuda.max_memory_allocated() if on_gpu else getrusage(RUSAGE_SELF).ru_maxrss * 1024
    return {"run": Path(c["out_dir"]).name, "seeds": c["num_seeds"], "ms_iter": 1e3 * iteration,
            "ms_seed_iter": 1e3 * iteration / c["num_seeds"], "ms_eval": 1e3 * evaluation,
            "s_start": built - start, "s_compile": first - built,
            "s_full": first - start + projected(c, iteration, evaluation), "peak_mib": memory / 2 ** 20,
            "flop_share": flops / iteration / peak_flops, "byte_share": moved / iteration / peak_bytes}


def projected(c: dict, iteration: float, evaluation: float) -> float:
    """Seconds of all iterations and evaluations of a run."""
    return c["max_iters"] * iteration + (c["max_iters"] // c["eval_interval"] + 1) * evaluation


def baseline(c: dict, dataset: data.Dataset, seconds: float) -> dict:
    """Time the plain loop on the same data, one seed."""
    loop = PlainLoop(c, dataset)
    for _ in range(5):
        loop.advance()
    iteration = timed(loop.advance, loop.device, seconds)
    start = time.perf_counter()
    loop.evaluate()
    evaluation = time.perf_counter() - start
    return {"plain_ms_iter": 1e3 * iteration, "plain_ms_eval": 1e3 * evaluation,
            "plain_s_full": projected(c, iteration, evaluation)}


def table(rows: list[dict]) -> str:
    """The figures as aligned columns."""
    def show(name, value):
        return value if isinstance(value, str) else f"{value:.1%}" if "share" in name else f"{value:.4g}"
    shown = [{k: show(k, v) for k, v in row.items()} for row in rows]
    names = list(dict.fromkeys(k for row in rows for k in row))
    widths = {k: max(len(k), *(len(row.get(k, "")) for row in shown)) for k in names}
    lines = [{k: k for k in names}, *shown]
    return "\n".join("  ".join(line.get(k, "").rjust(widths[k]) for k in names) for line in lines)


def seed_counts(text: str) -> list[int]:
    """The numbers in `1,8,64`. Raises UserError for anything else."""
    key = config.KEYS["num_seeds"]
    return [config.check("num_seeds", config.from_text(part, key), key, f"--num_seeds={text[:80]}")
            for part in text.split(",")]


def read_job(path: str, args: dict) -> tuple[dict, data.Dataset]:
    """A file's config with the benchmark's own keys, and its dataset; raises UserError if it will not do."""
    c = config.read([path], __doc__)[0] | {k: args[k] for k in ("num_seeds", "device", "compile")}
    c = trainer.resolve(c)
    dataset = data.load(c["dataset"])
    trainer.check_together(c, dataset)
    return c, dataset


def main(argv: list[str]) -> None:
    """Time what the command line says and print the table."""
    given, files = config.parse(argv, KEYS, __doc__, positional="CONFIG")
    args = {name: key.default for name, key in KEYS.items()} | given
    paths = files or ["config/train_math_mini_14.py"]
    counts, out = seed_counts(args["num_seeds"]), Path(args["json"])
    jobs = [(path, *read_job(path, args | {"num_seeds": n})) for path in paths for n in counts]
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--json={out}: expected a file in a folder that exists; make it, or name another")
    rows, plain = [], {}
    for path, c, dataset in tqdm(jobs, unit="config"):
        row = measure(c, dataset, args["seconds"])
        if args["baseline"]:
            if path not in plain:
                plain[path] = baseline(c, dataset, args["seconds"])
            row |= plain[path]
            row["times_faster"] = c["num_seeds"] * row["plain_s_full"] / row["s_full"]
        rows.append(row)
    machine = {"device": c["device"], "name": device_name(c["device"]),
               "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    print(table(rows))
    if args["json"] != "none":
        text = json.dumps(machine | {"rows": rows}, indent=1) + "\n"
        data.replace_file(out, lambda f: f.write(text.encode()))
        print(f"wrote {out}")


if __name__ == "__main__":
    config.run(main)
