"""Data: vocabularies, bins, windows, the two reference losses, and random numbers. numpy only.

A dataset is a folder under data/ whose `prepare.py` states `TASKS` (what to evaluate by) and a function
`text()`. From these come train.bin and val.bin (uint8 token ids; the same, unless it has a `val_text()`)
and meta.json (vocabulary, tasks, held-out pairs, sha256). The keyword arguments of text() are its options, by
which variants are made: as_math_20_5pct is as_math's text(numbers=20, held_out="5%").
"""
import hashlib
import inspect
import json
import math
import os
import random
import re
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

import config
from config import Key, UserError, check, execute, from_text, nearest, parse, user_code
from data.files import replace_file, writing

ROOT = Path(__file__).resolve().parent
TASKS = ("math", "facts")  # those that there are evaluators for
FILES = ("meta.json", "train.bin", "val.bin")
LARGEST = 10_000_000  # characters times block_size up to which reference losses are computed, in some 5 s
OPTIONS = {  # of a text() about a table of equations
    "numbers": Key(10, "the operands are 0 .. numbers - 1", lo=2, hi=50),
    "held_out": Key("5-7", "pairs of them whose equations are left out, such as 3-8,2-6, or a share, 5%")}
NAME = Key("as_math_3-8", "of the dataset, a folder under data/; by default one that spells its options")
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Dataset:
    """What data/`source`/prepare.py makes of some options: its table's size, the pairs that it holds out, and
    the token ids (uint8) of both texts."""
    name: str
    source: str
    options: dict
    vocab: str
    tasks: tuple[str, ...]
    numbers: int
    held_out: Pairs
    sha256: str
    train: np.ndarray
    val: np.ndarray

    def files(self) -> dict[str, bytes]:
        """What its FILES are to hold."""
        meta = {"vocab": self.vocab, "tasks": self.tasks, "held_out": self.held_out, "sha256": self.sha256}
        if self.options:
            meta |= {"source": self.source, "options": self.options}
        contents = json.dumps(meta, indent=1).encode(), self.train.tobytes(), self.val.tobytes()
        return dict(zip(FILES, contents))


def rng(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The random numbers of (seed, purpose, index): a function of these, whatever else the program did."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def encode(text: str, vocab: str, what: str = "text") -> np.ndarray:
    """Token ids (uint8) of `text`. Raises UserError that lists the characters the vocabulary lacks."""
    unknown = sorted(set(text) - set(vocab))
    if unknown:
        raise UserError(f"{what} has characters that the vocabulary lacks: {''.join(unknown)!r}; "
                        f"it may use {vocab!r}")
    ids = {c: i for i, c in enumerate(vocab)}
    return np.array([ids[c] for c in text], dtype=np.uint8)


def pairs_of(value: object, source: str, numbers: int = 10) -> Pairs:
    """Held-out pairs, the smaller number first: of ((3, 8), (2, 6)) or its like, of the text "3-8,2-6", or of
    "5%", that share of all pairs of different numbers, at least one: the first in an order drawn once.

    Raises UserError, naming `source`, for what are no pairs of 0 .. numbers - 1, and for the same pair twice.
    """
    try:
        if isinstance(value, str) and value.endswith("%"):
            share, listed = float(value[:-1]) / 100, [*combinations(range(numbers), 2)]
            if not 0 < share < 1:
                raise ValueError
            random.Random(1337).shuffle(listed)
            listed = listed[:max(1, round(share * len(listed)))]
        else:
            listed = [map(int, p.split("-")) for p in value.split(",")] if isinstance(value, str) else value
        pairs = tuple((min(a, b), max(a, b)) for a, b in listed)
        if len(set(pairs)) < len(pairs):
            raise ValueError
        if not all(type(x) is int and 0 <= x < numbers for pair in pairs for x in pair):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"{source} = {value!r:.80} will not do; expected pairs of the numbers 0 to "
                        f"{numbers - 1}, each once, as 3-8,2-6, or a share above 0% and below 100%") from None
    return pairs


def read(source: str) -> tuple[dict, dict[str, Key]]:
    """data/`source`/prepare.py: the names that it defines, and the options of its text()."""
    names = execute(os.path.relpath(ROOT / source / "prepare.py"))
    with user_code(names["__file__"]):
        parameters = inspect.signature(names["text"]).parameters
    keys = {name: replace(OPTIONS.get(name, Key("", "of its text()")), default=p.default)
            for name, p in parameters.items() if type(p.default) in (bool, int, float, str)}
    return names, keys


def origin(name: str) -> tuple[str, dict]:
    """The dataset whose prepare.py makes `name`, and the options of its text() that it does so with.

    Raises UserError if there is no such dataset.
    """
    sources = sorted(path.parent.name for path in ROOT.glob("*/prepare.py"))
    if name in sources:
        return name, {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        meta = json.loads((ROOT / name / "meta.json").read_bytes())
        if meta["source"] in sources:
            return meta["source"], meta["options"]
    for source in (source for source in sources if name.startswith(f"{source}_")):
        keys = read(source)[1]
        groups = "".join(f"(?:_(?P<{k}>{'[0-9]+' if type(key.default) is int else '.+'}))?"
                         for k, key in keys.items())
        if spelled := re.fullmatch(groups, name.removeprefix(source)):
            return source, {k: from_text(text.replace("_", ",").replace("pct", "%"), keys[k])
                            for k, text in spelled.groupdict().items() if text}
    raise UserError(f"unknown dataset {name}{nearest(name, sources)}; there are {', '.join(sources)} "
                    f"and what their prepare.py makes; no data/{name}/meta.json says so of this one")


def make(source: str, options: dict, name: str = "", caller: str = "") -> Dataset:
    """What data/`source`/prepare.py makes of these options, by default under a name that spells them:
    as_math_3-8_2-6, as_math_20_5pct.

    Raises UserError for whatever is wrong there, naming the file, or with `options`, naming the `caller`.
    """
    names, keys = read(source)
    path, tasks = names["__file__"], names.get("TASKS")
    if not isinstance(tasks, tuple | list) or not all(task in TASKS for task in tasks):
        raise UserError(f"{path}: TASKS = {tasks!r:.80} will not do; expected a tuple of some of {TASKS}")
    caller = caller or path
    for key in options.keys() - keys:
        raise UserError(f"{caller}: unknown key {key}{nearest(str(key), [*keys, *config.KEYS])}; options of "
                        f"{source}: {', '.join(keys) or 'none'}")
    full = {key: check(key, options.get(key, keys[key].default), keys[key], caller) for key in keys}
    numbers = full.get("numbers", 10)
    pairs = pairs_of(full.get("held_out", ()), f"{caller}: held_out", numbers)
    with user_code(path):
        train = names["text"](**full)
        val = names["val_text"](**full) if "val_text" in names else train
        for text in (train, val):
            if not isinstance(text, str) or not text:
                raise UserError(f"{path}: its text is {text!r:.80}; expected a str, not empty")
        both = train if train == val else f"{train}\0{val}"
        sha256 = hashlib.sha256(both.encode()).hexdigest()
    vocab = "".join(sorted({*train, *val}))
    if len(vocab) > 256:
        raise UserError(f"{path}: {len(vocab)} distinct characters; expected at most 256: leave some out")
    spelled = "_".join([source, *(str(options[key]) for key in keys if key in options)])
    name = name or spelled.replace(",", "_").replace("%", "pct")
    return Dataset(name, source, options, vocab, tuple(tasks), numbers, pairs, sha256,
                   encode(train, vocab), encode(val, vocab))


def written(name: str) -> dict[str, bytes]:
    """The files of data/`name` that are there."""
    return {file: (ROOT / name / file).read_bytes() for file in FILES if (ROOT / name / file).exists()}


def write(dataset: Dataset) -> None:
    """Write those of its files that are not there so, each at once or not at all, and say so.

    Raises UserError if the disk refuses.
    """
    folder, old = ROOT / dataset.name, written(dataset.name)
    new = {file: content for file, content in dataset.files().items() if content != old.get(file)}
    if new:
        with writing(folder):
            folder.mkdir(exist_ok=True)
        for file, content in new.items():
            replace_file(folder / file, content)
        print(f"data/{dataset.name}: wrote {', '.join(new)}")


def prepare(source: str, argv: list[str]) -> None:
    """The command line of data/`source`/prepare.py: write its files, or those of a variant, and say so.

    Raises UserError for options that will not do, and for a name that is no folder's or another dataset's.
    """
    keys = read(source)[1] | {"name": NAME}
    options, _ = parse(argv, keys, f"Write {', '.join(FILES)} of data/{source}.")
    name = options.pop("name", "")
    if name and not options:
        raise UserError(f"--name is for a variant; give an option too, one of {', '.join(keys)}")
    dataset, in_use = make(source, options, name, "command line"), False
    with suppress(UserError):  # that there is none of the name
        in_use = origin(dataset.name) != (source, options)
    if in_use or not re.fullmatch(r"\w[\w.-]*", dataset.name):
        raise UserError(f"--name={dataset.name} will not do; expected a plain folder's that no other dataset "
                        "has")
    write(dataset)
    print(f"data/{dataset.name} is ready: train on it with --dataset={dataset.name}")


def load(name: str) -> Dataset:
    """The dataset `name`, as its prepare.py makes it now; files that it lacks are written, if they can be.

    Raises UserError for an unknown dataset, for whatever is wrong with its prepare.py, and for a text there
    that is not what that makes, be it damaged or of an older rule.
    """
    dataset = make(*origin(name), name)
    old, new = written(name), dataset.files()
    wrong = [file for file in ("train.bin", "val.bin") if old.get(file, new[file]) != new[file]]
    if wrong:
        raise UserError(f"data/{name}/{wrong[0]} is not what its prepare.py makes now; rm data/{name}/*.bin, "
                        "and training writes them anew (or, if its text() differs from call to call, seed "
                        "what is random in it)")
    try:
        write(dataset)
    except UserError as e:
        print(f"data/{name} is used without being written: {e}")
    return dataset


def windows(ids: np.ndarray, block_size: int) -> np.ndarray:
    """Every window of `block_size` tokens with the token after it: (len - block_size, block_size + 1).

    Row i starts at offset i; `[:, :-1]` is the input and `[:, 1:]` the target.
    """
    return np.lib.stride_tricks.sliding_window_view(ids, block_size + 1)


def loss_floor(ids: np.ndarray, block_size: int) -> float:
    """The perfect memoriser's loss, in nats per character: the entropy of the next character given all that
    stands before it in its window, over all windows of the file.

    With n_k(g) the count of string g among the windows' first k characters, it is the mean over k = 1 ..
    block_size of (sum_g n_k(g) ln n_k(g) - sum_g n_k+1(g) ln n_k+1(g)) / number of windows.
    """
    rows = windows(ids, block_size)
    sums, group = [], np.zeros(len(rows), dtype=np.int64)  # which of the strings each window begins with
    for k in range(block_size + 1):
        _, group, n = np.unique(group * 256 + rows[:, k], return_inverse=True, return_counts=True)
        sums.append(float((n * np.log(n)).sum()))
    return sum(a - b for a, b in zip(sums, sums[1:])) / (len(rows) * block_size)


def rule_loss(ids: np.ndarray, block_size: int, newline: int) -> float:
    """The ideal rule-follower's loss, nats per character: it knows the lines but not their order.

    Lines are drawn independently and uniformly from the file's own, and the first character of a window is
    uniform over places. So a window's probability is that of its beginning, the share of places where it
    stands up to its first newline, times that of each line after it. The file's last line counts as complete,
    newline or not.
    """
    end, length = bytes([newline]), block_size + 1

    def lines_of(s: bytes) -> list[bytes]:
        """The lines in `s`, each with its newline, the last one perhaps without."""
        *whole, rest = s.split(end)
        return [line + end for line in whole] + [rest] * bool(rest)

    lines = [line.removesuffix(end) + end for line in lines_of(ids.tobytes())]
    begins = Counter(line[:k] for line in lines for k in range(1, min(len(line), length) + 1))
    places = Counter(line[i:i + length] for line in lines for i in range(len(line)))
    losses, firsts = [], Counter(b"".join(lines))
    for window, n in Counter(row.tobytes() for row in windows(ids, block_size)).items():
        first, *others = lines_of(window)
        shares = [places[first] / firsts[window[0]], *(begins[line] / len(lines) for line in others)]
        losses.append(-n * math.fsum(map(math.log, shares)))  # their product may underflow
    return math.fsum(losses) / ((len(ids) - block_size) * block_size)


def references(dataset: Dataset, block_size: int) -> dict[str, float | None]:
    """loss_floor and rule_loss of the training text; None each if that is too LARGE, or has no lines."""
    ids, newline = dataset.train, dataset.vocab.find("\n")
    small = len(ids) * block_size <= LARGEST
    return {"loss_floor": loss_floor(ids, block_size) if small else None,
            "rule_loss": rule_loss(ids, block_size, newline) if small and newline >= 0 else None}
