"""Single-digit addition and subtraction, one equation a line, the pairs of 5 and 7 held out.

`<3+4=7>` padded with spaces to 8 characters, then a newline. 196 lines, 1,764 characters, vocabulary of 17.
Other pairs: `python data/as_math/prepare.py --held_out=3-8,2-6`.
"""
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import config  # noqa: E402  needs the root on sys.path

TASKS = ("math",)
HELD_OUT = ((5, 7),)  # unordered pairs, never shown in training
WIDTH = 8
EQUATIONS = [(a, op, b) for op in "+-" for a in range(10) for b in range(10)]


def answer(a: int, op: str, b: int) -> int:
    """a + b or a - b."""
    return a + b if op == "+" else a - b


def is_held_out(a: int, b: int, pairs) -> bool:
    """Whether equations of a and b, in either order, + and -, are held out where `pairs` are."""
    return (min(a, b), max(a, b)) in pairs


def text(held_out=HELD_OUT) -> str:
    """All equations but the held-out ones, in an order shuffled once by a fixed seed."""
    lines = [f"<{a}{op}{b}={answer(a, op, b)}>" for a, op, b in EQUATIONS if not is_held_out(a, b, held_out)]
    if not lines:
        raise config.UserError("held_out names all pairs of digits: no equation is left; leave some out")
    random.Random(1337).shuffle(lines)
    return "".join(line.ljust(WIDTH) + "\n" for line in lines)


if __name__ == "__main__":
    from data import prepare
    config.run(lambda argv: prepare("as_math", argv))
