"""An independent GPT in plain PyTorch, as nanoGPT writes it: one model, tokens before features."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPTConfig, shapes, unflatten


class Attention(nn.Module):
    """Causal self-attention, by PyTorch's own kernel."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.n_head = cfg.n_head
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=False)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        heads = (y.view(B, T, self.n_head, -1).transpose(1, 2) for y in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(cfg.n_embd, cfg.mlp_expansion * cfg.n_embd, bias=False)
        self.c_proj = nn.Linear(cfg.mlp_expansion * cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Pre-LayerNorm block."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(cfg.n_embd, bias=False) for _ in range(2))
        self.attn, self.mlp = Attention(cfg), MLP(cfg)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.block_size = cfg.block_size
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(cfg.vocab_size, cfg.n_embd), wpe=nn.Embedding(cfg.block_size, cfg.n_embd),
            h=nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer)),
            ln_f=nn.LayerNorm(cfg.n_embd, bias=False)))
        self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids):
        t = self.transformer
        x = t.wte(ids) + t.wpe(torch.arange(ids.shape[1]))
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x))


def loaded(model: dict[str, torch.Tensor], seed: int, cfg: GPTConfig) -> GPT:
    """The plain model of row `seed` of a checkpoint's `model`, by the one-liner that the design documents."""
    weights = {k: v[seed] for k, v in model.items()}
    gpt = GPT(cfg).to(weights["lm_head.weight"].dtype)
    gpt.load_state_dict(weights, strict=True)
    return gpt


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
        logits = gpt(torch.tensor([ids[-gpt.block_size:]]))[0, -1].double()
        order = logits.argsort(descending=True).tolist()[:top_k]
        if temperature > 0:
            weights = (logits[order] / temperature).softmax(0).cumsum(0)
            order = order[int((weights <= x).sum()):]
        ids.append(order[0])
        out.append(order[0])
    return out
