"""Addition and subtraction: does the model answer every equation of its table, the held-out ones too?

As a script, a table per equation of one checkpoint; with --csv=FILE a row per seed and equation there:
  python eval_as_math.py --out_dir=results/math_mini_14 --all_seeds
and, with --inside=answers/n14.csv, what is answered instead and whether the number line is used: a row per
seed and test, of the kept checkpoints if there are any, else of --ckpt.
Of numbers 0 .. N-1 there are 2 N^2 equations, P below: 200 of single digits.
"""
import math
import re
from dataclasses import replace
from functools import partial
from itertools import combinations

import config  # before numpy and torch: from then on Ctrl-C is quiet

# isort: split
import numpy as np
import torch

from config import Key
from data import encode, rng
from data.as_math.prepare import equations
from data.files import write_table
from model import count_parameters, flatten, unflatten
from sample import Trained, ask_run, complete, kept_checkpoints, open_model, print_answers, tally

INSIDE = "seed,iter,parameters,test,asked,right,off_1,off_2,off_more,none,answers".split(",")
MOST = 200  # equations of a table that is printed, and of those with wrong answers


def table(n: int, pairs=()) -> list[tuple[int, str, int, int, bool]]:
    """(a, op, b, answer, whether it is held out) of the table that has n equations."""
    return equations(math.isqrt(n // 2), pairs)


def answers_of(n: int) -> np.ndarray:
    """The answers of that table: (n,)."""
    return np.array([e[3] for e in table(n)])


def prompts(dataset) -> list[str]:
    """`<a+b=` and `<a-b=`, for the numbers of a Dataset or a Trained."""
    return [f"<{a}{op}{b}=" for a, op, b, *_ in equations(dataset.numbers)]


def new_tokens(dataset) -> int:
    """Characters to ask for: the longest answer, "-9>" or "18>", and one more."""
    return len(f"{1 - dataset.numbers}> ")


def ask(model, dataset, seeds: list[int], iters: list[int], **sampling) -> np.ndarray:
    """What each seed writes after each of `prompts`: (S, P, num_samples) of str.

    `model` is an Engine or a Trained, `dataset` a Dataset or a Trained; `sampling`: num_samples, temperature,
    top_k. Raises UserError if the vocabulary cannot spell the prompts.
    """
    gens = [rng(seed, "math samples", iter_num) for seed, iter_num in zip(seeds, iters)]
    return complete(model, dataset.vocab, prompts(dataset), gens, new_tokens(dataset), **sampling)


def numbers(texts: np.ndarray, end: str = "") -> np.ndarray:
    """The integer, with `end` behind it, that each text starts with, or NaN: of the shape of `texts`."""
    unique, where = np.unique(texts, return_inverse=True)
    found = [re.match(f"(-?[0-9]+){end}", text) for text in unique]
    return np.array([float(m[1]) if m else np.nan for m in found])[where].reshape(texts.shape)


def is_correct(texts: np.ndarray) -> np.ndarray:
    """Whether the integer that a text starts with is the answer, for (..., P, num_samples): bool."""
    return numbers(texts) == answers_of(texts.shape[-2])[:, None]


def held_out_mask(n: int, pairs) -> np.ndarray:
    """Which of a table's n equations were never shown, by the data's held-out pairs: bool (n,)."""
    return np.array([e[4] for e in table(n, pairs)])


def ask_again(run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a run (data.log.RunLog) answers by its ckpt.pt, asked as in its last evaluation; which of the
    equations were held out, and which are additions. Raises UserError if there is no ckpt.pt."""
    model, sampling = open_model(str(run.folder)), ("num_samples", "temperature", "top_k")
    texts = ask(model, model, model.seeds, model.iters, **{key: run.info["config"][key] for key in sampling})
    n = texts.shape[1]
    return texts, held_out_mask(n, model.held_out), np.arange(n) < n // 2


def totals(correct: np.ndarray, pairs) -> dict[str, int | float]:
    """The log's columns from one seed's `is_correct` (P, num_samples), with the data's held-out pairs."""
    half = len(correct) // 2
    columns = {"math_acc": float(correct.mean())}
    for name, part in (("add", correct[:half]), ("sub", correct[half:]),
                       ("heldout", correct[held_out_mask(len(correct), pairs)])):
        columns |= {f"{name}_correct": int(part.sum()), f"{name}_total": part.size}
    return columns


def digit_table(score: np.ndarray, held_out: np.ndarray, width: int) -> str:
    """A table of one operation from (N, N): correct samples per equation, held-out ones in brackets."""
    cells = [[f"[{n}]" if out else f"{n} " for n, out in zip(*row)] for row in zip(score, held_out)]
    rows = zip(["a\\b", *range(len(score))], [range(len(score)), *cells])
    return "\n".join(str(a).rjust(4) + "".join(str(cell).rjust(width) for cell in row) for a, row in rows)


def report(texts: np.ndarray, correct: np.ndarray, pairs) -> str:
    """What `main` prints of texts (P, N): one seed's samples, or one text of each seed."""
    (P, N), blocks = correct.shape, []
    held_out, addition = held_out_mask(P, pairs), np.arange(P) < P // 2
    for name, which in (("Addition a+b", addition), ("Subtraction a-b", ~addition)) if P <= MOST else ():
        score, out = (x[which].reshape(math.isqrt(P // 2), -1) for x in (correct.sum(1), held_out))
        blocks.append(f"{name} ([held-out], never shown in training)\n"
                      + digit_table(score, out, len(str(N)) + 3))
    wrong = [f"  {a}{op}{b}={c}{' [held-out]' * out}: {tally(answers[~right])}"
             for (a, op, b, c, out), answers, right in zip(table(P, pairs), texts, correct)
             if not right.all()]
    if len(wrong) > MOST:
        wrong[MOST:] = [f"  and {len(wrong) - MOST} more"]
    blocks.append("\n".join(["Answered instead:", *wrong]) if wrong else "Everything is right.")
    parts = {"addition": addition, "subtraction": ~addition, "both, seen in training": ~held_out,
             "both, held out": held_out}
    blocks.append("\n".join(f"{name:24}{correct[which].sum():5} / {correct[which].size:<5} "
                            f"{correct[which].mean():7.2%}" for name, which in parts.items() if which.any()))
    return "\n\n".join(blocks)


def substitutions() -> list[tuple[str, int, tuple[int, int]]]:
    """(test, digit, the two digits whose mean embedding takes its place), for 1 .. 8: "line", its neighbours;
    "control", every two that are at least 2 away."""
    far = {d: [e for e in range(10) if abs(e - d) > 1] for d in range(1, 9)}
    return [*(("line", d, (d - 1, d + 1)) for d in far),
            *(("control", d, pair) for d in far for pair in combinations(far[d], 2))]


class Reader(Trained):
    """A model that reads more characters than its vocabulary has, and says none of them."""

    def logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """As an Engine's."""
        return super().logits(tokens, last)[..., :len(self.vocab)]


def with_means(model: Trained) -> tuple[Reader, str]:
    """The model with a character more to read for each of `substitutions()`, whose embedding is the mean of
    those two digits'; and its vocabulary with these. What it says and its own digits stay as they are."""
    name, weights = "transformer.wte.weight", unflatten(model.params, model.cfg)
    ids = torch.from_numpy(encode("0123456789", model.vocab, "--inside, which replaces digits,")).long()
    pairs = [ids[list(pair)] for _, _, pair in substitutions()]
    more = torch.cat([weights[name], weights[name][:, torch.stack(pairs)].mean(2)], dim=1)
    cfg = replace(model.cfg, vocab_size=more.shape[1])
    vocab = model.vocab + "".join(map(chr, range(0xE000, 0xE000 + len(pairs))))  # private characters
    return Reader(**vars(model) | {"params": flatten(weights | {name: more}, cfg), "cfg": cfg}), vocab


def look_inside(model: Trained) -> list[list]:
    """Rows of INSIDE, four for each seed: the held-out and the seen equations, asked greedily, and the seen
    single-digit ones of which one operand is the digit that another embedding stands for, on input alone.

    Of these two, "line" and "control", the shares are means over the digits 1 .. 8. An answer is the integer
    before `>`; `off_1` is the share of those that are wrong by 1, `none` of what is no integer.
    """
    plain, (reader, vocab) = prompts(model), with_means(model)
    held_out = held_out_mask(len(plain), model.held_out)
    questions = [("held-out" if out else "seen", 0, i, plain[i]) for i, out in enumerate(held_out)]
    questions += [(test, d, i, plain[i].replace(str(d), vocab[len(model.vocab) + k]))
                  for k, (test, d, _) in enumerate(substitutions())
                  for i, (a, _, b, *_) in enumerate(table(len(plain)))
                  if (a == d) != (b == d) and max(a, b) < 10 and not held_out[i]]
    tests, digits, equation, texts = (np.array(column) for column in zip(*questions))
    gens = [rng(seed, "greedy") for seed in model.seeds]
    new, right_answers = new_tokens(model), answers_of(len(plain))
    answers = numbers(complete(reader, vocab, texts.tolist(), gens, new, 1, 0, 1, stop=">")[..., 0], ">")
    off = abs(answers - right_answers[equation])
    kinds = np.stack([off == 0, off == 1, off == 2, off > 2, np.isnan(off)], axis=-1)  # (S, questions, 5)
    rows = []
    for test in dict.fromkeys(tests):
        shares = np.mean([kinds[:, (tests == test) & (digits == d)].mean(1)
                          for d in set(digits[tests == test])], axis=0)  # (S, 5)
        for s, who in enumerate(zip(model.seeds, model.iters)):
            heldout_answers = " ".join(f"{texts[i][1:]}{answers[s, i]:g}" for i in np.flatnonzero(held_out))
            rows.append([*who, count_parameters(model.cfg), test, (tests == test).sum(),
                         *shares[s].round(5), heldout_answers if test == "held-out" else ""])
    return rows


def main(argv: list[str]) -> None:
    """Evaluate a checkpoint and print a report."""
    inside = Key("", "file for what is answered instead, and for the use of the number line", path=True)
    args, model, texts = ask_run(argv, __doc__, ask, inside=inside)
    print_answers(args, model, texts, is_correct(texts), ["a", "op", "b", "answer", "held_out"],
                  [(*equation, int(out)) for *equation, out in table(texts.shape[1], model.held_out)],
                  partial(report, pairs=model.held_out))
    if args["inside"]:
        names, rows = kept_checkpoints(args["out_dir"]) or [args["ckpt"]], []
        print(f"looking inside {' to '.join(sorted({names[0], names[-1]}))}: some seconds each")
        for name in names:
            model = open_model(args["out_dir"], name)
            rows += look_inside(model if args["all_seeds"] else model.only(args["model_seed"]))
        write_table(args["inside"], INSIDE, rows)


if __name__ == "__main__":
    config.run(main)
