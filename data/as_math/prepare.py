"""Addition and subtraction of the numbers 0 to 9, one equation a line, the pairs of 5 and 7 held out.

`<3+4=7>` padded with spaces to 8 characters, then a newline. 196 lines, 1,764 characters, vocabulary of 17.
Larger tables, other pairs: `python data/as_math/prepare.py --numbers=20 --held_out=5%`.
"""
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import config  # noqa: E402  needs the root on sys.path
from data import pairs_of  # noqa: E402

TASKS = ("math",)


def answer(a: int, op: str, b: int) -> int:
    """a + b or a - b."""
    return a + b if op == "+" else a - b


def equations(numbers: int, held_out=()) -> list[tuple[int, str, int, int, bool]]:
    """(a, op, b, answer, whether {a, b} is among the pairs held out) of the whole table, additions first."""
    return [(a, op, b, answer(a, op, b), (min(a, b), max(a, b)) in held_out)
            for op in "+-" for a in range(numbers) for b in range(numbers)]


def text(numbers: int = 10, held_out: str = "5-7") -> str:
    """All equations but those of the held-out pairs, in an order shuffled once by a fixed seed, padded to the
    table's longest."""
    pairs = pairs_of(held_out, "held_out", numbers)
    table = [(f"<{a}{op}{b}={c}>", out) for a, op, b, c, out in equations(numbers, pairs)]
    longest = max(len(line) for line, _ in table)
    lines = [line.ljust(longest) + "\n" for line, out in table if not out]
    if not lines:
        raise config.UserError("held_out names all pairs of numbers: no equation is left; leave some out")
    random.Random(1337).shuffle(lines)
    return "".join(lines)


if __name__ == "__main__":
    from data import prepare
    config.run(lambda argv: prepare("as_math", argv))
