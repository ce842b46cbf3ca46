"""Data: vocabularies, bins, windows, the two reference losses, and random numbers. numpy only.

A dataset is a folder under data/ whose `prepare.py` states `TASKS` (what to evaluate by) and a function
`text()`. From these come train.bin and val.bin (uint8 token ids; the same text, unless it has a `val_text()`)
and meta.json (vocabulary, tasks, held-out pairs, sha256). If text() takes `held_out`, by default the file's
`HELD_OUT`, it can be made with other pairs: as_math_3-8 is such a variant of as_math.
"""
import hashlib
import inspect
import json
import math
import os
import re
import shlex
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from config import Key, UserError, execute, nearest, own_code, settings
from data.files import replace_file, writing

ROOT = Path(__file__).resolve().parent
TASKS = ("math", "facts")  # those that there are evaluators for
FILES = ("train.bin", "val.bin", "meta.json")
LARGEST = 10_000_000  # characters times block_size up to which reference losses are computed, in some 5 s
KEYS = {"held_out": Key("", "pairs of digits whose equations are left out, such as 3-8 or 3-8,2-6"),
        "name": Key("", "of the dataset, a folder under data/; by default such as as_math_3-8_2-6")}
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Dataset:
    """A dataset: the pairs of digits that it holds out, and the token ids (uint8) of both texts."""
    name: str
    vocab: str
    tasks: tuple[str, ...]
    held_out: Pairs
    sha256: str
    train: np.ndarray
    val: np.ndarray


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


def decode(ids: np.ndarray, vocab: str) -> str:
    """The text that token ids stand for."""
    return "".join(vocab[i] for i in ids)


def pairs_of(value: object, source: str) -> Pairs:
    """Held-out pairs, from ((3, 8), (2, 6)) or its like or the text "3-8,2-6", the digits of each in order.

    Raises UserError, naming `source`, for what are no pairs of digits, and for the same pair twice.
    """
    shown = f"{source} = {value!r:.80}"
    try:
        if isinstance(value, str):
            value = [[int(digit) for digit in pair.split("-")] for pair in value.split(",")]
        pairs = tuple((min(pair), max(pair)) for pair in value)
        good = all(len(pair) == 2 and all(type(x) is int and 0 <= x <= 9 for x in pair) for pair in value)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"{shown} will not do; expected pairs of digits, as 3-8,2-6")
    if len(set(pairs)) < len(pairs):
        raise UserError(f"{shown} names a pair twice; expected each once, 3-8 and 8-3 being the same")
    return pairs


def spell(held_out: Pairs, between: str = ",") -> str:
    """Held-out pairs as a user types them, 3-8,2-6."""
    return between.join(f"{a}-{b}" for a, b in held_out)


def origin(name: str) -> tuple[str, Pairs | None]:
    """The dataset whose prepare.py makes `name`, and the held-out pairs that it does so with, None: its own.

    Raises UserError if there is no such dataset.
    """
    known = sorted(path.parent.name for path in ROOT.glob("*/prepare.py"))
    made = sorted({path.parent.name for path in ROOT.glob("*/meta.json")} - {*known})
    if name in known:
        return name, None
    with suppress(ValueError, KeyError, TypeError, RecursionError, UserError):
        meta = json.loads((ROOT / name / "meta.json").read_bytes()) if name in made else {}
        if meta["source"] in known:
            return meta["source"], pairs_of(meta["held_out"], "held_out")
    by_name = re.fullmatch("(.+?)_((?:[0-9]-[0-9]_?)+)", name)  # such as as_math_3-8_2-6
    if by_name and by_name[1] in known:
        return by_name[1], pairs_of(by_name[2].replace("_", ","), f"{name}: held_out")
    if name in made:
        raise UserError(f"data/{name}/meta.json is damaged: it does not say what the data are; delete "
                        f"data/{name}, then run a prepare.py with --held_out and --name={name}")
    raise UserError(f"unknown dataset {name}{nearest(name, known + made)}; there are {', '.join(known)}")


def command(name: str) -> str:
    """What a user types, where he is, to make dataset `name` anew."""
    source, held_out = origin(name)
    line = f"python {shlex.quote(os.path.relpath(ROOT / source / 'prepare.py'))}"
    return line if held_out is None else f"{line} --held_out={spell(held_out)} --name={name}"


def recipe(source: str) -> tuple[dict, str]:
    """The names that data/`source`/prepare.py defines, checked, and its path for messages.

    Raises UserError, naming the file, if it does not run, or for TASKS, HELD_OUT and functions that are none.
    """
    path = ROOT / source / "prepare.py"
    shown = os.path.relpath(path)
    names = execute(str(path), shown)
    tasks = names.get("TASKS")
    if not (isinstance(tasks, tuple | list) and all(t in TASKS and tasks.count(t) == 1 for t in tasks)):
        raise UserError(f"{shown}: TASKS = {tasks!r:.80} will not do; expected a tuple of some of {TASKS}, "
                        "or TASKS = ()")
    names["HELD_OUT"] = pairs_of(names.get("HELD_OUT", ()), f"{shown}: HELD_OUT")
    names = {"val_text": names.get("text")} | names
    for name in ("text", "val_text"):
        if not inspect.isfunction(names.get(name)):
            raise UserError(f"{shown}: {name} is no function; expected def {name}(): that returns a str")
    return names, shown


def takes_held_out(function) -> bool:
    """Whether a text() can be made with other held-out pairs."""
    return "held_out" in inspect.signature(function).parameters


def make(name: str, source: str, held_out: Pairs | None = None) -> tuple[Dataset, dict[str, bytes]]:
    """The dataset `name` as data/`source`/prepare.py makes it, and what its files are to hold.

    `held_out`: pairs, if not its own. Raises UserError, naming the file, for whatever is wrong there.
    """
    names, shown = recipe(source)
    if held_out is not None and not takes_held_out(names["text"]):
        raise UserError(f"{shown} cannot hold out {spell(held_out)}; expected def text(held_out=HELD_OUT)")
    pairs = names["HELD_OUT"] if held_out is None else held_out
    texts = []
    for key in ("text", "val_text"):
        with own_code(shown):
            texts.append(names[key](held_out=pairs) if takes_held_out(names[key]) else names[key]())
        if not isinstance(texts[-1], str) or not texts[-1]:
            raise UserError(f"{shown}: {key}() returned {texts[-1]!r:.80}; expected a str, not empty")
    vocab = "".join(sorted({*texts[0], *texts[1]}))
    if len(vocab) > 256 or any("\ud800" <= c <= "\udfff" for c in vocab):
        raise UserError(f"{shown}: the text has {len(vocab)} distinct characters; expected at most 256, as "
                        "UTF-8 has them: leave out the rare ones")
    sha256, other = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
    if sha256 != other:
        sha256 = hashlib.sha256((sha256 + other).encode()).hexdigest()
    train, val = (encode(text, vocab) for text in texts)
    dataset = Dataset(name, vocab, tuple(names["TASKS"]), pairs, sha256, train, val)
    meta = {key: getattr(dataset, key) for key in ("vocab", "tasks", "held_out", "sha256")}
    meta |= {} if held_out is None else {"source": source}
    content = (train.tobytes(), val.tobytes(), json.dumps(meta, indent=1).encode())
    return dataset, dict(zip(FILES, content))


def written(name: str) -> dict[str, bytes]:
    """The files of data/`name` that are there."""
    return {file: (ROOT / name / file).read_bytes() for file in FILES if (ROOT / name / file).exists()}


def write(name: str, files: dict[str, bytes]) -> None:
    """Write those of `files` that data/`name` does not have so, each at once or not at all, and say so.

    Raises UserError if the disk refuses.
    """
    new = dict(sorted(files.items() - written(name).items()))  # meta.json first: it says what they are
    if new:
        with writing(ROOT / name):
            (ROOT / name).mkdir(exist_ok=True)
        for file, content in new.items():
            replace_file(ROOT / name / file, lambda f, content=content: f.write(content))
        print(f"data/{name}: wrote {', '.join(new)}")


def variant(source: str, held_out: Pairs | str, name: str = "") -> str:
    """Write the dataset that `source` is with other held-out pairs, if it is not there; return its name.

    Raises UserError for what are no pairs, for a `name` that is no folder's or another dataset's, and for
    whatever is wrong with the source.
    """
    pairs = pairs_of(held_out, "held_out")
    name = name or f"{source}_{spell(pairs, '_')}"
    taken = (ROOT / name).exists()
    with suppress(UserError):
        taken = taken and origin(name) != (source, pairs)
    if taken or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name={name} will not do; expected a plain folder's that no other dataset has")
    write(name, make(name, source, pairs)[1])
    return name


def prepare(name: str, argv: list[str]) -> None:
    """The command line of data/`name`/prepare.py: write its files, or those of a variant, and say so."""
    keys = KEYS if takes_held_out(recipe(name)[0]["text"]) else {}
    args = settings(argv, keys, f"Write {', '.join(FILES)} of data/{name}.")
    if args.get("name") and not args["held_out"]:
        raise UserError("--name is for a dataset made by --held_out; give that too")
    if args.get("held_out"):
        name = variant(name, args["held_out"], args["name"])
    else:
        write(name, make(name, name)[1])
    print(f"data/{name} is ready: train on it with --dataset={name}")


def load(name: str) -> Dataset:
    """The dataset `name`, as its prepare.py makes it now; files that it lacks are written, if they can be.

    Raises UserError for an unknown dataset, for whatever is wrong with its prepare.py, and for files that are
    not what that makes, be they damaged or of an older rule.
    """
    dataset, files = make(name, *origin(name))
    for file, _ in sorted(written(name).items() - files.items()):
        raise UserError(f"data/{name}/{file} is not what its prepare.py makes now; run {command(name)} (or, "
                        "if its text() differs from call to call, seed what is random in it)")
    try:
        write(name, files)
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
    newline or not; without one (`last`) it may end anywhere, unseen. newline: -1 if the text has none.
    """
    text, end, length = ids.tobytes(), bytes([newline]) if newline >= 0 else b"", block_size + 1
    lines = [line + end for line in text.split(end)] if end else [text]
    last = b"" if end and text.endswith(end) else lines[-1].removesuffix(end)
    lines = lines[:-1] + [last] * bool(last)
    begins = Counter(line[:k] for line in lines for k in range(1, min(len(line), length) + 1))
    places = Counter(line[i:i + length] for line in lines for i in range(len(line)))
    tails = [last[-k:] for k in range(1, min(len(last) + 1, length))]

    def first_line(s: bytes, start: int = 0) -> bytes:
        return s[start:s.find(end, start) + 1 or None] if end else s[start:]

    @cache
    def follow(s: bytes) -> float:
        """The probability that lines begin with `s`."""
        p, so_far, i = 0.0, 1.0, 0
        while i < len(s):
            if last and len(last) < len(s) - i and s.startswith(last, i):
                p += so_far / len(lines) * follow(s[i + len(last):])
            line = first_line(s, i)
            so_far *= begins[line] / len(lines)
            i += len(line)
        return p + so_far

    losses, firsts = [], np.bincount(ids)
    for window, n in Counter(row.tobytes() for row in windows(ids, block_size)).items():
        line = first_line(window)
        p = places[line] * follow(window[len(line):])
        p += sum(follow(window[len(tail):]) for tail in tails if window.startswith(tail))
        losses.append(-n * math.log(p / firsts[window[0]]))
    return math.fsum(losses) / ((len(ids) - block_size) * block_size)


def references(dataset: Dataset, block_size: int) -> dict[str, float | None]:
    """loss_floor and rule_loss of the training text, None each if that is too LARGE."""
    ids = dataset.train
    if len(ids) * block_size > LARGEST:
        return {"loss_floor": None, "rule_loss": None}
    return {"loss_floor": loss_floor(ids, block_size),
            "rule_loss": rule_loss(ids, block_size, dataset.vocab.find("\n"))}
