"""Sample text from a trained model:
  python sample.py --out_dir=math_mini_14 --num_samples=5 --max_new_tokens=3 --start="<7-5"
"""
from pathlib import Path

import config
from config import Key, UserError
from data import rng
from model import complete, open_run

KEYS = {
    "start": Key("\n", "prompt, or FILE:prompt.txt"),
    "num_samples": Key(10, "how many samples to print", lo=1, hi=100_000),
    "max_new_tokens": Key(50, "characters in each sample", lo=1, hi=100_000),
    "temperature": Key(0.8, "1 leaves the model's distribution as it is, 0 is greedy", lo=0, hi=1e6),
    "top_k": Key(200, "sample among the k likeliest characters; above the vocabulary means all", lo=1),
    "seed": Key(1337, "of the sampling", lo=0, hi=2**31 - 1),
}


def read_prompt(start: str) -> str:
    """The prompt that `--start` stands for. Raises UserError if its file is missing or no text."""
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"prompt file {path}: {e.strerror}; expected a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"prompt file {path} is not UTF-8 text; save it as such") from None


def main(argv: list[str]) -> None:
    """Print samples of one trained seed, each with its prompt, a rule after each."""
    args, p, cfg, ckpt = open_run(argv, KEYS, __doc__)
    prompt = read_prompt(args["start"])
    texts = complete(p, cfg, ckpt["vocab"], [prompt], [rng(args["seed"], "sample")], args["max_new_tokens"],
                     args["num_samples"], args["temperature"], args["top_k"])
    for text in texts[0, 0]:
        print(prompt + str(text))
        print("---------------")


if __name__ == "__main__":
    config.run(main)
