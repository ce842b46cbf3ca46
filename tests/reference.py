"""The oracle: one GPT of one seed as nanoGPT has it, bench.py's, with autograd; of ours only the names."""
import torch
import torch.nn.functional as F

from bench import plain_logits
from model import GPTConfig, init_weights, shapes, unflatten

SHAPES = {
    "n14": GPTConfig(),
    "deep": GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8, mlp_expansion=4),
    "heads": GPTConfig(block_size=5, vocab_size=7, n_layer=1, n_head=3, n_embd=12, mlp_expansion=2),
}
Plain = dict[str, torch.Tensor]  # its weights by name, leaves


def random_weights(cfg: GPTConfig, S: int = 3) -> torch.Tensor:
    """Flat float64 parameters, all (LayerNorm too) far from their initial values: each one matters."""
    flat = init_weights(cfg, list(range(S))).double()
    return flat + 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(S)).double()


def gpt_of(flat: torch.Tensor, seed: int, cfg: GPTConfig) -> Plain:
    """The plain model of row `seed` of flat parameters (S, P)."""
    weights = unflatten(flat.detach().clone(), cfg)
    return {name: weight[seed].clone().requires_grad_() for name, weight in weights.items()}


def flat_of(gpt: Plain, cfg: GPTConfig, of=lambda weight: weight) -> torch.Tensor:
    """`of` each weight of a plain model (itself, or its gradient), as one flat row (P,)."""
    return torch.cat([of(gpt[name]).detach().ravel() for name in shapes(cfg)])


def loss_of(gpt: Plain, windows: torch.Tensor, cfg: GPTConfig) -> torch.Tensor:
    """Mean cross-entropy of windows (B, T + 1)."""
    return F.cross_entropy(plain_logits(gpt, windows[:, :-1], cfg).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def continue_one(gpt: Plain, cfg: GPTConfig, prompt: list[int], u, temperature: float, top_k: int,
                 stop: int | None = None) -> list[int]:
    """One sample, a token at a time: the uniform number u[t] picks from the sorted top_k probabilities."""
    ids, out = list(prompt), []
    for x in u:
        if stop is not None and stop in out:
            out.append(stop)
            continue
        logits = plain_logits(gpt, torch.tensor([ids[-cfg.block_size:]]), cfg)[0, -1].double()
        order = logits.argsort(descending=True).tolist()[:top_k]
        if temperature > 0:
            weights = (logits[order] / temperature).softmax(0).cumsum(0)
            order = order[int((weights <= x).sum()):]
        ids.append(order[0])
        out.append(order[0])
    return out
