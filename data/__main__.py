"""Write the files of datasets as their prepare.py makes them now: python -m data as_math as_math_3-8"""
import config
from config import UserError
from data import make, origin, write


def main(argv: list[str]) -> None:
    """Write those that the command line names."""
    _, names = config.parse(argv, {}, __doc__, positional="NAME")
    if not names:
        raise UserError("no dataset named; expected one, such as python -m data as_math")
    for name in names:
        write(make(*origin(name), name))
        print(f"data/{name} is ready")


if __name__ == "__main__":
    config.run(main)
