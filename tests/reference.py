"""What follows from the benchmark's plain GPT: one model in PyTorch's own layers, nothing of model.py's."""
import torch
import torch.nn.functional as F

from bench import PlainGPT as GPT
from model import GPTConfig, shapes, unflatten


def loaded(model: dict[str, torch.Tensor], seed: int, cfg: GPTConfig) -> GPT:
    """The plain model of row `seed` of a checkpoint's `model`, by the one-liner that the design documents."""
    weights = {k: v[seed] for k, v in model.items()}
    gpt = GPT(cfg).to(weights["lm_head.weight"].dtype)
    gpt.load_state_dict(weights, strict=True)
    return gpt.eval()  # no dropout; gradients are the same


def gpt_of(flat: torch.Tensor, seed: int, cfg: GPTConfig) -> GPT:
    """The plain model of row `seed` of flat parameters (S, P)."""
    model = unflatten(flat.detach().clone(), cfg)
    return loaded(model | {"lm_head.weight": model["transformer.wte.weight"]}, seed, cfg)


def flat_of(gpt: GPT, cfg: GPTConfig, of=lambda p: p) -> torch.Tensor:
    """`of` each parameter of a plain model (the weight itself, or its gradient), as one flat row (P,)."""
    named = dict(gpt.named_parameters(remove_duplicate=False))
    return torch.cat([of(named[name]).detach().ravel() for name in shapes(cfg)])


def loss(gpt: GPT, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of windows (B, T + 1)."""
    return F.cross_entropy(gpt(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def continue_one(gpt: GPT, prompt: list[int], u, temperature: float, top_k: int, stop: int | None = None):
    """One sample, a token at a time: the uniform number u[t] picks from the sorted top_k probabilities."""
    ids, out = list(prompt), []
    for x in u:
        if stop is not None and stop in out:
            out.append(stop)
            continue
        logits = gpt(torch.tensor([ids[-gpt.cfg.block_size:]]))[0, -1].double()
        order = logits.argsort(descending=True).tolist()[:top_k]
        if temperature > 0:
            weights = (logits[order] / temperature).softmax(0).cumsum(0)
            order = order[int((weights <= x).sum()):]
        ids.append(order[0])
        out.append(order[0])
    return out
