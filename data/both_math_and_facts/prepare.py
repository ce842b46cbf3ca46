"""The arithmetic text, then the capitals text: `<3+4=7>`, ..., `Capital of Zambia is Lusaka `.

3,311 characters, vocabulary of 66. Its options are those of as_math.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.as_math import prepare as as_math  # noqa: E402  needs the root on sys.path
from data.facts_char import prepare as facts_char  # noqa: E402

TASKS = as_math.TASKS + facts_char.TASKS


def text(numbers: int = 10, held_out: str = "5-7") -> str:
    """Both texts, as their own datasets have them."""
    return as_math.text(numbers, held_out) + facts_char.text()


if __name__ == "__main__":
    import config
    from data import prepare
    config.run(lambda argv: prepare("both_math_and_facts", argv))
