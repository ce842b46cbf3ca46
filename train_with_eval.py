"""Train num_seeds GPTs at once and evaluate them as they learn. One command a run:
  python train_with_eval.py config/train_math_mini_14.py --num_seeds=8
  python train_with_eval.py config/train_math_mini_14.py --init_from=resume

Into out_dir go config.json, results.csv (a row per evaluation and seed), ckpt.pt and ckpt_best_*.pt, with
--keep_every=250 ckpt_000250.pt and so on, and, as long as it trains, `lock` with the id of its process.
"""
import math
import os
import shlex
import sys
import time
from pathlib import Path

import config  # before numpy and torch: from then on Ctrl-C is quiet
from config import Signals, UserError

# isort: split
import numpy as np
import torch
from tqdm import tqdm

import data
import engine
import eval_as_math
import eval_capitals
from data import log
from data.batches import Batches
from data.files import Lock
from engine import run as runs
from engine.run import Run
from model import shape_of

EVALUATORS = {"math": eval_as_math, "facts": eval_capitals}
LOOK_EVERY_S, SAVE_EVERY_S = 0.2, 30  # at the signals; between two checkpoints
EXACT = 700_000  # characters times block_size up to which the loss is that of every window; else of a quarter


def learning_rate(it: int, c: dict) -> float:
    """The learning rate of update `it`: linear warm-up, cosine to min_lr, then constant (nanoGPT's)."""
    if it < c["warmup_iters"]:
        return c["learning_rate"] * (it + 1) / (c["warmup_iters"] + 1)
    if it >= c["lr_decay_iters"]:
        return c["min_lr"]
    ratio = (it - c["warmup_iters"]) / (c["lr_decay_iters"] - c["warmup_iters"])
    return c["min_lr"] + 0.5 * (1 + math.cos(math.pi * ratio)) * (c["learning_rate"] - c["min_lr"])


def rates(first: int, n: int, c: dict) -> torch.Tensor:
    """(n, 3): learning rate and Adam's bias corrections 1 - beta1^t, sqrt(1 - beta2^t) with t = it + 1."""
    rows = [(learning_rate(it, c), 1 - c["beta1"] ** (it + 1), math.sqrt(1 - c["beta2"] ** (it + 1)))
            for it in range(first, first + n)]
    return torch.tensor(rows, dtype=torch.float64).float()


def loss_stride(ids: np.ndarray, c: dict) -> int:
    """The loss of a text is the mean over windows at every so many offsets: 1 is all of them."""
    size = len(ids) * c["block_size"]
    return 1 if size <= EXACT else math.ceil(4 * size / EXACT)


def evaluate(model: engine.Engine, dataset: data.Dataset, seeds: list[int], iter_num: int, c: dict
             ) -> list[dict]:
    """The rows of results.csv at this iteration, a dict for each seed; empty what the data has not.

    Raises UserError if a seed's loss or weights are not finite any more.
    """

    def mean_loss(ids):
        text = torch.from_numpy(ids.astype(np.int32))
        return model.losses(text, loss_stride(ids, c)).double().mean(1).numpy()

    train_loss = mean_loss(dataset.train)
    val_loss = train_loss if np.array_equal(dataset.train, dataset.val) else mean_loss(dataset.val)
    runs.check_finite(model.state["params"], seeds, iter_num, train_loss, val_loss)
    rows = [dict.fromkeys(log.COLUMNS, "") | dict(iter=iter_num, seed=s, train_loss=a, val_loss=b)
            for s, a, b in zip(seeds, train_loss.tolist(), val_loss.tolist())]
    sampling = {name: c[name] for name in ("num_samples", "temperature", "top_k")}
    n_correct, n_asked = np.zeros(len(seeds)), 0
    for evaluator in (EVALUATORS[task] for task in dataset.tasks):
        texts = evaluator.ask(model, dataset, seeds, [iter_num] * len(seeds), **sampling)
        correct = evaluator.is_correct(texts)  # (S, prompts, num_samples)
        for row, of_seed in zip(rows, correct):
            row |= evaluator.totals(of_seed, dataset.held_out)
        n_correct, n_asked = n_correct + correct.sum((1, 2)), n_asked + correct[0].size
    if dataset.tasks:
        for row, n in zip(rows, n_correct):
            row["combined_acc"] = float(n / n_asked)
    return rows


def summary(rows: list[dict]) -> str:
    """Loss, accuracies and held-out score, the mean over seeds, in a few words."""
    names = {"train_loss": "loss {:.3f}", "math_acc": "math {:.1%}", "facts_acc": "facts {:.1%}"}
    words = [words.format(sum(row[name] for row in rows) / len(rows)) for name, words in names.items()
             if rows[0][name] != ""]
    if rows[0]["heldout_total"]:
        words.append("held-out {}/{}".format(*(sum(row[f"heldout_{k}"] for row in rows)
                                                for k in ("correct", "total"))))
    return ", ".join(words)


def plain_line(run: Run, done: int, seconds: float) -> str:
    """Where a run stands, for a log; `done` iterations took `seconds` since it was started or resumed."""
    left = run.c["max_iters"] - run.iter_num
    speed = f"; {done / seconds:,.1f} it/s, {left * seconds / done / 60:,.1f} min left" if done else ""
    return f"{run.iter_num:,} of {run.c['max_iters']:,}: {summary(run.rows)}{speed}"


def check_together(c: dict, dataset: data.Dataset) -> None:
    """Raises UserError for settings that are good alone but not together, or not with this text or memory."""
    if c["n_embd"] % c["n_head"]:
        raise UserError(f"n_embd = {c['n_embd']} is not divisible by n_head = {c['n_head']}; make it so")
    if c["lr_decay_iters"] < c["warmup_iters"]:
        raise UserError(f"lr_decay_iters = {c['lr_decay_iters']} is before the end of warmup_iters = "
                        f"{c['warmup_iters']}; expected at least that")
    if c["min_lr"] > c["learning_rate"]:
        raise UserError(f"min_lr = {c['min_lr']} is above learning_rate = {c['learning_rate']}; lower it")
    n = min(len(dataset.train), len(dataset.val))
    if n <= c["block_size"]:
        raise UserError(f"block_size = {c['block_size']} needs more than the {n} characters of "
                        f"data/{dataset.name}; choose a smaller one")
    for task in dataset.tasks:
        prompts = "".join(EVALUATORS[task].prompts(dataset))
        data.encode(prompts, dataset.vocab, f"data/{dataset.name}: task {task}")
    engine.check_memory(c, shape_of(c, len(dataset.vocab)))


def loop(run: Run, dataset: data.Dataset, signals: Signals) -> int:
    """The training loop: evaluate, log and save at every eval_interval, update in between.

    Returns the signal that ended it, or 0.
    """
    c, began, first = run.c, time.perf_counter(), run.iter_num
    saved, n_updates = -math.inf, 1  # long ago, so that it saves at once; in one call, between two looks
    batches = Batches(run.seeds, len(dataset.train) - c["block_size"], c["batch_size"], c["max_iters"],
                      engine.host_memory(c["device"]))
    with tqdm(total=c["max_iters"], initial=first, unit="it", dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:
        while True:
            last = run.iter_num == c["max_iters"]
            if c["keep_every"] and run.iter_num % c["keep_every"] == 0:
                run.save_weights(f"ckpt_{run.iter_num:06}.pt")
            if last or run.iter_num % c["eval_interval"] == 0:
                if last or time.perf_counter() - saved > SAVE_EVERY_S:
                    run.save()
                    saved = time.perf_counter()
                run.add_rows(evaluate(run.engine, dataset, run.seeds, run.iter_num, c))
                bar.set_postfix_str(summary(run.rows))
                if bar.disable:
                    print(plain_line(run, run.iter_num - first, time.perf_counter() - began), file=sys.stderr)
            if last:
                run.save_best()
                return 0
            if signals.caught:
                run.save()
                return signals.caught
            stops = [every - run.iter_num % every for every in (c["eval_interval"], c["keep_every"]) if every]
            batch = batches.get(run.iter_num, min(n_updates, c["max_iters"] - run.iter_num, *stops))
            start = time.perf_counter()
            # so many updates, each: forward, backward, clip, AdamW
            run.engine.update(torch.from_numpy(batch), rates(run.iter_num, len(batch), c))
            run.iter_num += len(batch)
            bar.update(len(batch))
            seconds = (time.perf_counter() - start) / len(batch)
            n_updates = max(1, min(2 * n_updates, int(LOOK_EVERY_S / seconds)))


def train(c: dict, explicit: dict) -> int:
    """Train config `c`, or go on with it; a run that is gone on with must have the `explicit` settings.

    Returns the exit code: 0, or 128 + the signal that ended the run. Raises UserError.
    """
    folder = Path(c["out_dir"])
    with Signals() as signals, Lock(folder):
        engine.begin(c["seed"])
        runs.refuse_other_ranks(folder)
        ckpt, rows = {}, []
        if c["init_from"] == "resume" or c["init_from"] == "auto" and (folder / "ckpt.pt").exists():
            c, ckpt, rows = runs.resume(explicit, folder)
        else:
            runs.refuse_to_overwrite(c, folder)
        chosen, dataset = engine.resolve(c), data.load(c["dataset"])
        if ckpt and (ckpt["vocab"], ckpt.get("data_sha256")) != (dataset.vocab, dataset.sha256):
            raise UserError(f"{folder}/ckpt.pt was trained on another text than data/{dataset.name} has now")
        check_together(chosen, dataset)
        with engine.out_of_memory(chosen):
            run = Run(c, chosen, dataset, ckpt)
            run.begin(rows)
            print_start(run, dataset)
            caught = loop(run, dataset, signals)
            log.finish_wandb(c)
    if caught:
        script, out = (shlex.quote(os.path.relpath(path)) for path in (__file__, folder))
        print(f"stopped at iteration {run.iter_num}; go on with:\npython {script} --init_from=resume "
              f"--out_dir={out}", file=sys.stderr)
    return 128 + caught if caught else 0


def print_start(run: Run, dataset: data.Dataset) -> None:
    """Say what is trained, by what, and what a user would wonder at."""
    c, computed = run.c, run.info["computed"]
    print(f"{run.folder}: {run.info['parameters']:,} parameters, {c['num_seeds']} seed(s) from {c['seed']}, "
          f"{c['device']} ({run.info['device']}), {c['dtype']}, step: {c['step']}")
    for before in run.info["before"]:
        if before["until"] == run.iter_num and before["computed"] != computed:
            print(f"it was computed by {', '.join(before['computed'].values())} up to iteration "
                  f"{run.iter_num}: it goes on equal to rounding"
                  + ", with other random numbers" * (c["dropout"] > 0))
    if (stride := loss_stride(dataset.train, c)) > 1:
        print(f"data/{dataset.name} is long: the loss is the mean over one window in {stride}")


def share_of_rank(c: dict) -> dict:
    """What torchrun gives this process of a run: its seeds, its folder in out_dir; {} without torchrun."""
    if not runs.ranks():
        return {}
    rank, size, n = int(os.environ["RANK"]), runs.ranks(), c["num_seeds"]
    if size > n:
        raise UserError(f"{size} processes for num_seeds = {n}: a seed trains in one process; expected at "
                        f"most {n} of them, or more seeds")
    first, end = rank * n // size, (rank + 1) * n // size
    return {"seed": c["seed"] + first, "num_seeds": end - first, "out_dir": f"{c['out_dir']}/rank_{rank}"}


def main(argv: list[str]) -> int:
    """Train as the command line says, this process's share of the seeds."""
    c, explicit = config.read(argv, __doc__)
    if c["init_from"] == "resume" and "num_seeds" not in explicit and runs.ranks():
        c["num_seeds"] = sum(len(log.read_info(folder / "config.json")["seeds"])
                             for folder in log.rank_folders(Path(c["out_dir"])))
    share = share_of_rank(c)
    explicit |= {name: value for name, value in share.items() if name in explicit or name == "out_dir"}
    c |= share
    return train(c, c if c["init_from"] == "auto" else explicit)


if __name__ == "__main__":
    config.run(main)
