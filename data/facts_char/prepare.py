"""Fifty capital cities, one sentence a line: `Capital of Zambia is Lusaka ` (a space before the newline).

In the order of capitals.csv. 1,547 characters, vocabulary of 51.
"""
import csv
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import config  # noqa: E402  needs the root on sys.path

TASKS = ("facts",)
LONGEST = 18  # of the 20 characters that an evaluation asks for, a space and a newline follow the capital


def capitals() -> list[tuple[str, str]]:
    """(country, capital), as capitals.csv lists them. Raises UserError for a list that will not do."""
    path = Path(__file__).with_name("capitals.csv")
    expected = f"expected country,capital, each country once, a capital of at most {LONGEST} characters"
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(f, strict=True) if row]
    except (OSError, ValueError, csv.Error) as e:
        raise config.UserError(f"{os.path.relpath(path)}: {e}; {expected}, in UTF-8") from None
    countries = [row[0].lower() for row in rows]
    wrong = [header] if header != ["country", "capital"] else []
    wrong += [row for row in rows if len(row) != 2 or not all(cell and cell.isprintable() for cell in row)
              or len(row[1]) > LONGEST or countries.count(row[0].lower()) > 1]
    if wrong:
        raise config.UserError(f"{os.path.relpath(path)}: {','.join(wrong[0])!r} will not do; {expected}")
    return [tuple(row) for row in rows]


def text() -> str:
    """A sentence for each country."""
    return "".join(f"Capital of {country} is {capital} \n" for country, capital in capitals())


if __name__ == "__main__":
    from data import prepare
    config.run(lambda argv: prepare("facts_char", argv))
