"""The arithmetic text, then the capitals text: `<3+4=7>`, ..., `Capital of Zambia is Lusaka `.

3,311 characters, vocabulary of 66. It holds out what as_math does, or others by `--held_out`, as there.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.as_math import prepare as as_math  # noqa: E402  needs the root on sys.path
from data.facts_char import prepare as facts_char  # noqa: E402

TASKS = as_math.TASKS + facts_char.TASKS
HELD_OUT = as_math.HELD_OUT


def text(held_out=HELD_OUT) -> str:
    """Both texts, as their own datasets have them."""
    return as_math.text(held_out) + facts_char.text()


if __name__ == "__main__":
    import config
    from data import prepare
    config.run(lambda argv: prepare("both_math_and_facts", argv))
