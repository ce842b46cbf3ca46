"""Configs and command lines: nanoGPT's way (a Python file, then `--key=value`), with every key checked.

A key is declared once, in `KEYS`, with its default, its meaning and the values it may take. A run config is a
Python file that assigns some of them. Whatever a user can get wrong raises `UserError`, which `run` prints as
one line before it leaves with exit code 2.
"""
import contextlib
import difflib
import errno
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType


class UserError(Exception):
    """A user's mistake: the message names the thing, what was expected and the fix, in one line."""


@dataclass(frozen=True)
class Key:
    """One setting. `lo` <= value <= `hi` for numbers, `choices` for the rest; an int is taken for a float.
    A `path` may begin with ~, the home folder."""
    default: object
    help: str
    lo: float = -math.inf
    hi: float = math.inf
    choices: tuple = ()
    path: bool = False

    def expected(self) -> str:
        """What its value may be, in words."""
        words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text, not empty"}
        bounds = [f"{word} {b:g}" for word, b in (("at least", self.lo), ("at most", self.hi))
                  if math.isfinite(b)]
        kind = type(self.default)
        return (f"one of {', '.join(map(str, self.choices))}" if self.choices else
                f"{words.get(kind, f'a {kind.__name__}')} {' and '.join(bounds)}".strip())


KEYS = {
    "out_dir": Key("math_mini_14", "folder for the log and the checkpoints of the run", path=True),
    "dataset": Key("as_math", "folder under data/: as_math, facts_char or both_math_and_facts"),
    "init_from": Key("scratch", "start anew, or go on from out_dir's ckpt.pt; auto: go on if there is a run, "
                     "which must have these settings", choices=("scratch", "resume", "auto")),
    "overwrite": Key(False, "replace a run that out_dir already holds"),
    "seed": Key(1337, "the first seed", lo=0, hi=2**31 - 1),
    "num_seeds": Key(1, "how many seeds train at once: seed, seed + 1, ...", lo=1, hi=100_000),
    "eval_interval": Key(250, "iterations between two evaluations", lo=1, hi=10**8),
    "num_samples": Key(10, "samples per prompt in an evaluation", lo=1, hi=10_000),
    "temperature": Key(0.01, "of the evaluation's samples; 0 is greedy", lo=0, hi=1e6),
    "top_k": Key(10, "sample among the k likeliest characters; beyond the vocabulary: all", lo=1, hi=10**8),
    "keep_every": Key(0, "iterations between two ckpt_000250.pt, weights alone; 0: none", lo=0, hi=10**8),
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
    "device": Key("auto", "cuda if there is one, but for short runs; or cpu",
                  choices=("auto", "cpu", "cuda", "mps")),
    "dtype": Key("auto", "bfloat16 if deep and on cuda, or float32", choices=("auto", "float32", "bfloat16")),
    "compile": Key("auto", "the update: in C++, or on cuda by Triton; auto: if it pays",
                   choices=("auto", True, False)),
    "wandb_log": Key(False, "log to Weights & Biases too; needs its package, wandb"),
    "wandb_project": Key("too-big-to-think", "project there"),
    "wandb_run_name": Key("out_dir", "name of the run there; by default that of out_dir"),
}

MAY_CHANGE = ("out_dir", "init_from", "overwrite", "keep_every", "max_iters", "device", "compile",
              "wandb_log", "wandb_project", "wandb_run_name")  # when a run is resumed


def nearest(name: str, known) -> str:
    """' (did you mean X?)' for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check(name: str, value: object, key: Key, source: str) -> object:
    """`value` as the type of `key`; raises UserError, naming `source`, for a wrong type or range."""
    kind = type(key.default)
    if kind is float and type(value) is int:
        value = float(value)
    good = type(value) is kind
    if key.choices:
        good = any(type(value) is type(c) and value == c for c in key.choices)
    elif good and kind in (int, float):
        good = key.lo <= value <= key.hi and abs(value) < math.inf  # which no JSON holds, nor nan
    elif good and kind is str:
        good = value and not re.search("[\0\ud800-\udfff]", value)
        if good and key.path:
            value = os.path.expanduser(value)
            good = value[0] != "~"  # there is no such home
    if not good:
        raise UserError(f"{source}: {name} = {value!r:.80} will not do; expected {key.expected()}")
    return value


def from_text(text: str, key: Key) -> object:
    """The value that a command line's text stands for; text that is no such value comes back as text."""
    if text in ("True", "False") and (isinstance(key.default, bool) or True in key.choices):
        return text == "True"
    if type(key.default) in (int, float):
        with contextlib.suppress(ValueError):
            return type(key.default)(text)
    return text


def parse(argv: list[str], keys: dict[str, Key], description: str, positional="") -> tuple[dict, list[str]]:
    """Read a command line: (the values of the keys that it sets, the positional arguments).

    Takes `--key=value`, `--key value`, and a bare `--key` as True for a yes-or-no key; `--help` prints every
    key and leaves. Raises UserError for an unknown key, a value that will not do, or a stray argument.
    """
    values, paths, rest = {}, [], list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if word in ("--help", "-h"):
            print(description, *(f"  --{k} VALUE\n        {key.help} [{key.default}]; {key.expected()}"
                                 for k, key in keys.items()), sep="\n")
            sys.exit(0)
        if positional and not word.startswith("-"):
            paths.append(word)
            continue
        if name not in keys or not word.startswith("--"):
            hint = nearest(name.lstrip("-"), keys) if word.startswith("-") else ""
            raise UserError(f"unknown argument {word}{hint}; --help lists what there is")
        if not equals:
            bare = isinstance(keys[name].default, bool) and rest[:1] not in (["True"], ["False"])
            text = "True" if bare else rest.pop(0) if rest else ""
        values[name] = check(name, from_text(text, keys[name]), keys[name], "command line")
    return values, paths


def defaults(keys: dict[str, Key]) -> dict:
    """The default of each key."""
    return {name: key.default for name, key in keys.items()}


def settings(argv: list[str], keys: dict[str, Key], description: str) -> dict:
    """All `keys`: as a command line gives them, else by default."""
    return defaults(keys) | parse(argv, keys, description)[0]


@contextlib.contextmanager
def user_code(source: str):
    """Around code of the user's own, from the file `source`: what it raises becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # it may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == source]
        line, why = (e.lineno, e.msg) if isinstance(e, SyntaxError) else (lines[-1] if lines else None, e)
        where = f", line {line}" if line else ""
        raise UserError(f"{source}{where}: {type(e).__name__}: {why}; fix the file") from None


def execute(path: str) -> dict:
    """Run the user's own Python file and return the names it defines."""
    names = {"__file__": path, "__name__": "user_code"}
    with user_code(path):
        exec(compile(Path(path).read_bytes(), path, "exec"), names)  # of bytes: it may begin with a BOM
    return names


def read_file(path: str, keys: dict[str, Key] = KEYS) -> dict:
    """The settings that a run config assigns; modules, functions, CONSTANTS and _names are its own.

    Raises UserError if it cannot be read, for values that will not do, and for a name that is no key.
    """
    if not os.path.isfile(path):
        known = sorted(Path("config").glob("[!_]*.py"))
        raise UserError(f"there is no config file {path}{nearest(path, known)}; expected one such as "
                        "config/train_math_mini_14.py")
    values, names = {}, execute(path)
    if "runs" in names and "runs" not in keys:
        raise UserError(f"{path} is a study: python sweep.py {path}")
    for name, value in names.items():
        if name in keys:
            with user_code(path):  # a value may be any object, and too long to print
                values[name] = check(name, value, keys[name], path)
        elif not (name.startswith("_") or name.isupper() or isinstance(value, ModuleType) or callable(value)):
            raise UserError(f"{path}: unknown key {name}{nearest(name, keys)}; begin your own names with _")
    return values


def read(argv: list[str], description: str) -> tuple[dict, dict]:
    """A training command line's config (defaults, then config files, then keys), and what they set."""
    command_line, paths = parse(argv, KEYS, description, positional="CONFIG")
    sources = [*(read_file(path) for path in paths), command_line]  # the later wins
    explicit = {name: value for source in sources for name, value in source.items()}
    return defaults(KEYS) | explicit, explicit


class Stream:
    """stdout or stderr that harms no job: whoever reads it may leave, or never have been there."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # for letters unknown there

    def __getattr__(self, name: str):
        value = getattr(self.stream, name)
        return partial(self.safely, value) if name in ("write", "flush") else value

    def safely(self, act: Callable, *args):
        """`act(*args)`; from when pipe or terminal are closed, the null device takes their place."""
        try:
            return act(*args)
        except OSError as e:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if e.errno not in (errno.EPIPE, errno.EIO):
                raise


class Signals:
    """SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 as a number to look at between updates.

    Another one acts at once if it comes a second later: `timeout`, `scancel` and torchrun signal a process
    and its group. Who caught one is about to end, so this stays in place.
    """

    def __enter__(self):
        self.caught, self.since = 0, math.inf
        names = (f"SIG{name}" for name in ("INT", "TERM", "HUP", "USR1", "USR2"))
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has two
        self.before = {n: signal.signal(n, self.catch) for n in numbers
                       if signal.getsignal(n) != signal.SIG_IGN}  # as SIGHUP is under nohup
        return self

    def catch(self, number, frame):
        if time.monotonic() - self.since >= 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif not self.caught:
            self.caught, self.since = number, time.monotonic()

    def __exit__(self, *_):
        for number, handler in ({} if self.caught else self.before).items():
            signal.signal(number, handler)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a script's `main(argv)`; a UserError, or a disk's, becomes one line on stderr and exit code 2.

    Ctrl-C where `main` does not take it itself ends with exit code 130, as a shell has it. A reader that
    leaves (`| head -1`) changes nothing, not the exit code either: all work is done.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with (contextlib.redirect_stdout(Stream(sys.stdout)) as out,
          contextlib.redirect_stderr(Stream(sys.stderr)) as err):
        try:
            code = main(sys.argv[1:])
            out.flush()
        except KeyboardInterrupt:
            code = 130
        except (UserError, OSError, MemoryError) as e:
            print("error: " + " ".join(str(e).split()), file=err)
            code = 2
    if is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: no traceback from what tidies up
    sys.exit(code)


is_script = Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[1]
if is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run`: importing torch may swallow the exception
