"""The training step of a CPU: step.cpp, compiled for one shape of model when a run starts (about 3 s).

What it computes is `update` of train_with_eval.py and `forward` of model.py, to rounding, for float32 without
dropout; the tests hold the two against each other. It is some 10 times faster than the same step under
torch.compile, whose every operation goes through memory: these models are so narrow that a few windows, with
all that is computed of them, fit a core's own cache.
"""
import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

from config import UserError
from model import GPTConfig

SOURCE = Path(__file__).with_name("step.cpp")
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-std=c++17", "-O3", NATIVE, "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++, else clang++; None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def build(cfg: GPTConfig) -> ctypes.CDLL:
    """step.cpp for models of this shape. Raises UserError, with the compiler's first words, if it fails."""
    shape = dict(N=cfg.n_embd, M=cfg.mlp_expansion * cfg.n_embd, T=cfg.block_size, V=cfg.vocab_size,
                 LAYERS=cfg.n_layer, HEADS=cfg.n_head)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "step.so"
        done = subprocess.run([compiler(), *FLAGS, *(f"-D{k}={v}" for k, v in shape.items()), str(SOURCE),
                               "-o", str(library)], capture_output=True, text=True,
                              process_group=0)  # Ctrl-C reaches the run alone
        if done.returncode:
            why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
            raise UserError(f"{compiler()} cannot compile {SOURCE.name}: {why}; train with --compile=False")
        try:
            lib = ctypes.CDLL(str(library))  # stays loaded after its file is gone
        except OSError as e:
            raise UserError(f"cannot load {SOURCE.name}, compiled: {e}; set TMPDIR to a folder that may hold "
                            "programs, or train with --compile=False") from None
    lib.scratch_size.restype = ctypes.c_int64
    return lib


def windows_per_tile(cfg: GPTConfig) -> int:
    """Windows that share a gradient in step.cpp, at most."""
    return 16 * -(-18 // cfg.block_size)


@contextmanager
def one_thread():
    """PyTorch's own operations on one thread: those between two calls of `logits` are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at(tensor: torch.Tensor) -> ctypes.c_void_p:
    """The address of a tensor's first element."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


class Fused:
    """The compiled step of `num_seeds` models of one shape, and their losses over a text."""

    def __init__(self, cfg: GPTConfig, num_seeds: int, batch_size: int):
        self.lib, self.cfg, self.seeds, self.batch_size = build(cfg), cfg, num_seeds, batch_size
        self.threads = torch.get_num_threads()
        size = self.lib.scratch_size(num_seeds, batch_size, self.threads)
        self.scratch = torch.empty(size, dtype=torch.uint8)

    def train(self, state: dict[str, torch.Tensor], text: torch.Tensor, batches: torch.Tensor,
              schedule: torch.Tensor, decay: torch.Tensor, c: dict, iterations: int) -> None:
        """Make `iterations` updates of `state`, in place, as so many calls of `update` would.

        `text`: token ids, int32; `batches` (block, S, B) int32: the offsets of a block of iterations;
        `schedule` and `decay` as `update` has them.
        """
        assert state["it"].item() + iterations <= len(schedule)
        real = ctypes.c_float
        self.lib.train(at(state["params"]), at(state["exp_avg"]), at(state["exp_avg_sq"]), at(state["it"]),
                       at(state["first_bad"]), at(text), len(text), at(batches), len(batches), at(schedule),
                       at(decay), self.seeds, self.batch_size, real(c["beta1"]), real(c["beta2"]),
                       real(c["grad_clip"]), iterations, self.threads, at(self.scratch))

    def losses(self, params: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Cross-entropy (S, windows), in nats per character, of each window of a text under params (S, P)."""
        out = torch.empty(self.seeds, len(text) - self.cfg.block_size)
        self.lib.losses(at(params), at(text), out.shape[1], self.seeds, self.threads, at(self.scratch),
                        at(out))
        return out

    def logits(self, params: torch.Tensor, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Of texts (S, T, B), T <= block_size, the logits (S, vocab_size, 1, B) at position `last` (S, B)."""
        S, T, B = tokens.shape
        last = last.contiguous()  # a name of its own: the address alone would not keep it alive
        padded = torch.zeros(S * B * self.cfg.block_size + 1, dtype=torch.int32)  # one to spare
        padded[:-1].view(S, B, -1)[:, :, :T] = tokens.mT
        out = torch.empty(S, B, self.cfg.vocab_size)
        self.lib.logits(at(params), at(padded), at(last), B, S, self.threads, at(self.scratch),
                        at(out))
        return out.mT.unsqueeze(2)
