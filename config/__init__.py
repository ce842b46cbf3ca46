"""Configs and command lines: nanoGPT's way (a Python file, then `--key=value`), with every key checked.

A key is declared once, in `KEYS`, with its default, its meaning and the values it may take. A run config is a
Python file that assigns some of them; names in capitals are its own constants. Whatever a user can get wrong
raises `UserError`, which `run` prints as one line before it leaves with exit code 2.
"""
import argparse
import difflib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """A user's mistake: the message names the thing, what was expected and the fix, in one line."""


@dataclass(frozen=True)
class Key:
    """One setting. `lo` <= value <= `hi` for numbers, `choices` for the rest; an int is taken for a float."""
    default: object
    help: str
    lo: float = -math.inf
    hi: float = math.inf
    choices: tuple = ()


KEYS = {
    "out_dir": Key("math_mini_14", "folder for the log and the checkpoints of the run"),
    "dataset": Key("as_math", "folder under data/: as_math, facts_char or both_math_and_facts"),
    "init_from": Key("scratch", "start anew, or go on from out_dir's ckpt.pt", choices=("scratch", "resume")),
    "overwrite": Key(False, "replace a run that out_dir already holds"),
    "seed": Key(1337, "the first seed", lo=0, hi=2**31 - 1),
    "num_seeds": Key(1, "how many seeds train at once: seed, seed + 1, ...", lo=1, hi=100_000),
    "eval_interval": Key(250, "iterations between two evaluations", lo=1, hi=10**8),
    "num_samples": Key(10, "samples per prompt in an evaluation", lo=1, hi=10_000),
    "temperature": Key(0.01, "of the evaluation's samples; 0 is greedy", lo=0, hi=1e6),
    "top_k": Key(10, "sample among the k likeliest characters; beyond the vocabulary: all", lo=1, hi=10**8),
    "batch_size": Key(882, "windows in a batch, per seed", lo=1, hi=1_000_000),
    "block_size": Key(9, "characters in a window, the longest context", lo=1, hi=4096),
    "n_layer": Key(1, "Transformer blocks", lo=1, hi=1000),
    "n_head": Key(1, "attention heads; divides n_embd", lo=1, hi=1000),
    "n_embd": Key(14, "width of the residual stream", lo=1, hi=65536),
    "mlp_expansion": Key(1, "hidden width of the MLP over n_embd", lo=1, hi=64),
    "dropout": Key(0.0, "share of activations dropped in training", lo=0, hi=0.99),
    "learning_rate": Key(1e-2, "of AdamW, after warm-up", lo=0, hi=1e3),
    "min_lr": Key(1e-4, "learning rate at lr_decay_iters and after", lo=0, hi=1e3),
    "warmup_iters": Key(2_000, "iterations of linear warm-up", lo=0, hi=10**8),
    "lr_decay_iters": Key(25_000, "iteration at which the cosine reaches min_lr", lo=0, hi=10**8),
    "max_iters": Key(30_000, "updates in the run; 0 evaluates once", lo=0, hi=10**8),
    "weight_decay": Key(0.0, "of AdamW, on matrices and embeddings", lo=0, hi=1e3),
    "beta1": Key(0.9, "of AdamW", lo=0, hi=0.999999),
    "beta2": Key(0.99, "of AdamW", lo=0, hi=0.999999),
    "grad_clip": Key(1.0, "largest norm of one seed's gradient; 0 clips nothing", lo=0),
    "device": Key("auto", "cuda if there is one, else cpu", choices=("auto", "cpu", "cuda", "mps")),
    "dtype": Key("auto", "of the matrix products: bfloat16 where n_layer > 1, on cuda, else float32",
                 choices=("auto", "float32", "bfloat16")),
    "compile": Key("auto", "torch.compile: auto does where the run is long enough to earn it back",
                   choices=("auto", True, False)),
    "wandb_log": Key(False, "log to Weights & Biases too; needs its package, wandb"),
    "wandb_project": Key("too-big-to-think", "project there"),
    "wandb_run_name": Key("out_dir", "name of the run there; by default that of out_dir"),
}


def nearest(name: str, known) -> str:
    """' (did you mean X?)' for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def expected(key: Key) -> str:
    """What a key takes, in words for an error message."""
    if key.choices:
        return "one of " + ", ".join(str(c) for c in key.choices)
    kind = {bool: "True or False", int: "a whole number", float: "a number",
            str: "a text in UTF-8, not empty"}[type(key.default)]
    bounds = [f"{word} {b:g}" for word, b in (("at least", key.lo), ("at most", key.hi)) if math.isfinite(b)]
    return " ".join([kind, " and ".join(bounds)]).strip()


def check(name: str, value: object, key: Key, source: str) -> object:
    """`value` as the type of `key`; raises UserError, naming `source`, for a wrong type or range."""
    if isinstance(key.default, float) and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if key.choices:
        good = any(value is c or (type(value) is str and value == c) for c in key.choices)
    else:
        good = type(value) is type(key.default)
        if good and type(value) in (int, float):
            good = key.lo <= value <= key.hi
        if good and type(value) is str:
            good = bool(value) and not any(ch == "\0" or "\ud800" <= ch <= "\udfff" for ch in value)
    if not good:
        # Python refuses to print a number of thousands of digits, a config's own object may refuse too
        huge = type(value) is int and abs(value) > 10**40
        plain = isinstance(value, (int, float, str, type(None))) and not huge
        shown = repr(value) if plain else "a huge number" if huge else f"a {type(value).__name__}"
        raise UserError(f"{source}: {name} = {shown} will not do; expected {expected(key)}")
    return value


def from_text(text: str, key: Key) -> object:
    """The value that a command line's text stands for; text that is no such value comes back as text."""
    if text in ("True", "False") and (isinstance(key.default, bool) or True in key.choices):
        return text == "True"
    for number in (int, float):
        if isinstance(key.default, float) or (number is int and type(key.default) is int):
            try:
                return number(text)
            except ValueError:
                continue
    return text


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors."""

    def error(self, message: str):
        raise UserError(f"{message} (--help lists what there is)")


def parse(argv: list[str], keys: dict[str, Key], description: str, positional: str = "",
          ) -> tuple[dict, list[str]]:
    """Read a command line: ({key: value} of the keys given, the positional arguments).

    Takes `--key=value` and `--key value`, and a bare `--key` as True where that is a choice; `--help` prints
    every key and leaves. Raises UserError for an unknown key, a wrong type, a value out of range, or a stray
    argument.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, key in keys.items():
        shown = f"{key.help} [{key.default}]".replace("%", "%%")
        flag = {"nargs": "?", "const": "True"} if isinstance(key.default, bool) else {}
        parser.add_argument(f"--{name}", metavar="VALUE", help=shown, **flag)
    if positional:
        parser.add_argument("files", nargs="*", metavar=positional, default=[])
    # a file after a bare --key is no value of it
    bare = {f"--{name}" for name, key in keys.items() if isinstance(key.default, bool)}
    argv = [f"{arg}=True" if arg in bare and after.endswith(".py") else arg
            for arg, after in zip(argv, [*argv[1:], ""])]
    # intermixed: a file may stand before or after the keys
    given, stray = parser.parse_known_intermixed_args(argv)
    given = vars(given)
    files = given.pop("files", [])
    for text in stray:
        name = text.lstrip("-").split("=")[0]
        hint = nearest(name, keys) if text.startswith("-") else ""
        raise UserError(f"unknown argument {text}{hint}; --help lists what there is")
    values = {name: from_text(text, keys[name]) for name, text in given.items()}
    return {name: check(name, value, keys[name], "command line") for name, value in values.items()}, files


def read_file(path: str) -> dict:
    """The settings that a run config assigns. Raises UserError if it cannot be read or has unknown keys."""
    try:
        code = compile(Path(path).read_text(encoding="utf-8"), path, "exec")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        known = [str(p) for p in sorted(Path("config").glob("train_*.py"))]
        raise UserError(f"config file {path}: {why}{nearest(path, known)}; expected a file such as "
                        "config/train_math_mini_14.py") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:  # the latter for endless nesting
        where = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
        raise UserError(f"config file {path}{where}: {str(e) or 'too complicated'}; fix the file") from None
    names: dict = {"__file__": path, "__name__": "run_config"}
    try:
        exec(code, names)
    except (Exception, SystemExit) as e:  # the user's own code may raise anything
        raise UserError(f"config file {path} raised {type(e).__name__}: {e}; fix the file") from None
    settings = {k: v for k, v in names.items() if not k.startswith("_") and not k.isupper()}
    for name in settings:
        if name not in KEYS:
            raise UserError(f"config file {path}: unknown key {name}{nearest(name, KEYS)}; "
                            "write helpers of your own in capitals")
    return {name: check(name, value, KEYS[name], f"config file {path}") for name, value in settings.items()}


def read(argv: list[str], description: str) -> tuple[dict, dict]:
    """A training command line's config (defaults, then config files, then keys), and what was given."""
    on_line, files = parse(argv, KEYS, description, positional="CONFIG")
    given: dict = {}
    for path in files:
        given |= read_file(path)
    given |= on_line
    return {name: key.default for name, key in KEYS.items()} | given, given


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a script's `main(argv)`; a UserError, or a disk's, becomes one line on stderr and exit code 2.

    Ctrl-C where `main` does not take it itself ends with exit code 130, as a shell has it.
    """
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as e:
        print("error: " + " ".join(str(e).split()), file=sys.stderr)
        sys.exit(2)
