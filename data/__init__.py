"""Data: vocabularies, bins, windows and the two reference losses. numpy only.

A dataset is a folder under data/ whose `prepare.py` states `TASKS` and a function `text()`. From these come
train.bin and val.bin (uint8 token ids; the same text by design) and meta.json (vocabulary, tasks, sha256).
"""
import csv
import hashlib
import importlib
import io
import json
import os
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import UserError, nearest, parse

ROOT = Path(__file__).resolve().parent
TASKS = ("math", "facts")  # those that there are evaluators for
META_KEYS = ("vocab", "tasks", "sha256")
FILES = ("train.bin", "val.bin", "meta.json")


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: token ids (uint8) of both texts, and what meta.json says of them."""
    name: str
    vocab: str
    tasks: tuple[str, ...]
    sha256: str
    train: np.ndarray
    val: np.ndarray


def rng(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The random numbers of (seed, purpose, index): a function of these, whatever else the program did."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


@contextmanager
def writing(path: Path):
    """Around the writing of `path`: a full or read-only disk's error becomes a UserError that names it."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}; what was saved before is kept; "
                        "free space or mend its permissions, then go on") from None


def replace_file(path: Path, write) -> None:
    """Call `write(file)` on a new file and put it in the place of `path`, or leave `path` as it was.

    Raises UserError if the disk refuses.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with open(part, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_table(path: Path, header: list[str], rows) -> None:
    """Write a table as CSV, at once or not at all, and say so."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    replace_file(path, lambda f: f.write(out.getvalue().encode()))
    print(f"wrote {path}")


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


def files_of(name: str) -> dict[str, bytes]:
    """The files of data/`name`, by the `text()` and `TASKS` of its prepare.py."""
    module = importlib.import_module(f"data.{name}.prepare")
    text = module.text()
    vocab = "".join(sorted(set(text)))
    ids = encode(text, vocab).tobytes()
    meta = {"vocab": vocab, "tasks": list(module.TASKS), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {"train.bin": ids, "val.bin": ids, "meta.json": json.dumps(meta, indent=1).encode()}


def prepare(name: str, argv: list[str] | None = None) -> None:
    """Write the files of data/`name`, each at once or not at all, and say so. `argv`: its prepare.py's."""
    parse(argv or [], {}, f"Write {', '.join(FILES)} of data/{name}.")
    files = files_of(name)
    for file, content in files.items():
        replace_file(ROOT / name / file, lambda f, content=content: f.write(content))
    print(f"data/{name}: wrote {', '.join(FILES)}: {len(files['train.bin']):,} characters")


def prepare_missing(name: str) -> None:
    """Prepare dataset `name`, and say so, if none of its files is there yet."""
    if not any((ROOT / name / file).exists() for file in FILES):
        print(f"data/{name} is not prepared yet: preparing it")
        prepare(name)


def find(name: str) -> Path:
    """The folder of dataset `name`. Raises UserError if there is none."""
    known = sorted(p.parent.name for p in ROOT.glob("*/prepare.py"))
    if name not in known:
        raise UserError(f"unknown dataset {name}{nearest(name, known)}; there are {', '.join(known)}")
    return ROOT / name


def read_bin(path: Path, content: bytes, vocab: str, sha256: str, fix: str) -> np.ndarray:
    """Token ids of one bin, checked against the vocabulary and, by their text, against meta.json."""
    ids = np.frombuffer(content, dtype=np.uint8)
    if ids.size and ids.max() >= len(vocab):
        raise UserError(f"{path}: token id {ids.max()} is outside the vocabulary of {len(vocab)}; {fix}")
    if hashlib.sha256(decode(ids, vocab).encode()).hexdigest() != sha256:
        raise UserError(f"{path}: {ids.size} tokens that are not the text meta.json was written for; {fix}")
    return ids


def load(name: str) -> Dataset:
    """The dataset `name`: as its files have it or, if none of them is there yet, as `prepare` would write it.

    Raises UserError for an unknown dataset and for files that are missing, damaged or do not belong together.
    """
    folder, fix = find(name), f"run python data/{name}/prepare.py"
    files = {file: (folder / file).read_bytes() for file in FILES if (folder / file).exists()}
    missing = [file for file in FILES if file not in files]
    if files and missing:
        raise UserError(f"data/{name} lacks {', '.join(missing)}; {fix}")
    files = files or files_of(name)
    try:
        meta = json.loads(files["meta.json"])
        vocab, tasks, sha256 = (meta[k] for k in META_KEYS)
        vocab.encode()
        if not (isinstance(vocab, str) and 0 < len(vocab) == len(set(vocab)) <= 256
                and isinstance(tasks, list) and set(tasks) <= set(TASKS)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{folder / 'meta.json'} is damaged; {fix}") from None
    train, val = (read_bin(folder / f, files[f], vocab, sha256, fix) for f in FILES[:2])
    return Dataset(name, vocab, tuple(tasks), sha256, train, val)


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

    def n_log_n(k: int) -> float:
        n = np.unique(rows[:, :k], axis=0, return_counts=True)[1]
        return float((n * np.log(n)).sum())

    return sum(n_log_n(k) - n_log_n(k + 1) for k in range(1, block_size + 1)) / (len(rows) * block_size)


def rule_loss(ids: np.ndarray, block_size: int, newline: int) -> float:
    """The ideal rule-follower's loss, nats per character: it knows the lines but not their order.

    A state is a place in the file. Lines are drawn independently and uniformly from the file's own, and the
    first character of a window is uniform over places: Bayes' filter over the places gives each next
    character's probability exactly. The file's last line counts as complete, newline or not.
    """
    is_end = ids == newline
    is_end[-1] = True
    starts = np.flatnonzero(np.concatenate([[True], is_end[:-1]]))
    rows = windows(ids, block_size)
    by_token = [np.flatnonzero(ids == v) for v in range(int(ids.max()) + 1)]
    total = 0.0
    for row in rows:
        places = by_token[row[0]]
        belief = np.full(len(places), 1 / len(places))
        for token in row[1:]:
            ended = is_end[places]
            leap = belief[ended].sum() / len(starts)
            places, belief = places[~ended] + 1, belief[~ended]
            if leap > 0:
                places = np.concatenate([places, starts])
                belief = np.concatenate([belief, np.full(len(starts), leap)])
            keep = ids[places] == token
            places, belief = places[keep], belief[keep]
            p = belief.sum()
            total -= np.log(p)
            belief = belief / p
    return total / (len(rows) * block_size)
