"""The oracle: one GPT of one seed in PyTorch's own layers, as nanoGPT has it; of ours only the names."""
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from model import GPTConfig, shapes, unflatten


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg, n, m = cfg, cfg.n_embd, cfg.mlp_expansion * cfg.n_embd
        linear, norm = partial(nn.Linear, bias=False), partial(nn.LayerNorm, bias=False)
        blocks = [nn.ModuleDict(dict(
            ln_1=norm(n), attn=nn.ModuleDict(dict(c_attn=linear(n, 3 * n), c_proj=linear(n, n))),
            ln_2=norm(n), mlp=nn.ModuleDict(dict(c_fc=linear(n, m), c_proj=linear(m, n)))))
            for _ in range(cfg.n_layer)]
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(cfg.vocab_size, n), wpe=nn.Embedding(cfg.block_size, n), h=nn.ModuleList(blocks),
            ln_f=norm(n)))
        self.lm_head = linear(n, cfg.vocab_size)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        B, T = ids.shape
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(T))
        for h in self.transformer.h:
            q, k, v = (y.view(B, T, self.cfg.n_head, -1).transpose(1, 2)
                       for y in h.attn.c_attn(h.ln_1(x)).chunk(3, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + h.attn.c_proj(y.transpose(1, 2).flatten(2))
            x = x + h.mlp.c_proj(F.gelu(h.mlp.c_fc(h.ln_2(x))))
        return self.lm_head(self.transformer.ln_f(x))


def gpt_of(flat: torch.Tensor, seed: int, cfg: GPTConfig) -> GPT:
    """The plain model of row `seed` of flat parameters (S, P)."""
    weights = {k: v[seed] for k, v in unflatten(flat.detach().clone(), cfg).items()}
    gpt = GPT(cfg).to(flat.dtype)
    gpt.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]}, strict=True)
    return gpt


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
