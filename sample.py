"""Sample text from a trained model:
  python sample.py --out_dir=results/math_mini_14 --start="<7-5" --max_new_tokens=3 --num_samples=3
"""
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import config  # before numpy and torch: from then on Ctrl-C is quiet
from config import KEYS, Key, UserError

# isort: split
import numpy as np
import torch

from data import encode, rng
from data.files import write_table
from data.log import rank_folders, seeds_together
from model import GPTConfig, flatten, forward, load_checkpoint, unflatten

ROWS = 4096  # texts in one forward pass, of all seeds together
RUN_KEYS = {  # what every tool that reads a run takes
    "out_dir": KEYS["out_dir"],
    "ckpt": Key("ckpt.pt", "checkpoint in out_dir, such as ckpt_best_math.pt", path=True),
    "model_seed": Key(-1, "which trained seed; -1 is the first", lo=-1),
    "dataset": Key("", "what a checkpoint that does not say it, nanoGPT's, was trained on"),
}
ASK_KEYS = {"all_seeds": Key(False, "ask every seed; for one, an answer is right if all its samples are"),
            "csv": Key("", "file for a table of the answers; by default none is written", path=True)}
SAMPLE_KEYS = {
    "start": Key("\n", "prompt, or FILE:prompt.txt, whose last newline is the file's, not the prompt's"),
    "num_samples": Key(10, "how many samples to print", lo=1, hi=100_000),
    "max_new_tokens": Key(50, "characters in each sample", lo=1, hi=100_000),
    "temperature": Key(0.8, "1 leaves the model's distribution as it is, 0 is greedy", lo=0, hi=1e6),
    "top_k": Key(200, "sample among the k likeliest characters; above the vocabulary means all", lo=1),
    "seed": Key(1337, "of the sampling", lo=0, hi=2**31 - 1),
}


@dataclass(frozen=True)
class Trained:
    """Trained seeds of one run: params (S, P), the vocabulary, and each seed's number and iteration."""
    params: torch.Tensor
    cfg: GPTConfig
    vocab: str
    seeds: list[int]
    iters: list[int]
    numbers: int
    held_out: tuple[tuple[int, int], ...]
    device: torch.device = torch.device("cpu")

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """As an Engine's."""
        return forward(unflatten(self.params, self.cfg), tokens, self.cfg, last=last)[:, :, 0]

    def embedding(self) -> np.ndarray:
        """The token embeddings (S, vocab_size, n_embd)."""
        return unflatten(self.params, self.cfg)["transformer.wte.weight"].numpy()

    def only(self, seed: int) -> "Trained":
        """That seed alone, -1 the first. Raises UserError if it was not trained."""
        if seed != -1 and seed not in self.seeds:
            trained = ", ".join(map(str, self.seeds))
            raise UserError(f"model_seed {seed} is not among those trained: {trained}")
        i = 0 if seed == -1 else self.seeds.index(seed)
        return replace(self, params=self.params[i:i + 1], seeds=[self.seeds[i]], iters=[self.iters[i]])


def open_model(out_dir: str, ckpt: str = "ckpt.pt", dataset: str = "") -> Trained:
    """All seeds of a run, its rank_N/ folders taken together.

    Raises UserError as `load_checkpoint` does, and for a missing folder or parts of different runs.
    """
    if not Path(out_dir).is_dir():
        raise UserError(f"no folder {out_dir}; expected the out_dir of a run of train_with_eval.py")
    ckpts, configs = zip(*(load_checkpoint(folder / ckpt, dataset) for folder in rank_folders(Path(out_dir))))
    seeds, iters = seeds_together(Path(out_dir), ckpts), []
    for rank in ckpts:  # iter_num is a number, or in a best checkpoint one for each seed
        it = rank["iter_num"]
        iters += it if isinstance(it, list) else [it] * len(rank["seeds"])
    params = torch.cat([flatten(rank["model"], configs[0]) for rank in ckpts])
    return Trained(params, configs[0], ckpts[0]["vocab"], seeds, iters, ckpts[0]["numbers"],
                   ckpts[0]["held_out"])


def pick(logits: torch.Tensor, row: np.ndarray, u: np.ndarray, temperature: float, top_k: int) -> np.ndarray:
    """Draw a token for each sample (S, M), from the logits (S, R, V) of its `row`, by its `u` in [0, 1)."""
    best, ids = (x.cpu().numpy() for x in logits.topk(min(top_k, logits.shape[-1])))
    seed = np.arange(len(row))[:, None]
    if temperature == 0:
        return ids[seed, row, 0]
    with np.errstate(over="ignore"):  # the likeliest is 0, and the others may be -inf
        odds = np.exp((best - best[..., :1]) / np.float32(max(temperature, 1e-30))).cumsum(-1)[seed, row]
    rank = (odds <= u[..., None] * odds[..., -1:]).sum(-1)
    return ids[seed, row, np.minimum(rank, odds.shape[-1] - 1)]


def distinct(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each seed's distinct texts, by their keys (S, M): a sample (S, R) that has the text, and which of them
    each sample (S, M) has. Seeds with fewer texts repeat their last one."""
    found = [np.unique(row, return_index=True, return_inverse=True)[1:] for row in key]
    most = max(len(first) for first, _ in found)
    return (np.stack([np.pad(first, (0, most - len(first)), mode="edge") for first, _ in found]),
            np.stack([which for _, which in found]))


def generate(model, prompts: list[np.ndarray], u: np.ndarray, temperature: float, top_k: int,
             stop: int | None = None) -> np.ndarray:
    """Continue prompts, token ids each: (S, prompts, samples, new tokens), by uniforms `u` of that shape.

    `model` is an Engine or a Trained. A text longer than the block is cropped to its last block_size tokens.
    Equal texts of a seed share a row of the forward pass, so ten cold samples cost hardly more than one. With
    a `stop` token the generation ends when every sample has produced it; what follows it is `stop` again.
    """
    (S, P, N, new), block = u.shape, model.cfg.block_size
    length = np.array([len(prompt) for prompt in prompts]).repeat(N)  # (M,), of P * N samples
    text = np.zeros((S, P * N, length.max() + new), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        text[:, i * N:(i + 1) * N, :len(prompt)] = prompt
    out = np.full((S, P * N, new), 0 if stop is None else stop)
    key, seed = np.tile(np.arange(P).repeat(N), (S, 1)), np.arange(S)[:, None]
    for t in range(new):
        first, row = distinct(key)
        T = min(int(length.max()), block)
        start = np.maximum(length - T, 0)[first]  # (S, R)
        window = text[seed[..., None], first[..., None], start[..., None] + np.arange(T)]
        chunk = max(1, ROWS // S)
        pairs = zip(*(torch.from_numpy(x).to(model.device).split(chunk, dim=1)
                      for x in (window, length[first] - start - 1)))
        logits = torch.cat([model.logits(tokens, last) for tokens, last in pairs], dim=1)
        token = pick(logits, row, u[..., t].reshape(S, P * N), temperature, top_k)
        if stop is not None:
            token = np.where((out[..., :t] == stop).any(-1), stop, token)
        out[..., t] = token
        if stop is not None and (token == stop).all():
            break
        text[:, np.arange(P * N), length] = token
        key, length = row * model.cfg.vocab_size + token, length + 1
    return out.reshape(S, P, N, new)


def complete(model, vocab: str, prompts: list[str], gens: list[np.random.Generator], new: int,
             num_samples: int, temperature: float, top_k: int, stop: str = "") -> np.ndarray:
    """The texts, `new` characters long, that each seed writes after each prompt: (S, prompts, num_samples).

    `gens` holds a random generator for each seed. Raises UserError for a prompt that is empty or that has
    characters which the vocabulary lacks.
    """
    if not all(prompts):
        raise UserError("the prompt is empty; expected at least one character of the vocabulary")
    ids = [encode(prompt, vocab, f"prompt {prompt!r}") for prompt in prompts]
    u = np.stack([gen.random((len(prompts), num_samples, new), dtype=np.float32) for gen in gens])
    stop_id = vocab.index(stop) if stop and stop in vocab else None
    tokens = generate(model, ids, u, temperature, top_k, stop_id)
    return np.ascontiguousarray(np.array(list(vocab))[tokens]).view(f"<U{new}")[..., 0]


def kept_checkpoints(out_dir: str, most: int = 75) -> list[str]:
    """The kept checkpoints of a run, ckpt_000250.pt and so on, in order: `most` at most, the first one and,
    of the others, those nearest to iterations spaced evenly on a logarithmic scale."""
    names = [path.stem[5:] for path in rank_folders(Path(out_dir))[0].glob("ckpt_*.pt")]
    its = sorted(int(name) for name in names if name.isdecimal())
    if len(its) > most:
        wanted = np.geomspace(max(its[1], 1), its[-1], most - 1)
        its = sorted({its[0], *(min(its, key=lambda it: abs(it - near)) for near in wanted)})
    return [f"ckpt_{it:06}.pt" for it in its]


def ask_run(argv: list[str], doc: str, ask, **more: Key) -> tuple[dict, Trained, np.ndarray]:
    """An evaluator's command line: (its settings, the seeds that it asks, what they answer).

    The answers are what `ask(model, model, seeds, iters, **sampling)` gives, (S, prompts, num_samples).
    """
    sampling = {name: KEYS[name] for name in ("num_samples", "temperature", "top_k")}
    args = config.settings(argv, RUN_KEYS | sampling | ASK_KEYS | more, doc)
    model = open_model(args["out_dir"], args["ckpt"], args["dataset"])
    model = model if args["all_seeds"] else model.only(args["model_seed"])
    texts = ask(model, model, model.seeds, model.iters, **{name: args[name] for name in sampling})
    return args, model, texts


def distinct_texts(texts: np.ndarray) -> np.ndarray:
    """The distinct texts, stripped, of (..., N), the most frequent first and joined by "|": (...)."""
    counts = [Counter(text.strip() for text in row) for row in texts.reshape(-1, texts.shape[-1])]
    return np.array(["|".join(text for text, _ in c.most_common()) for c in counts]).reshape(texts.shape[:-1])


def tally(texts: np.ndarray) -> str:
    """Distinct texts, stripped, each with how often it occurs: "'12' x3, '7>' x1"."""
    unique, counts = np.unique([text.strip() for text in texts], return_counts=True)
    return ", ".join(f"{text!r} x{n}" for text, n in zip(unique.tolist(), counts))


def print_answers(args: dict, model: Trained, texts: np.ndarray, correct: np.ndarray, columns: list[str],
                  prompts: list[tuple], report: Callable) -> None:
    """Print what `report(texts, correct)` says of the first seed's samples (prompts, num_samples) or, of all
    seeds, where an answer is right if all its samples are, of (prompts, S). Before it, with `--csv`, write a
    row for each seed and prompt, of which `columns` name the values in `prompts`.
    """
    said, (S, _, N) = distinct_texts(texts), texts.shape
    write_table(args["csv"], ["seed", "iter", *columns, "correct", "total", "answers"], (
        (*who, *prompt, correct[s, i].sum(), N, said[s, i])
        for s, who in enumerate(zip(model.seeds, model.iters)) for i, prompt in enumerate(prompts)))
    seeds, iters = (" to ".join(map(str, sorted({min(x), max(x)}))) for x in (model.seeds, model.iters))
    of = f"{S} seeds" if args["all_seeds"] else f"{N} samples"
    print(f"{args['out_dir']}/{args['ckpt']}: seed {seeds}, iteration {iters}; correct of {of}\n")
    print(report(said.T, correct.all(2).T) if args["all_seeds"] else report(texts[0], correct[0]))


def read_prompt(start: str) -> str:
    """The prompt that `--start` stands for. Raises UserError if its file is missing or no text."""
    if not start.startswith("FILE:"):
        return start
    path = Path(os.path.expanduser(start.removeprefix("FILE:")))
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as e:
        raise UserError(f"prompt file {path}: {e.strerror}; expected a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"prompt file {path} is not UTF-8 text; save it as such") from None


def main(argv: list[str]) -> None:
    """Print samples of one trained seed, each with its prompt, a rule after each."""
    args = config.settings(argv, RUN_KEYS | SAMPLE_KEYS, __doc__)
    model = open_model(args["out_dir"], args["ckpt"], args["dataset"]).only(args["model_seed"])
    prompt = read_prompt(args["start"])
    texts = complete(model, model.vocab, [prompt], [rng(args["seed"], "sample")], args["max_new_tokens"],
                     args["num_samples"], args["temperature"], args["top_k"])
    for text in texts[0, 0]:
        print(f"{prompt}{text}\n---------------")


if __name__ == "__main__":
    config.run(main)
