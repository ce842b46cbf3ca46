"""The engine of a CPU: step.cpp, compiled for one shape of model when a run starts (about 2 s).

What it computes is `step` of pytorch.py and `forward` of model.py, to rounding, for float32 without
dropout; the tests hold the two against each other. PyTorch's every operation goes through memory: these
models are so narrow that a few windows, with all that is computed of them, fit a core's own cache.
"""
import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from config import UserError
from model import GPTConfig, decayed

SOURCE = Path(__file__).with_name("step.cpp")
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-std=c++17", "-O3", NATIVE, "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")


def compiler() -> list[str] | None:
    """The C++ compiler's command: $CXX, with its arguments, else g++, else clang++; None if there is none, or
    only a name for one, as on a Mac without its tools."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["g++"], ["clang++"]]:
        if (shutil.which(command[0])
                and subprocess.run([*command, "--version"], capture_output=True).returncode == 0):
            return command
    return None


def build(cfg: GPTConfig) -> ctypes.CDLL:
    """step.cpp for models of this shape. Raises UserError, with the compiler's first words, if it fails."""
    shape = dict(N=cfg.n_embd, M=cfg.mlp_expansion * cfg.n_embd, T=cfg.block_size, V=cfg.vocab_size,
                 LAYERS=cfg.n_layer, HEADS=cfg.n_head)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "step.so"
        done = subprocess.run([*compiler(), *FLAGS, *(f"-D{k}={v}" for k, v in shape.items()), str(SOURCE),
                               "-o", str(library)], capture_output=True, text=True,
                              process_group=0)  # Ctrl-C reaches the run alone
        if done.returncode:
            why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
            raise UserError(f"{shlex.join(compiler())} cannot compile {SOURCE.name}: {why}; "
                            "train with --compile=False")
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


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """The address of a tensor's first element."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


class Fused:
    """The Engine (see there) of step.cpp."""

    def __init__(self, c: dict, cfg: GPTConfig, state: dict[str, torch.Tensor], text: torch.Tensor):
        self.lib, self.c, self.cfg, self.device = build(cfg), c, cfg, torch.device("cpu")
        self.state = {k: v.clone() for k, v in state.items()}
        self.text, self.decay = text, decayed(cfg) * c["weight_decay"]
        self.seeds, self.threads = len(state["params"]), torch.get_num_threads()
        size = self.lib.scratch_size(self.seeds, c["batch_size"], self.threads)
        self.scratch = torch.empty(size, dtype=torch.uint8)

    def update(self, batches: torch.Tensor, rates: torch.Tensor) -> None:
        """See Engine."""
        assert len(batches) == len(rates)
        c, real = self.c, ctypes.c_float
        self.lib.train(*(pointer(self.state[k]) for k in ("params", "exp_avg", "exp_avg_sq")),
                       pointer(self.text), len(self.text), pointer(batches), pointer(rates),
                       pointer(self.decay), self.seeds, c["batch_size"], real(c["beta1"]), real(c["beta2"]),
                       real(c["grad_clip"]), len(batches), self.threads, pointer(self.scratch))

    def losses(self, text: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """See Engine."""
        out = torch.empty(self.seeds, len(range(0, len(text) - self.cfg.block_size, stride)))
        self.lib.losses(pointer(self.state["params"]), pointer(text), stride, out.shape[1], self.seeds,
                        self.threads, pointer(self.scratch), pointer(out))
        return out

    def logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """See Engine."""
        S, B, T = tokens.shape
        last = last.contiguous()  # a name of its own: the address alone would not keep it alive
        padded = torch.zeros(S * B * self.cfg.block_size + 1, dtype=torch.int32)  # one to spare
        padded[:-1].view(S, B, -1)[:, :, :T] = tokens
        out = torch.empty(S, B, self.cfg.vocab_size)
        self.lib.logits(pointer(self.state["params"]), pointer(padded), pointer(last), B, S, self.threads,
                        pointer(self.scratch), pointer(out))
        return out
