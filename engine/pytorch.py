"""The engine in PyTorch: on any device, compiled or not; on CUDA an update is the replay of one graph."""
import gc
import time
import warnings

import torch

from model import SHORT, GPTConfig, decayed, forward, losses, unflatten

SLICE = 2**20  # on a CPU, numbers in an activation of the part of a batch that is computed at once


def take(text: torch.Tensor, offsets: torch.Tensor, block_size: int) -> torch.Tensor:
    """The windows of `text` at `offsets` (S, B), with the character after each: (S, B, block_size + 1)."""
    return text[offsets.unsqueeze(2) + torch.arange(block_size + 1, dtype=offsets.dtype, device=text.device)]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; nothing at all for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


def chunks(window: torch.Tensor, n_embd: int) -> int:
    """In how many parts a GPU computes each seed's batch (S, B, T + 1), with a copy of the weights for each.

    A narrow weight's gradient would be one long sum by few threads: in parts, an iteration of 64 seeds of n14
    took 2.8 ms, not 4.2, on an H100. That of one seed alone the library splits itself.
    """
    S, B, length = window.shape
    most = B * (length - 1) // (27 * n_embd) if window.is_cuda and S > 1 else 1
    return max(n for n in range(1, B + 1) if n == 1 or n <= most and B % n == 0)


def window_losses(flat: torch.Tensor, window: torch.Tensor, cfg: GPTConfig, dtype: torch.dtype,
                  dropout: float = 0.0) -> torch.Tensor:
    """Cross-entropy of windows (S, B, T + 1) under parameters (S, P), in nats per character: (S, B)."""
    S, B, length = window.shape
    n = chunks(window, cfg.n_embd)
    flat, window = flat.unsqueeze(1).expand(-1, n, -1).flatten(0, 1), window.reshape(S * n, -1, length)
    with autocast(flat.device, dtype):
        logits = forward(unflatten(flat, cfg), window[..., :-1], cfg, dropout)
    return losses(logits, window[..., 1:]).mean(2).view(S, B)


def adamw(state: dict[str, torch.Tensor], grad: torch.Tensor, rate: torch.Tensor, decay: torch.Tensor,
          c: dict) -> None:
    """AdamW of every seed, in place, by `grad` (S, P), each clipped by its own norm; `rate` (3,): learning
    rate and Adam's two bias corrections, `decay` (P,): the weight decay of each parameter."""
    lr, bias1, bias2 = rate.unbind()
    if c["grad_clip"]:
        norm = grad.square().sum(1, keepdim=True).sqrt()
        grad = grad * (c["grad_clip"] / (norm + 1e-6)).clamp(max=1)
    m = state["exp_avg"].lerp_(grad, 1 - c["beta1"])
    v = state["exp_avg_sq"].lerp_(grad.square(), 1 - c["beta2"])
    state["params"].mul_(1 - lr * decay).sub_(lr / bias1 * m / (v.sqrt() / bias2 + 1e-8))


def record(step, state: dict[str, torch.Tensor]):
    """`step` as the replay of one CUDA graph; `state` and the random generator are left as they were."""
    saved, random_state = {k: v.clone() for k, v in state.items()}, torch.cuda.get_rng_state()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and lets the libraries allocate what they need
            step()
            for k, v in saved.items():
                state[k].copy_(v)
    torch.cuda.current_stream().wait_stream(side)
    gc.collect()  # a tensor freed by a later collection would be freed inside the graph
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # records; batches are drawn elsewhere
        step()
    torch.cuda.set_rng_state(random_state)
    return graph.replay


class PyTorch:
    """The Engine (see there) of `model.forward`. An update reads its batch and rates from fixed places."""

    def __init__(self, c: dict, cfg: GPTConfig, state: dict[str, torch.Tensor], text: torch.Tensor):
        self.c, self.cfg = c, cfg
        self.device, self.dtype = torch.device(c["device"]), getattr(torch, c["dtype"])
        self.state = {k: v.to(self.device, copy=True) for k, v in state.items()}
        self.text, self.decay = text.to(self.device), (decayed(cfg) * c["weight_decay"]).to(self.device)
        S = len(state["params"])
        self.offsets = torch.zeros(S, c["batch_size"], dtype=torch.int32, device=self.device)
        self.rate = torch.ones(3, device=self.device)
        self.window_losses, self.adamw, self.replay = window_losses, adamw, None
        if c["step"] == "compiled":
            torch.compiler.reset()  # a process may compile more runs than its cache of eight takes
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # off on purpose
            # without benchmarks that choose kernels, and with them the order of sums, run by run; where
            # attention is sums, those of less than 32 numbers by one thread each
            on_cuda = {"deterministic": True}
            if cfg.block_size <= SHORT:
                on_cuda["unroll_reductions_threshold"] = 32
            options = on_cuda if self.device.type == "cuda" else None
            self.window_losses, self.adamw = (
                torch.compile(f, fullgraph=True, dynamic=False, options=options)
                for f in (window_losses, adamw))

    def step(self) -> None:
        """One update of every seed, in place, on the batch and the rates that lie in their places."""
        window, cfg = take(self.text, self.offsets, self.cfg.block_size), self.cfg
        size = self.offsets.numel() * cfg.block_size * cfg.n_embd
        slices = -(-size // SLICE) if self.device.type == "cpu" else 1
        with torch.enable_grad():
            flat = self.state["params"].detach().requires_grad_()
            for windows in window.chunk(slices, dim=1):
                loss = self.window_losses(flat, windows, cfg, self.dtype, cfg.dropout)
                (loss.sum() / window.shape[1]).backward()  # of the sum over seeds: none sees the others
        self.adamw(self.state, flat.grad, self.rate, self.decay, self.c)

    @torch.no_grad()
    def update(self, batches: torch.Tensor, rates: torch.Tensor) -> None:
        """See Engine."""
        on_cuda = self.device.type == "cuda"
        if on_cuda and not self.replay:
            began = time.perf_counter()
            self.replay = record(self.step, self.state)
            print(f"{self.c['step']} update recorded in {time.perf_counter() - began:.1f} s")
        for offsets, rate in zip(*(x.to(self.device, non_blocking=True) for x in (batches, rates))):
            self.offsets.copy_(offsets)
            self.rate.copy_(rate)
            self.replay() if on_cuda else self.step()
        if on_cuda:
            torch.cuda.synchronize()

    @torch.no_grad()
    def losses(self, text: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """See Engine."""
        S, B = self.offsets.shape
        text, n, out = text.to(self.device), len(range(0, len(text) - self.cfg.block_size, stride)), []
        for i in range(0, n, B):
            offsets = torch.arange(i, i + B, dtype=torch.int32, device=self.device).clamp(max=n - 1)
            window = take(text, offsets.expand(S, B) * stride, self.cfg.block_size)
            out.append(self.window_losses(self.state["params"], window, self.cfg, self.dtype).float())
        return torch.cat(out, 1)[:, :n].cpu()

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """See Engine."""
        with autocast(self.device, self.dtype):
            p = unflatten(self.state["params"], self.cfg)
            return forward(p, tokens, self.cfg, last=last)[:, :, 0].float()
