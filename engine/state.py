"""What a run knows, and leaves in its folder: made anew, kept in its checkpoints, and read back."""
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
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


@dataclass
class Progress:
    """How far a run is: `best` holds for each kind of score the seeds' best `score` and `iter_num` (S,) and
    `params` (S, P); `rows` are those of the last evaluation, as results.csv has them but for elapsed_s."""
    iter_num: int = 0
    elapsed_s: float = 0.0
    best: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)


def ranks() -> int:
    """The number of processes that torchrun started, or 0 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def run_files(folder: Path) -> list[Path]:
    """What a run left in `folder`."""
    return [path for pattern in RUN_FILES for path in folder.glob(pattern)]


def clear(folder: Path, everything: bool) -> None:
    """Remove what a killed run left half written, or `everything` of a run, the picture of it too."""
    old = [*run_files(folder), folder / "plot.png"] if everything else []
    for path in [path for pattern in RUN_FILES for path in folder.glob(f".{pattern}.*.part")] + old:
        path.unlink(missing_ok=True)


def refuse_other_ranks(folder: Path) -> None:
    """Raises UserError if this process's `folder` lies in or about a run of another number of processes."""
    top = folder.parent if ranks() else folder
    own = {top / f"rank_{i}" for i in range(ranks())}
    if {*log.rank_folders(top)} - own - {top} or (ranks() and run_files(top)):
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


def git_commit() -> str | None:
    """The commit of this code's repository, with '-dirty' if its files differ from it; None if it has none,
    also where it lies in a folder of another repository."""
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None or git("rev-parse", "--show-toplevel") != ROOT.as_posix():
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def describe(c: dict, run: dict, dataset: data.Dataset, ckpt: dict) -> dict:
    """What config.json and every checkpoint say of a run with the settings `c`; `run`: those, decided here.

    Of one that goes on from `ckpt`, `before` says what computed it until then, where that was not the same.
    """
    machine = {"computed": {name: run[name] for name in ("device", "dtype", "step")},
               "device": engine.device_name(run["device"]), "threads": torch.get_num_threads(),
               "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                            "numpy": np.__version__},
               "git_commit": git_commit()}
    then = {name: ckpt[name] for name in machine if name in ckpt}
    changed = any(machine[name] != value for name, value in then.items())
    return {"config": c, "parameters": model.count_parameters(model.shape_of(c, len(dataset.vocab))),
            "seeds": model.seeds_of(c), "ranks": ckpt.get("ranks", max(1, ranks())), "vocab": dataset.vocab,
            "tasks": list(dataset.tasks), "numbers": dataset.numbers, "held_out": dataset.held_out,
            "data_sha256": dataset.sha256,
            **data.references(dataset, c["block_size"]), **machine,
            "before": [*ckpt.get("before", []), *[{"until": ckpt.get("iter_num")} | then] * changed]}


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
    """`best`, with the weights (S, P) of those seeds whose score in `rows` is better than ever before."""
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


def save_best(folder: Path, cfg: GPTConfig, at: Progress, about: dict) -> None:
    """Write ckpt_best_*.pt; `about` is what `describe` says."""
    for kind, best in at.best.items():
        model.save_checkpoint(folder / f"ckpt_best_{kind}.pt", model.checkpoint(
            best["params"], cfg, **about, iter_num=best["iter_num"].tolist(),
            metrics={SCORE_OF[kind]: best["score"].tolist()}))


def save_weights(path: Path, cfg: GPTConfig, params: torch.Tensor, at: Progress, about: dict, **more) -> None:
    """Write a checkpoint of the weights (S, P) now. Raises UserError rather than write what is not finite."""
    check_finite(params, about["seeds"], at.iter_num)
    model.save_checkpoint(path, model.checkpoint(params, cfg, **about, iter_num=at.iter_num, **more))


def save_latest(folder: Path, cfg: GPTConfig, state: dict[str, torch.Tensor], at: Progress, about: dict
                ) -> None:
    """Write ckpt.pt, from which the run resumes; its `metrics` are the rows of the last evaluation so far."""
    random = {"cpu": torch.get_rng_state()}  # dropout's
    if state["params"].is_cuda:
        random["cuda"] = torch.cuda.get_rng_state()
    save_weights(folder / "ckpt.pt", cfg, state["params"], at, about, metrics=at.rows, best=at.best,
                 optimizer={k: state[k].cpu() for k in ("exp_avg", "exp_avg_sq")}, random=random,
                 elapsed_s=at.elapsed_s)


def load_latest(path: Path) -> tuple[dict, GPTConfig, Progress, dict[str, torch.Tensor]]:
    """Read a ckpt.pt to go on from: (its dict, its GPTConfig, the run's progress, the engine's state).

    Sets dropout's random numbers. Raises UserError as `load_checkpoint` does, and for what is missing in it
    or does not fit its model.
    """
    if not path.is_file():
        raise UserError(f"no {path} to resume; train without --init_from=resume first")
    ckpt, cfg = model.load_checkpoint(path)
    if "optimizer" not in ckpt:
        raise UserError(f"{path} cannot be resumed: it is not the latest state of a run here")
    params = model.flatten(ckpt["model"], cfg)
    meant = {"params": params, "score": params[:, 0].double(), "iter_num": params[:, 0].long()}
    try:
        at = Progress(*(ckpt[k] for k in ("iter_num", "elapsed_s", "best", "metrics")))
        state = {"params": params, **{k: ckpt["optimizer"][k] for k in ("exp_avg", "exp_avg_sq")}}
        tensors = [(tensor, params) for tensor in state.values()]
        tensors += [(best[k], like) for best in at.best.values() for k, like in meant.items()]
        plain = [at.iter_num, at.elapsed_s, ckpt["config"], *ckpt["computed"].values()]
        if not (all((x.shape, x.dtype, x.device, x.layout) == (y.shape, y.dtype, y.device, y.layout)
                    for x, y in tensors)
                and [*map(type, plain)] == [int, float, dict, str, str, str] and at.elapsed_s >= 0
                and {*at.best, *ckpt["tasks"]} <= {*SCORE_OF}):
            raise ValueError("a part of it is not such as it was written")
        torch.set_rng_state(ckpt["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in ckpt["random"]:
            torch.cuda.set_rng_state(ckpt["random"]["cuda"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise UserError(f"{path}: {e} ({type(e).__name__}): the run cannot be resumed; restore the file, or "
                        "train anew") from None
    return ckpt, cfg, at, state


def resume(given: dict, folder: Path) -> tuple[dict, dict, Progress, dict, list[dict]]:
    """The run in `folder`: its config, ckpt.pt, progress and state, and the rows of its log before that.

    Raises UserError for a setting that differs from the run's and may not.
    """
    path = folder / "ckpt.pt"
    ckpt, cfg, at, state = load_latest(path)
    c = {name: config.check(name, ckpt["config"].get(name, key.default), key, f"{path}, config")
         for name, key in KEYS.items()}
    for name, value in given.items():
        if value != c[name] and value != "auto" and name not in MAY_CHANGE:
            raise UserError(f"{name} = {value} differs from the run's {c[name]}, which resuming cannot "
                            f"change; give that, or start a new run in another --out_dir than {folder}")
    if (model.shape_of(c, cfg.vocab_size), model.seeds_of(c)) != (cfg, ckpt["seeds"]):
        raise UserError(f"{path}: its config is not that of its model; restore the file, or train anew")
    c |= {name: given[name] for name in MAY_CHANGE if name in given} | {"out_dir": str(folder)}
    if c["max_iters"] < at.iter_num:
        raise UserError(f"max_iters = {c['max_iters']} is below the {at.iter_num} that the run has done")
    logged = folder / "results.csv"
    rows = log.read_rows(logged, ckpt["seeds"], ckpt["tasks"]) if logged.exists() else []
    with log.reading(path):
        last, there = ({(row["iter"], row["seed"], row["train_loss"]) for row in x} for x in (at.rows, rows))
    if rows and last - there:
        raise UserError(f"{logged} is of another run: it lacks what {path} has from the last evaluation; put "
                        "the run's own there, or remove it to go on without the rows before")
    return c, ckpt, at, state, [row for row in rows if row["iter"] < at.iter_num]
