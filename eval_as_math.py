"""Addition and subtraction: does the model answer all 200 single-digit equations, the held-out ones too?

As a script, a table per equation of one checkpoint; with --csv=FILE a row per seed and equation there:
  python eval_as_math.py --out_dir=results/math_mini_14 --all_seeds
"""
import re

import config  # before numpy and torch: from then on Ctrl-C is quiet

# isort: split
import numpy as np

from data import rng
from data.as_math.prepare import EQUATIONS, answer, is_held_out
from data.files import write_table
from sample import ask_run, asked, complete, distinct_texts, tally

NEW_TOKENS = 4  # the longest answer, "-9>" or "18>", and a character
ANSWERS = np.array([answer(*e) for e in EQUATIONS])
IS_ADD = np.array([op == "+" for _, op, _ in EQUATIONS])


def prompts() -> list[str]:
    """`<a+b=` and `<a-b=`, as EQUATIONS lists them."""
    return [f"<{a}{op}{b}=" for a, op, b in EQUATIONS]


def ask(model, vocab: str, seeds: list[int], iters: list[int], **sampling) -> np.ndarray:
    """What each seed writes after each of `prompts()`: (S, 200, num_samples) of str.

    `model` is an Engine or a Trained; `sampling`: num_samples, temperature, top_k. Raises UserError if the
    vocabulary cannot spell the prompts.
    """
    gens = [rng(seed, "math samples", iter_num) for seed, iter_num in zip(seeds, iters)]
    return complete(model, vocab, prompts(), gens, NEW_TOKENS, **sampling)


def is_correct(texts: np.ndarray) -> np.ndarray:
    """Whether the integer that a text starts with is the answer, for (..., 200, num_samples): bool."""
    unique, where = np.unique(texts, return_inverse=True)
    numbers = [re.match(r"-?[0-9]+", text) for text in unique]
    values = np.array([int(m.group()) if m else np.iinfo(int).max for m in numbers])
    return values[where].reshape(texts.shape) == ANSWERS[:, None]


def held_out_mask(pairs) -> np.ndarray:
    """Which EQUATIONS were never shown, by the data's held-out pairs: bool (200,)."""
    return np.array([is_held_out(a, b, pairs) for a, _, b in EQUATIONS])


def totals(correct: np.ndarray, pairs) -> dict[str, int | float]:
    """The log's columns from one seed's `is_correct` (200, num_samples), with the data's held-out pairs."""
    n, held_out = correct.shape[1], held_out_mask(pairs)
    return {"add_correct": int(correct[IS_ADD].sum()), "add_total": int(IS_ADD.sum()) * n,
            "sub_correct": int(correct[~IS_ADD].sum()), "sub_total": int((~IS_ADD).sum()) * n,
            "math_acc": float(correct.mean()),
            "heldout_correct": int(correct[held_out].sum()), "heldout_total": int(held_out.sum()) * n}


def digit_table(correct: np.ndarray, op: str, pairs) -> str:
    """A 10 x 10 table of one operation: correct samples per equation, held-out ones in brackets."""
    score = dict(zip(EQUATIONS, correct.sum(1)))
    width = len(str(correct.shape[1])) + 3
    lines = ["a\\b".rjust(4) + "".join(str(b).rjust(width) for b in range(10))]
    for a in range(10):
        cells = (("[{}]" if is_held_out(a, b, pairs) else "{} ").format(score[a, op, b]) for b in range(10))
        lines.append(str(a).rjust(4) + "".join(c.rjust(width) for c in cells))
    return "\n".join(lines)


def report(texts: np.ndarray, correct: np.ndarray, unit: str, pairs) -> str:
    """What `main` prints of texts (200, N) by the `unit`: one seed's samples, or one text of each seed."""
    n, t, held_out = correct.shape[1], totals(correct, pairs), held_out_mask(pairs)
    blocks = [f"{word} (correct of {n} {unit}; [held-out], never shown in training)\n"
              f"{digit_table(correct, op, pairs)}"
              for word, op in (("Addition a+b", "+"), ("Subtraction a-b", "-"))]
    mark = np.where(held_out, " [held-out]", "")
    wrong = [f"  {a}{op}{b}={answer(a, op, b)}{mark[i]}: {tally(texts[i][~correct[i]])}"
             for i, (a, op, b) in enumerate(EQUATIONS) if not correct[i].all()]
    blocks.append("Answered instead:\n" + "\n".join(wrong) if wrong else "Everything is right.")
    seen = (t["add_correct"] + t["sub_correct"] - t["heldout_correct"],
            t["add_total"] + t["sub_total"] - t["heldout_total"])
    rows = [("addition", t["add_correct"], t["add_total"]), ("subtraction", t["sub_correct"], t["sub_total"]),
            ("both, seen in training", *seen), ("both, held out", t["heldout_correct"], t["heldout_total"])]
    blocks.append("\n".join(f"{name:24}{right:5} / {total:<5} {right / total:7.2%}"
                            for name, right, total in rows if total))
    return "\n\n".join(blocks)


def main(argv: list[str]) -> None:
    """Evaluate a checkpoint and print a report.

    Over seeds, an equation counts as right for a seed if all its samples are.
    """
    args, model, texts = ask_run(argv, __doc__, ask)
    correct, answers, held_out = is_correct(texts), distinct_texts(texts), held_out_mask(model.held_out)
    header = ["seed", "iter", "a", "op", "b", "answer", "held_out", "correct", "total", "answers"]
    write_table(args["csv"], header,
                ((*who, a, op, b, answer(a, op, b), int(held_out[i]), correct[s, i].sum(), texts.shape[2],
                  answers[s, i]) for s, who in enumerate(zip(model.seeds, model.iters))
                 for i, (a, op, b) in enumerate(EQUATIONS)))
    print(asked(args, model))
    print(report(answers.T, correct.all(2).T, "seeds", model.held_out) if args["all_seeds"] else
          report(texts[0], correct[0], "samples", model.held_out))


if __name__ == "__main__":
    config.run(main)
