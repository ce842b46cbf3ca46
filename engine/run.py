"""A run: what it is, how far it is, and what it leaves in its folder.

`Run` alone writes there: config.json and results.csv, by data/log.py, and the checkpoints, by model.py. One
dict, `info`, says what a run is: it is config.json, and every checkpoint begins with it.
"""
import os
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import config
import data
import engine
import model
from config import KEYS, MAY_CHANGE, UserError
from data import log
from model import GPTConfig

ROOT = Path(__file__).resolve().parents[1]
# without the first no run resumes
RUN_FILES = ("ckpt.pt", "ckpt_best_*.pt", "ckpt_[0-9]*.pt", "results.csv", "config.json")
SCORE_OF = {"math": "math_acc", "facts": "facts_acc", "combined": "combined_acc"}  # best by which column


def fresh(cfg: GPTConfig, seeds: list[int]) -> dict[str, torch.Tensor]:
    """An engine's state before the first update: params, exp_avg, exp_avg_sq (S, P)."""
    params = model.init_weights(cfg, seeds)
    return {"params": params, "exp_avg": torch.zeros_like(params), "exp_avg_sq": torch.zeros_like(params)}


def check_finite(params: torch.Tensor, seeds: list[int], iter_num: int, *losses: np.ndarray) -> None:
    """Raises UserError if one of the weights (S, P) or of `losses` (S,) is not finite, as it stays then."""
    finite = np.all([params.isfinite().all(1).cpu().numpy(), *map(np.isfinite, losses)], axis=0)
    for seed, good in zip(seeds, finite):
        if not good:
            raise UserError(f"seed {seed}: the loss is not finite at iteration {iter_num}; what was logged "
                            "and saved before is kept; start a new run with a lower learning_rate")


def keep_best(best: dict, rows: list[dict], params: torch.Tensor) -> dict:
    """`best`, with the weights (S, P) of those seeds whose score in `rows` is better than ever before.

    It holds for each kind of score the seeds' best `score` and `iter_num` (S,) and `params` (S, P).
    """
    kinds = [kind for kind, column in SCORE_OF.items() if rows[0][column] != ""]
    for kind in kinds if len(kinds) > 2 else kinds[:1]:  # of one task, combined says the same
        score = torch.tensor([row[SCORE_OF[kind]] for row in rows], dtype=torch.float64)
        old = best.get(kind, {"score": torch.full_like(score, -1), "params": torch.zeros(params.shape),
                              "iter_num": torch.zeros(len(rows), dtype=torch.long)})
        new = {"score": score, "params": params.cpu(),
               "iter_num": torch.full_like(old["iter_num"], rows[0]["iter"])}
        better = score > old["score"]
        best = best | {kind: {name: torch.where(better[:, None] if was.dim() > 1 else better, new[name], was)
                              for name, was in old.items()}}
    return best


def git_commit() -> str | None:
    """The commit of this code's repository, with '-dirty' if its files differ from it; None if it has none,
    also where it lies in a folder of another repository."""
    command = ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", "describe", "--always", "--dirty",
               "--abbrev=40", "--exclude=*"]
    with suppress(OSError):  # there is no git that runs
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def describe(c: dict, chosen: dict, dataset: data.Dataset, ckpt: dict) -> dict:
    """The `info` of a run with the settings `c`; `chosen`: the same, decided for this machine.

    Of one that goes on from `ckpt`, `before` says what computed it until then, where that was not the same.
    """
    machine = {"computed": {name: chosen[name] for name in ("device", "dtype", "step")},
               "device": engine.device_name(chosen["device"]), "threads": torch.get_num_threads(),
               "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                            "numpy": np.__version__},
               "git_commit": git_commit()}
    then = {name: ckpt[name] for name in machine if name in ckpt}
    changed = any(machine[name] != value for name, value in then.items())
    return {"config": c, "parameters": model.count_parameters(model.shape_of(c, len(dataset.vocab))),
            "seeds": model.seeds_of(c), "ranks": ckpt.get("ranks", max(1, ranks())), "vocab": dataset.vocab,
            "tasks": list(dataset.tasks), "numbers": dataset.numbers, "held_out": dataset.held_out,
            "data_sha256": dataset.sha256, **data.references(dataset, c["block_size"]), **machine,
            "before": [*ckpt.get("before", []), *[{"until": ckpt.get("iter_num")} | then] * changed]}


class Run:
    """A run in its folder, new or gone on with, and the engine that trains its seeds.

    `c` are its settings as decided for this machine, `info` is what config.json says, `best` as `keep_best`
    has it, `rows` those of the last evaluation, without elapsed_s.
    """

    def __init__(self, c: dict, chosen: dict, dataset: data.Dataset, ckpt: dict):
        """`c`, `chosen` as for `describe`; `ckpt` is what `resume` read, {} for a new run."""
        self.folder, self.c, self.info = Path(c["out_dir"]), chosen, describe(c, chosen, dataset, ckpt)
        self.cfg, self.seeds = model.shape_of(c, len(dataset.vocab)), self.info["seeds"]
        self.resumed, self.iter_num = bool(ckpt), ckpt.get("iter_num", 0)
        self.best: dict[str, dict[str, torch.Tensor]] = ckpt.get("best", {})
        self.rows: list[dict] = ckpt.get("metrics", [])
        if ckpt:
            state = {"params": model.flatten(ckpt["model"], self.cfg), **ckpt["optimizer"]}
        else:
            state = fresh(self.cfg, self.seeds)
        text = torch.from_numpy(dataset.train.astype(np.int32))
        self.engine = engine.make(chosen, self.cfg, state, text)
        self.began = time.perf_counter() - ckpt.get("elapsed_s", 0.0)

    def elapsed_s(self) -> float:
        """Seconds that the run took so far, wherever it was trained."""
        return time.perf_counter() - self.began

    def begin(self, rows: list[dict]) -> None:
        """Write config.json, and the log with the rows that it begins with. What a killed run left half
        written goes, and all that lies there of another run if this one is new. Raises UserError if the disk
        or wandb refuses."""
        old = [path for pattern in RUN_FILES for path in self.folder.glob(f".{pattern}.*.part")]
        if not self.resumed:
            old += [*run_files(self.folder), self.folder / "plot.png"]
        log.start_wandb(self.info["config"])
        for path in old:
            path.unlink(missing_ok=True)
        log.start(self.folder, self.info, rows)

    def add_rows(self, rows: list[dict]) -> None:
        """Append the rows of an evaluation, and keep the weights of the seeds that are better than before."""
        timed = [row | {"elapsed_s": round(self.elapsed_s(), 2)} for row in rows]
        log.append(self.folder, timed)
        log.to_wandb(self.c, timed)
        self.rows, self.best = rows, keep_best(self.best, rows, self.engine.state["params"])

    def write(self, name: str, params: torch.Tensor, **more) -> None:
        """Write a checkpoint of weights (S, P)."""
        model.save_checkpoint(self.folder / name, model.checkpoint(params, self.cfg, **self.info, **more))

    def save_weights(self, name: str, **more) -> None:
        """Write a checkpoint of the weights now. Raises UserError rather than write what is not finite."""
        params = self.engine.state["params"]
        check_finite(params, self.seeds, self.iter_num)
        self.write(name, params, iter_num=self.iter_num, **more)

    def save_best(self) -> None:
        """Write ckpt_best_*.pt."""
        for kind, best in self.best.items():
            self.write(f"ckpt_best_{kind}.pt", best["params"], iter_num=best["iter_num"].tolist(),
                       metrics={SCORE_OF[kind]: best["score"].tolist()})

    def save(self) -> None:
        """Write ckpt_best_*.pt and ckpt.pt, from which the run resumes; its `metrics` are `rows`."""
        self.save_best()
        random = {"cpu": torch.get_rng_state()}  # dropout's
        if self.engine.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        optimizer = {name: self.engine.state[name].cpu() for name in ("exp_avg", "exp_avg_sq")}
        self.save_weights("ckpt.pt", optimizer=optimizer, random=random, best=self.best, metrics=self.rows,
                          elapsed_s=self.elapsed_s())


# --- whether and how a run may begin in a folder

def ranks() -> int:
    """The number of processes that torchrun started, or 0 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def run_files(folder: Path) -> list[Path]:
    """What a run left in `folder`."""
    return [path for pattern in RUN_FILES for path in folder.glob(pattern)]


def refuse_other_ranks(folder: Path) -> None:
    """Raises UserError if this process's `folder` lies in or about a run of another number of processes."""
    top = folder.parent if ranks() else folder
    ours = {top / f"rank_{i}" for i in range(ranks())}
    if {*log.rank_folders(top)} - ours - {top} or (ranks() and run_files(top)):
        raise UserError(f"{top} holds a run of another number of processes; start as many, or go on with "
                        f"each alone, --out_dir={log.rank_folders(top)[0]}, or choose another --out_dir")


def refuse_to_overwrite(c: dict, folder: Path) -> None:
    """Raises UserError if `folder` holds a run and `overwrite` is not set.

    With init_from = auto one that was killed before it saved anything is none.
    """
    table, there = folder / "results.csv", run_files(folder)
    logged = table.exists() and table.read_bytes().count(b"\n") > 1
    if there and not c["overwrite"] and (c["init_from"] != "auto" or logged):
        go_on = "go on with --init_from=resume, " if (folder / "ckpt.pt").exists() else ""
        raise UserError(f"{folder} already holds a run ({there[0].name}); {go_on}"
                        "replace it with --overwrite=True, or choose another --out_dir")


def load_latest(path: Path) -> dict:
    """Read a ckpt.pt to go on from, and set dropout's random numbers.

    Raises UserError as `load_checkpoint` does, and for what is missing in it or of another shape.
    """
    if not path.is_file():
        raise UserError(f"no {path} to resume; train without --init_from=resume first")
    ckpt, cfg = model.load_checkpoint(path)
    if "optimizer" not in ckpt:
        raise UserError(f"{path} cannot be resumed: it is not the latest state of a run here")
    S, P = model.flatten(ckpt["model"], cfg).shape
    try:
        tensors = [(ckpt["optimizer"][name], (S, P)) for name in ("exp_avg", "exp_avg_sq")]
        for best in ckpt["best"].values():
            tensors += [(best["params"], (S, P)), (best["score"], (S,)), (best["iter_num"], (S,))]
        if any(tensor.shape != shape for tensor, shape in tensors):
            raise ValueError("its optimizer or best weights are not those of its model")
        if lacking := {"config", "computed", "metrics", "elapsed_s"} - ckpt.keys():
            raise KeyError(min(lacking))
        torch.set_rng_state(ckpt["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in ckpt["random"]:
            torch.cuda.set_rng_state(ckpt["random"]["cuda"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise UserError(f"{path}: {e} ({type(e).__name__}): the run cannot be resumed; restore the file, or "
                        "train anew") from None
    return ckpt


def resume(explicit: dict, folder: Path) -> tuple[dict, dict, list[dict]]:
    """The run in `folder`: its settings, its ckpt.pt, and the rows of its log before the iteration of that.

    Raises UserError for an `explicit` setting that differs from the run's and may not.
    """
    path = folder / "ckpt.pt"
    ckpt = load_latest(path)
    c = {name: config.check(name, ckpt["config"].get(name, key.default), key, f"{path}, config")
         for name, key in KEYS.items()}
    for name, value in explicit.items():
        if value != c[name] and value != "auto" and name not in MAY_CHANGE:
            raise UserError(f"{name} = {value} differs from the run's {c[name]}, which resuming cannot "
                            f"change; give that, or start a new run in another --out_dir than {folder}")
    if model.seeds_of(c) != ckpt["seeds"] or any(c[k] != ckpt["model_args"][k] for k in model.SIZES):
        raise UserError(f"{path}: its config is not that of its model; restore the file, or train anew")
    c |= {name: explicit[name] for name in MAY_CHANGE if name in explicit} | {"out_dir": str(folder)}
    if c["max_iters"] < ckpt["iter_num"]:
        raise UserError(f"max_iters = {c['max_iters']} is below the {ckpt['iter_num']} that the run has done")
    logged = folder / "results.csv"
    rows = log.read_rows(logged) if logged.exists() else []
    with log.reading(path):
        last, there = ({(row["iter"], row["seed"], row["train_loss"]) for row in x}
                       for x in (ckpt["metrics"], rows))
    if rows and last - there:
        raise UserError(f"{logged} is of another run: it lacks what {path} has from the last evaluation; put "
                        "the run's own there, or remove it to go on without the rows before")
    return c, ckpt, [row for row in rows if row["iter"] < ckpt["iter_num"]]
