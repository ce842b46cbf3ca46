"""Capital cities: does the model name the capital of each of the fifty countries?

As a script, a line per country of one checkpoint; with --csv=FILE a row per seed and country there:
  python eval_capitals.py --out_dir=results/facts_mini_28 --all_seeds
"""
import config  # before numpy and torch: from then on Ctrl-C is quiet

# isort: split
import numpy as np

from data import rng
from data.facts_char.prepare import capitals
from sample import ask_run, complete, print_answers, tally

NEW_TOKENS = 20  # the longest answer is "Washington DC \n"


def prompts(dataset) -> list[str]:
    """`Capital of X is `, in capitals.csv's order, whatever the `dataset`."""
    return [f"Capital of {country} is " for country, _ in capitals()]


def ask(model, dataset, seeds: list[int], iters: list[int], **sampling) -> np.ndarray:
    """What each seed writes after each of `prompts`, as eval_as_math.ask: (S, 50, num_samples) of str."""
    gens = [rng(seed, "facts samples", iter_num) for seed, iter_num in zip(seeds, iters)]
    return complete(model, dataset.vocab, prompts(dataset), gens, NEW_TOKENS, **sampling, stop="\n")


def answers(texts: np.ndarray) -> np.ndarray:
    """The line that each text of `ask` starts with, stripped."""
    unique, where = np.unique(texts, return_inverse=True)
    return np.array([text.split("\n")[0].strip() for text in unique])[where].reshape(texts.shape)


def is_correct(texts: np.ndarray) -> np.ndarray:
    """Whether a text's line is the capital, without regard to case, for (..., 50, num_samples): bool."""
    return np.char.lower(answers(texts)) == np.array([capital.lower() for _, capital in capitals()])[:, None]


def totals(correct: np.ndarray, pairs=()) -> dict[str, int | float]:
    """The log's columns from one seed's `is_correct` (50, num_samples); nothing is held out."""
    return {"facts_correct": int(correct.sum()), "facts_total": correct.size,
            "facts_acc": float(correct.mean())}


def report(texts: np.ndarray, correct: np.ndarray) -> str:
    """What `main` prints of texts (50, N): of one seed's samples, or one answer of each seed."""
    lines = []
    for (country, capital), row, right in zip(capitals(), texts, correct):
        score = f"{right.sum():4} / {len(right)}"
        lines.append(f"{country:16}{capital:16}{score}  {tally(row[~right])}".rstrip())
    return "\n".join([*lines, f"\n{'capitals':32}{correct.sum():4} / {correct.size}  {correct.mean():.2%}"])


def main(argv: list[str]) -> None:
    """Evaluate a checkpoint and print a report."""
    args, model, texts = ask_run(argv, __doc__, ask)
    print_answers(args, model, answers(texts), is_correct(texts), ["country", "capital"], capitals(), report)


if __name__ == "__main__":
    config.run(main)
