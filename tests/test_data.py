"""Data: texts, bins, windows, the two reference losses, and what is said of damaged files."""
import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data
from config import UserError
from data.facts_char.prepare import capitals
from helpers import ROOT, TASKS, VOCAB, run_script, train

CHARACTERS = {"math": 1764, "facts": 1547, "both": 3311}
BLOCK_SIZE = {"math": 9, "facts": 24, "both": 24}
HELD_OUT = ("5+7=", "7+5=", "5-7=", "7-5=")


def text_of(dataset: data.Dataset, split: str = "train") -> str:
    return data.decode(getattr(dataset, split), dataset.vocab)


@pytest.mark.parametrize("task", TASKS)
def test_size_and_vocabulary_are_exact(datasets, task):
    d = datasets[task]
    assert len(d.train) == len(d.val) == CHARACTERS[task]
    assert len(d.vocab) == len(set(d.vocab)) == VOCAB[task]
    assert set(d.vocab) == set(text_of(d))
    assert d.tasks == {"math": ("math",), "facts": ("facts",), "both": ("math", "facts")}[task]
    assert text_of(d) == text_of(d, "val"), "train and validation are the same text by design"


def test_arithmetic_is_every_equation_once_except_the_held_out(datasets):
    lines = text_of(datasets["math"]).splitlines()
    expected = {f"<{a}+{b}={a + b}>" for a in range(10) for b in range(10)}
    expected |= {f"<{a}-{b}={a - b}>" for a in range(10) for b in range(10)}
    expected -= {"<5+7=12>", "<7+5=12>", "<5-7=-2>", "<7-5=2>"}
    assert len(lines) == 196 and {len(line) for line in lines} == {8}
    assert sorted(line.rstrip(" ") for line in lines) == sorted(expected)


def test_arithmetic_is_shuffled(datasets):
    """Neighbours would otherwise be of one operation nearly always, and of one first number."""
    lines = text_of(datasets["math"]).splitlines()
    same_operation = sum(a[2] == b[2] for a, b in zip(lines, lines[1:], strict=False))
    same_first = sum(a[1] == b[1] for a, b in zip(lines, lines[1:], strict=False))
    assert 70 < same_operation < 125 and same_first < 45


@pytest.mark.parametrize("task", ["math", "both"])
def test_held_out_equations_occur_nowhere_in_the_bins(task):
    """Read from the files themselves, not through the loader."""
    folder = ROOT / "data" / TASKS[task]
    vocab = json.loads((folder / "meta.json").read_text())["vocab"]
    for name in ("train.bin", "val.bin"):
        text = "".join(vocab[i] for i in (folder / name).read_bytes())
        assert "5+6=11" in text
        assert [e for e in HELD_OUT if e in text] == []


def test_capitals_are_fifty_sentences_as_the_list_has_them(datasets):
    lines = text_of(datasets["facts"]).split("\n")
    assert len(lines) == 51 and lines[-1] == ""
    assert lines[:-1] == [f"Capital of {country} is {capital} " for country, capital in capitals()]
    assert lines[:2] == ["Capital of France is Paris ", "Capital of the USA is Washington DC "]


def test_both_is_arithmetic_then_capitals(datasets):
    assert text_of(datasets["both"]) == text_of(datasets["math"]) + text_of(datasets["facts"])


@pytest.fixture
def bare(tmp_path):
    """A copy of the code that data needs, without any prepared file."""
    for name in ("config", "data"):
        prepared = shutil.ignore_patterns("*.bin", "meta.json", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=prepared)
    return tmp_path


def test_prepare_works_as_typed_from_the_root_and_is_deterministic(bare, datasets):
    """`python data/<name>/prepare.py` on a fresh checkout writes the same bytes, whatever the hash seed."""
    for i, name in enumerate(TASKS.values()):
        done = run_script(f"data/{name}/prepare.py", cwd=bare, PYTHONHASHSEED=str(i), PYTHONPATH="")
        assert (done.returncode, done.stderr) == (0, "")
        assert name in done.stdout
        for file in ("train.bin", "val.bin", "meta.json"):
            assert (bare / "data" / name / file).read_bytes() == (ROOT / "data" / name / file).read_bytes()


@pytest.fixture
def copied(bare, datasets, monkeypatch):
    """A copy of as_math's folder that tests may damage, which `data.load` reads in place of the real one."""
    monkeypatch.setattr(data, "ROOT", bare / "data")
    for file in ("train.bin", "val.bin", "meta.json"):
        shutil.copy(ROOT / "data/as_math" / file, bare / "data/as_math" / file)
    return bare / "data/as_math"


def test_missing_data_is_prepared_and_said_by_training_alone(copied, datasets, tmp_path, capsys):
    """Not before all checks have passed; and `data.load` gives the same without writing anything."""
    for file in data.FILES:
        (copied / file).unlink()
    assert np.array_equal(data.load("as_math").train, datasets["math"].train)
    for args in (["--block_size=1764"], ["--n_embd=65536"], ["--n_head=3"]):
        with pytest.raises(UserError):
            train(tmp_path / "run", *args)
    assert not any((copied / file).exists() for file in data.FILES) and capsys.readouterr().out == ""
    train(tmp_path / "run", "--max_iters=0")
    assert "as_math is not prepared yet" in capsys.readouterr().out
    for file in data.FILES:
        assert (copied / file).read_bytes() == (ROOT / "data/as_math" / file).read_bytes()
    train(tmp_path / "run", "--max_iters=0", "--overwrite")
    assert "not prepared" not in capsys.readouterr().out


def meta_with(**changed) -> bytes:
    """meta.json of as_math with some entries changed, or left out where None."""
    meta = json.loads((ROOT / "data/as_math/meta.json").read_text()) | changed
    return json.dumps({k: v for k, v in meta.items() if v is not None}).encode()


DAMAGE = {
    "train.bin missing": ("train.bin", lambda b: None),
    "val.bin missing": ("val.bin", lambda b: None),
    "meta.json missing": ("meta.json", lambda b: None),
    "truncated": ("train.bin", lambda b: b[:1000]),
    "empty": ("val.bin", lambda b: b""),
    "too long": ("train.bin", lambda b: b + b"\0"),
    "another text": ("val.bin", lambda b: b[::-1]),
    "id outside the vocabulary": ("train.bin", lambda b: b[:-1] + b"\xff"),
    "meta not JSON": ("meta.json", lambda b: b[:20]),
    "meta not UTF-8": ("meta.json", lambda b: b"\xff\xfe"),
    "meta not a dict": ("meta.json", lambda b: b"[1]"),
    "meta without vocab": ("meta.json", lambda b: meta_with(vocab=None)),
    "meta without tasks": ("meta.json", lambda b: meta_with(tasks=None)),
    "meta without sha256": ("meta.json", lambda b: meta_with(sha256=None)),
    "vocabulary no text": ("meta.json", lambda b: meta_with(vocab=17)),
    "vocabulary too small": ("meta.json", lambda b: meta_with(vocab="abc")),
    "vocabulary in another order": ("meta.json", lambda b: meta_with(vocab="<>+-= \n0123456789")),
    "vocabulary no UTF-8": ("meta.json", lambda b: meta_with(vocab=json.loads(b)["vocab"][:-1] + "\ud800")),
    "other sha256": ("meta.json", lambda b: meta_with(sha256="0" * 64)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_data_names_the_file_and_the_fix(copied, what):
    name, damage = DAMAGE[what]
    new = damage((copied / name).read_bytes())
    if new is None:
        (copied / name).unlink()
    else:
        (copied / name).write_bytes(new)
    with pytest.raises(UserError, match="run python data/as_math/prepare.py") as e:
        data.load("as_math")
    assert "as_math" in str(e.value) and any(f in str(e.value) for f in ("train.bin", "val.bin", "meta.json"))


def test_tasks_that_no_evaluator_knows_are_refused(copied):
    """Else the training dies with a KeyError at its first evaluation."""
    (copied / "meta.json").write_bytes(meta_with(tasks=["maths"]))
    with pytest.raises(UserError, match="prepare.py"):
        data.load("as_math")


def test_unknown_dataset_lists_those_there_are(datasets):
    with pytest.raises(UserError, match=r"as_mth.*did you mean as_math.*facts_char"):
        data.load("as_mth")


def test_encode_lists_the_characters_that_the_vocabulary_lacks():
    with pytest.raises(UserError, match=r"prompt.*'!z'.*'abc'"):
        data.encode("az!b", "abc", "prompt")


@given(st.text(alphabet="abc\n"))
def test_decode_undoes_encode(text):
    assert data.decode(data.encode(text, "\nabc"), "\nabc") == text


def test_windows_are_every_offset_with_the_character_after():
    rows = data.windows(np.arange(6, dtype=np.uint8), 3)
    assert rows.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_rng_is_a_function_of_its_arguments():
    """And of all of them: the same numbers again, others for another seed, purpose or index."""
    np.random.seed(1)
    first = data.rng(1, "batches", 2).random(4)
    np.random.random(100)
    assert np.array_equal(first, data.rng(1, "batches", 2).random(4))
    for other in ((2, "batches", 2), (1, "weights", 2), (1, "batches", 3), (2, "batches", 1)):
        assert not np.array_equal(first, data.rng(*other).random(4))


@pytest.mark.parametrize("task, floor, rule", [
    ("math", 0.531, 0.767), ("facts", 0.179, 0.233), ("both", 0.194, 0.496)])
def test_reference_losses_are_the_design_s_to_three_digits(datasets, task, floor, rule):
    d, T = datasets[task], BLOCK_SIZE[task]
    assert round(data.loss_floor(d.train, T), 3) == floor
    assert round(data.rule_loss(d.train, T, d.vocab.index("\n")), 3) == rule


def both_losses(text: str, block_size: int) -> tuple[float, float]:
    """(loss_floor, rule_loss) of a text."""
    vocab = "".join(sorted(set(text)))
    ids = data.encode(text, vocab)
    return data.loss_floor(ids, block_size), data.rule_loss(ids, block_size, vocab.find("\n"))


def test_reference_losses_by_hand_where_nothing_is_uncertain():
    """In `ab` `ab` each character follows from the one before it: no loss for anyone."""
    assert both_losses("ab\nab\nab\n", 2) == pytest.approx((0, 0), abs=1e-12)


def test_reference_losses_by_hand_one_character_of_context():
    """`ab` `ac`, block 1: the windows are ab, b., .a, ac, c. (a dot for the newline). Only what follows a is
    uncertain, b or c with one half each, in two of the five windows: 2 ln 2 / 5 for both."""
    assert both_losses("ab\nac\n", 1) == pytest.approx((2 * math.log(2) / 5, 2 * math.log(2) / 5))


def test_reference_losses_by_hand_two_characters_of_context():
    """`ab` `ac`, block 2: the windows are ab., b.a, .ac, ac. with two predictions each, eight in all.

    The memoriser: a is followed by b once and by c once among the windows' first two, ln 2 each in ab. and
    ac.; what follows two characters is certain, `.a` being followed by c only. 2 ln 2 / 8.
    The rule-follower does not know that c follows `.a`, any line may come: ln 2 more in .ac, 3 ln 2 / 8.
    """
    assert both_losses("ab\nac\n", 2) == pytest.approx((2 * math.log(2) / 8, 3 * math.log(2) / 8))


def test_reference_losses_by_hand_lines_of_different_length():
    """`a` `ba`, block 1: the windows are a., .b, ba, a. (a dot for the newline).

    The memoriser loses nothing: a is followed by the newline, that by b, b by a. The rule-follower does not
    know which line comes after the newline: ln 2 in one of four windows.
    """
    assert both_losses("a\nba\n", 1) == pytest.approx((0, math.log(2) / 4), abs=1e-12)


def enumerated_floor(text: str, block_size: int) -> float:
    """The entropy by counting strings, from the definition."""
    windows = [text[i:i + block_size + 1] for i in range(len(text) - block_size)]
    total = 0.0
    for k in range(1, block_size + 1):
        longer, shorter = (Counter(w[:n] for w in windows) for n in (k + 1, k))
        total -= sum(math.log(longer[w[:k + 1]] / shorter[w[:k]]) for w in windows)
    return total / (len(windows) * block_size)


def enumerated_rule(text: str, block_size: int) -> float:
    """The Bayesian loss by adding up all lines and phases that spell a window, from the definition."""
    lines = text.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + [lines[-1]] * bool(lines[-1])

    def from_start(s: str) -> float:
        return sum(after(line, s) for line in lines) / len(lines) if s else 1.0

    def after(tail: str, s: str) -> float:
        return 1.0 if tail.startswith(s) else s.startswith(tail) and from_start(s[len(tail):])

    def from_anywhere(s: str) -> float:
        return sum(after(line[i:], s) for line in lines for i in range(len(line))) / len(text)

    windows = [text[i:i + block_size + 1] for i in range(len(text) - block_size)]
    total = -sum(math.log(from_anywhere(w) / from_anywhere(w[0])) for w in windows)
    return total / (len(windows) * block_size)


@given(st.text(alphabet="ab\n", min_size=6, max_size=20), st.integers(1, 5))
def test_reference_losses_equal_an_enumeration_from_their_definitions(text, block_size):
    assert both_losses(text, block_size) == pytest.approx(
        (enumerated_floor(text, block_size), enumerated_rule(text, block_size)), abs=1e-9)
