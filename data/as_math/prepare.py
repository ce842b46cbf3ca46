"""Addition and subtraction of the numbers 0 to 9, one equation a line, the pairs of 5 and 7 held out.

`<3+4=7>` padded with spaces to 8 characters, then a newline. 196 lines, 1,764 characters, vocabulary of 17.
Other pairs, larger tables: `python data/as_math/prepare.py --numbers=20 --held_out=5%`.
"""
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import config  # noqa: E402  needs the root on sys.path
from data import pairs_of  # noqa: E402

TASKS = ("math",)


def equations(numbers: int) -> list[tuple[int, str, int]]:
    """(a, op, b) of the whole table, additions first."""
    return [(a, op, b) for op in "+-" for a in range(numbers) for b in range(numbers)]


def answer(a: int, op: str, b: int) -> int:
    """a + b or a - b."""
    return a + b if op == "+" else a - b


def is_held_out(a: int, b: int, pairs) -> bool:
    """Whether equations of a and b, in either order, + and -, are held out where `pairs` are."""
    return (min(a, b), max(a, b)) in pairs


def text(numbers: int = 10, held_out: str = "5-7") -> str:
    """All equations but those of the held-out pairs, in an order shuffled once by a fixed seed, padded to the
    table's longest."""
    lines = {(a, b, op): f"<{a}{op}{b}={answer(a, op, b)}>" for a, op, b in equations(numbers)}
    width, pairs = max(map(len, lines.values())), {*pairs_of(held_out, "held_out", numbers)}
    shown = [line for (a, b, _), line in lines.items() if not is_held_out(a, b, pairs)]
    if not shown:
        raise config.UserError("held_out names all pairs of numbers: no equation is left; leave some out")
    random.Random(1337).shuffle(shown)
    return "".join(line.ljust(width) + "\n" for line in shown)


if __name__ == "__main__":
    from data import prepare
    config.run(lambda argv: prepare("as_math", argv))
