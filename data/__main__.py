"""Write the files of datasets as their prepare.py makes them now: python -m data as_math as_math_3-8"""
import config
from data import make, origin, write


def main(argv: list[str]) -> None:
    """Write those that the command line names."""
    for name in config.parse(argv, {}, __doc__, positional="NAME")[1]:
        write(make(*origin(name), name))


if __name__ == "__main__":
    config.run(main)
