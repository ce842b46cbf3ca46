"""What computes. An engine makes updates, and gives the losses of a text and the logits for sampling.

Two offer the same three methods: `pytorch.PyTorch` on any device, and `fused.Fused`, one C++ function for the
whole update of narrow float32 models without dropout on a CPU. Nobody else needs to know which one runs.
"""
import math
import os
import platform
import re
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from config import UserError
from data.batches import BLOCK
from engine import fused, pytorch
from model import GPTConfig, count_parameters, shape_of, shapes, step_flops

MINUTE = 60  # seconds; what the C++ step finishes within them stays on the CPU, though there is a GPU


class Engine(Protocol):
    """Trains S models of one shape, whose `state` it holds on `device`; `run.fresh` says what is in it."""
    cfg: GPTConfig
    device: torch.device
    state: dict[str, torch.Tensor]

    def update(self, batches: torch.Tensor, rates: torch.Tensor) -> None:
        """Make n updates and return when they are done: `batches` (n, S, B) int32, offsets of windows in the
        text; `rates` (n, 3): learning rate and Adam's bias corrections 1 - beta1^t, sqrt(1 - beta2^t)."""

    def losses(self, text: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """Cross-entropy, in nats per character, of the windows of a text of int32 ids at offsets 0, stride,
        2 stride ...: (S, windows)."""

    def logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Of texts (S, B, T), T <= block_size, the logits (S, B, vocab_size) at position `last` (S, B)."""


def begin(seed: int) -> None:
    """What holds for the whole process: dropout's seed, no TF32, denormal numbers taken as zero; under
    torchrun a GPU of its own."""
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(True)
    local_rank = os.environ.get("LOCAL_RANK", "")
    if local_rank.isdecimal() and torch.cuda.is_available():
        torch.cuda.set_device(int(local_rank) % torch.cuda.device_count())


def device_name(device: str) -> str:
    """The name of the GPU or of the processor, as the system tells it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"


def lacks_for_compiling() -> str:
    """What torch.compile would miss on a GPU, in words, or nothing: Triton builds its launcher in C."""
    if not shutil.which(os.environ.get("CC", "gcc")) and not shutil.which("clang"):
        return "a C compiler; install gcc"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return "" if header.exists() else "Python's headers; install python3-dev"


def seconds(c: dict, device: str, step: str) -> float:
    """About how long a run takes in that way, to choose by: a start, and its operations at a measured rate.

    The rates are a core's of an AMD EPYC with AVX-512, where PyTorch's grows with the width and passes that
    of the C++ step at about a million parameters; and an H100's with torch 2.11: there torch.compile takes
    18 s for one layer and 48 s for six, cold, and no iteration less than 0.2 ms, or 0.6 ms without.
    """
    cfg, cores = shape_of(c, 32), torch.get_num_threads()  # a vocabulary like any: the text is not read yet
    flops = step_flops(cfg, c["num_seeds"], c["batch_size"])
    growth = (count_parameters(cfg) / 1e6) ** 0.5
    gpu = 7e10 * cfg.n_embd * (5 if c["dtype"] == "bfloat16" else 1)
    start, least, rate = {"cpu fused": (2, 0, 1e11 * cores), "cpu eager": (0, 1e-3, 1e11 * cores * growth),
                          "cuda compiled": (12 + 6 * c["n_layer"], 2e-4, gpu),
                          "cuda eager": (3, 6e-4, gpu / 1.5)}[f"{device} {step}"]
    return start + c["max_iters"] * max(least, flops / rate)


def resolve(c: dict) -> dict:
    """`c` with device, dtype and compile decided for this machine, and `step`: fused, compiled or eager.

    Says what it chose where a user would wonder. Raises UserError for what this machine has not.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device, dtype, narrow = c["device"], c["dtype"], c["dropout"] == 0 and c["dtype"] != "bfloat16"
    if device == "auto":
        device = "cuda" if have["cuda"] else "cpu"
        fast = narrow and c["compile"] and fused.compiler() and seconds(c, "cpu", "fused") < MINUTE
        if device == "cuda" and fast:
            device = "cpu"
            print("training on the CPU, within about a minute; --device=cuda chooses the GPU")
        elif (device == "cpu" and torch.version.cuda and shutil.which("nvidia-smi")
              and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")):  # which hides it on purpose
            print("warning: a GPU that this PyTorch cannot use (an old driver?): training on the CPU")
    if not have[device]:
        raise UserError(f"--device={device}: there is none here; expected one of "
                        + ", ".join(k for k, v in have.items() if v))
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" and c["n_layer"] > 1 else "float32"
    if device == "cpu" and dtype == "bfloat16" and not torch.cpu._is_avx512_bf16_supported():
        print("warning: this processor has no bfloat16 instructions: float32 would be many times faster")
    if device == "cuda":
        step, lacking = "compiled", lacks_for_compiling()
    elif device == "cpu" and narrow:
        step, lacking = "fused", "" if fused.compiler() else "a C++ compiler; install g++ or clang++"
    else:  # torch.compile gains nothing there
        step, lacking = "eager", "what to compile: on a CPU it is float32 without dropout"
    if c["compile"] is True and lacking:
        raise UserError(f"--compile=True lacks {lacking}, or leave --compile=auto")
    c = c | {"device": device, "dtype": dtype}
    if c["compile"] == "auto":
        pays = step != "eager" and seconds(c, device, step) < seconds(c, device, "eager")
        if pays and lacking:
            print(f"training without compilation, which is slower by far: it lacks {lacking}")
        elif device == "cuda" and not pays:
            print("training without compilation, which would not pay in so short a run, or --compile=True")
        c["compile"] = pays and not lacking
    return c | {"step": step if c["compile"] else "eager"}


def make(c: dict, cfg: GPTConfig, state: dict[str, torch.Tensor], text: torch.Tensor) -> Engine:
    """The engine of a config that `resolve` has decided, to train `state` on `text`, int32 token ids."""
    kind = fused.Fused if c["step"] == "fused" else pytorch.PyTorch
    return kind(c, cfg, state, text)


def host_memory(device: str) -> Callable:
    """Makes an int32 array on the host, as np.empty does, from which `device` copies while nobody waits."""
    def pinned(shape: tuple[int, ...], dtype) -> np.ndarray:
        return torch.empty(shape, dtype=torch.int32, pin_memory=True).numpy()

    return pinned if device == "cuda" else np.empty


def memory(c: dict, cfg: GPTConfig) -> int:
    """About how many bytes a run takes, within a factor of two; `c` as `resolve` decided it."""
    S, n, T, m = c["num_seeds"], cfg.n_embd, cfg.block_size, cfg.mlp_expansion
    weights = S * sum(math.prod(shape) for shape in shapes(cfg).values())
    windows = S * c["batch_size"]
    if c["step"] == "fused":  # a gradient for each tile of windows
        libraries, copies = 250 * 2**20, 10
        activations = windows / fused.windows_per_tile(cfg) * weights / S
    else:  # for each token what every layer keeps, and what one needs for going back
        libraries, copies = 310 * 2**20, 16
        layer = (14 + 4 * m) * n + 3 * cfg.n_head * T
        tokens = windows * T if c["device"] != "cpu" else min(windows * T, pytorch.SLICE // n)
        activations = tokens * ((cfg.n_layer + 1) * layer + 8 * (n + cfg.vocab_size))
    blocks = 2 * BLOCK * windows  # of batches: the one in use, and the next
    return int(libraries + 4 * (copies * weights + activations + blocks))


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


def check_memory(c: dict, cfg: GPTConfig) -> None:
    """Raises UserError if a run, `c` as `resolve` decided it, cannot fit."""
    need, have = memory(c, cfg), memory_of(c["device"])
    if need > have:
        raise UserError(f"about {need / 2**30:,.0f} GiB of memory are needed, and {c['device']} has "
                        f"{have / 2**30:,.0f}; lower num_seeds, batch_size, block_size, n_embd or n_layer")


@contextmanager
def out_of_memory(c: dict):
    """Around training: a device's or this machine's own 'out of memory', in our words."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:  # PyTorch's own, or what a library or a compiler makes of it
        words = "out of memory|ALLOC_FAILED|can't allocate|not enough memory"
        if isinstance(e, RuntimeError) and not re.search(words, f"{e} {e.__context__}", re.IGNORECASE):
            raise
        raise UserError(f"{c['device']} is out of memory with num_seeds = {c['num_seeds']}, batch_size = "
                        f"{c['batch_size']}; lower one, or share the seeds among several processes") from None
