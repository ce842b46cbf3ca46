"""Fifty capital cities, one sentence a line: `Capital of Zambia is Lusaka ` (a space before the newline).

In the order of capitals.csv. 1,547 characters, vocabulary of 51.
"""
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TASKS = ("facts",)


def capitals() -> list[tuple[str, str]]:
    """(country, capital), as capitals.csv lists them."""
    with open(Path(__file__).with_name("capitals.csv"), newline="", encoding="utf-8") as f:
        return [(row["country"], row["capital"]) for row in csv.DictReader(f)]


def text() -> str:
    """A sentence for each country."""
    return "".join(f"Capital of {country} is {capital} \n" for country, capital in capitals())


if __name__ == "__main__":
    import config
    from data import prepare
    config.run(lambda argv: prepare("facts_char", argv))
