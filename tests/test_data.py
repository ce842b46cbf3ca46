"""Data: texts, bins, what is held out, the two reference losses, and what is said of a user's own files."""
import fcntl
import json
import math
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import data
from config import UserError
from data.facts_char.prepare import capitals
from data.files import Lock
from helpers import ROOT, TASKS, VOCAB, popen, run_script

CHARACTERS = {"math": 1764, "facts": 1547, "both": 3311}
BLOCK_SIZE = {"math": 9, "facts": 24, "both": 24}


def text_of(dataset: data.Dataset, split: str = "train") -> str:
    return "".join(dataset.vocab[i] for i in getattr(dataset, split))


@pytest.mark.parametrize("task", TASKS)
def test_size_and_vocabulary_are_exact(datasets, task):
    d = datasets[task]
    assert len(d.train) == len(d.val) == CHARACTERS[task]
    assert len(d.vocab) == len(set(d.vocab)) == VOCAB[task]
    assert set(d.vocab) == set(text_of(d))
    assert d.tasks == {"math": ("math",), "facts": ("facts",), "both": ("math", "facts")}[task]
    assert text_of(d) == text_of(d, "val"), "train and validation are the same text by design"


def equations(held_out, numbers: int = 10) -> list[str]:
    """All equations but those of the held-out pairs."""
    pairs = {frozenset(pair) for pair in held_out}
    return sorted(line for a in range(numbers) for b in range(numbers) if {a, b} not in pairs
                  for line in (f"<{a}+{b}={a + b}>", f"<{a}-{b}={a - b}>"))


def test_arithmetic_is_every_equation_once_except_the_held_out(datasets):
    """Shuffled: neighbours would else be of one operation nearly always, and of one first number."""
    lines = text_of(datasets["math"]).splitlines()
    assert len(lines) == 196 and {len(line) for line in lines} == {8}
    assert sorted(line.rstrip(" ") for line in lines) == equations([(5, 7)])
    assert 70 < sum(a[2] == b[2] for a, b in zip(lines, lines[1:])) < 125
    assert sum(a[1] == b[1] for a, b in zip(lines, lines[1:])) < 45


def test_capitals_are_fifty_sentences_as_the_list_has_them(datasets):
    """And both is arithmetic, then capitals."""
    lines = text_of(datasets["facts"]).split("\n")
    assert len(lines) == 51 and lines[-1] == ""
    assert lines[:-1] == [f"Capital of {country} is {capital} " for country, capital in capitals()]
    assert lines[:2] == ["Capital of France is Paris ", "Capital of the USA is Washington DC "]
    assert text_of(datasets["both"]) == text_of(datasets["math"]) + text_of(datasets["facts"])


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A copy of the code that data needs, unprepared, as the repository and working directory."""
    for name in ("config", "data"):
        prepared = shutil.ignore_patterns("*.bin", "meta.json", "__pycache__", "as_math_*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=prepared)
    monkeypatch.setattr(data, "ROOT", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bytes_of(folder: Path) -> list[bytes]:
    """A dataset's three files."""
    return [(folder / file).read_bytes() for file in data.FILES]


def refused(name: str, *parts: str) -> str:
    """Assert that the dataset is refused in one line that has all `parts`; that line."""
    with pytest.raises(UserError) as e:
        data.load(name)
    assert all(part in str(e.value) for part in parts) and "\n" not in str(e.value), str(e.value)
    return str(e.value)


def test_prepare_works_as_typed_from_anywhere_and_is_deterministic(bare, datasets):
    """`python data/<name>/prepare.py` on a fresh checkout writes the same bytes, whatever the hash seed."""
    for i, name in enumerate(TASKS.values()):
        cwd, script = (bare, f"data/{name}/prepare.py") if i else (bare / "data" / name, "prepare.py")
        done = run_script(script, cwd=cwd, PYTHONHASHSEED=str(i), PYTHONPATH="")
        assert (done.returncode, done.stderr) == (0, "")
        assert name in done.stdout
        assert bytes_of(bare / "data" / name) == bytes_of(ROOT / "data" / name)


def test_preparing_at_once_is_harmless(bare, datasets):
    """Four processes load what is not prepared, again and again, while each time it is taken away."""
    code = ("import data\nfor _ in range(20):\n    assert len(data.load('as_math').train) == 1764\n"
            "    for file in data.FILES: (data.ROOT / 'as_math' / file).unlink(missing_ok=True)")
    running = [popen("-c", code, cwd=bare) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 4
    assert np.array_equal(data.load("as_math").train, datasets["math"].train)


def test_missing_files_are_written_and_said(bare, datasets, capsys):
    for missing, said in ((data.FILES, "meta.json, train.bin, val.bin"), (["val.bin"], "val.bin"), ([], "")):
        for file in missing:
            Path("data/as_math", file).unlink(missing_ok=True)
        assert np.array_equal(data.load("as_math").train, datasets["math"].train)
        assert capsys.readouterr().out == (f"data/as_math: wrote {said}\n" if said else "")
        assert bytes_of(bare / "data/as_math") == bytes_of(ROOT / "data/as_math")


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(data.FILES), st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8))
def test_any_damage_is_refused_with_the_command_that_mends_it(bare, datasets, file, where, cut, put):
    data.load("as_math")
    path = Path("data/as_math", file)
    old = path.read_bytes()
    at = int(where * len(old))
    new = old[:at] + put + old[at + cut:]
    assume(new != old)
    path.write_bytes(new)
    try:
        refused("as_math", file, "run python data/as_math/prepare.py")
    finally:
        path.write_bytes(old)


def test_data_of_an_older_rule_are_refused_and_the_command_mends_them(bare):
    """Else the log would speak of held-out equations that stand in the text."""
    data.load("as_math")
    rule = Path("data/as_math/prepare.py")
    rule.write_text(rule.read_text().replace('"5-7"', '"5-8"'))
    command = refused("as_math", "not what its prepare.py makes now").split("; run ")[1].split(" (or")[0]
    assert run_script(*command.split()[1:], cwd=bare).returncode == 0
    assert data.load("as_math").held_out == ((5, 8),)
    assert "5+8=" not in text_of(data.load("as_math")) and "5+7=12" in text_of(data.load("as_math"))


digit_pairs = st.tuples(st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(digit_pairs, min_size=1, max_size=20, unique_by=frozenset))
def test_any_pairs_can_be_held_out(bare, pairs):
    """By a dataset that has all other equations, and that is the same when it is loaded by its name."""
    d = data.load("as_math_" + "_".join(f"{a}-{b}" for a, b in pairs))
    assert sorted(line.rstrip() for line in text_of(d).splitlines()) == equations(pairs)
    assert set(map(frozenset, d.held_out)) == set(map(frozenset, pairs)) and d.tasks == ("math",)
    other = {"held_out": ",".join(f"{b}-{a}" for a, b in pairs[::-1])}
    assert data.make(d.name, "as_math", other)[0].sha256 == d.sha256


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(2, 50), st.sampled_from([0.5, 5, 20, 60]), st.integers(1, 39))
def test_a_table_of_any_size_and_share(bare, numbers, share, more):
    """Nested: what a share holds out, a larger one does too. And lines as long as the longest equation."""
    d, larger = (data.load(f"as_math_{numbers}_{x}pct") for x in (share, share + more))
    lines = text_of(d).splitlines()
    assert sorted(map(str.rstrip, lines)) == equations(d.held_out, numbers) and d.numbers == numbers
    assert {*map(len, lines)} == {max(map(len, equations((), numbers)))}
    assert larger.held_out[:len(d.held_out)] == d.held_out
    assert len({*d.held_out}) == max(1, round(share / 100 * numbers * (numbers - 1) / 2))


def test_the_options_of_a_text_are_prepared_named_and_kept(mine, capsys):
    mine.write_text("TASKS = ()\ndef text(count=2, word='ab'): return word * count")
    data.prepare("mine", ["--word=xy"])
    data.prepare("mine", ["--word=a,b", "--count=3", "--name=short"])
    assert [text_of(data.load(name)) for name in ("mine", "mine_xy", "mine_4", "mine_1_z", "short")] == [
        "abab", "xyxy", "abababab", "z", "a,ba,ba,b"]
    assert json.loads(Path("data/short/meta.json").read_text())["options"] == {"word": "a,b", "count": 3}
    for argv in (["--wrd=a"], ["--count=x"], ["--word=a/b"]):
        with pytest.raises(UserError, match="did you mean word|a whole number|plain folder"):
            data.prepare("mine", argv)


def test_held_out_pairs_are_a_property_of_the_data(bare, capsys):
    data.prepare("as_math", ["--held_out=3-8,2-6"])
    assert "train on it with --dataset=as_math_3-8_2-6" in capsys.readouterr().out
    data.prepare("both_math_and_facts", ["--held_out=3-8", "--name=mine"])
    both = data.load("mine")
    assert (both.held_out, both.tasks) == (((3, 8),), ("math", "facts"))
    assert "Capital of" in text_of(both) and "3+8=" not in text_of(both) and "5+7=12" in text_of(both)
    meta = json.loads(Path("data/mine/meta.json").read_text())
    assert (meta["options"], meta["source"]) == ({"held_out": "3-8"}, "both_math_and_facts")
    Path("data/mine/val.bin").write_bytes(b"")
    refused("mine", "run python data/both_math_and_facts/prepare.py --held_out=3-8 --name=mine")
    data.prepare("both_math_and_facts", ["--held_out=3-8", "--name=mine"])
    assert data.load("mine").sha256 == both.sha256
    Path("data/mine/meta.json").write_text("{}")
    refused("mine", "unknown dataset mine", "no data/mine/meta.json says so")


ALL_PAIRS = ",".join(f"{a}-{b}" for a in range(10) for b in range(a, 10))


@pytest.mark.parametrize("argv, message", [
    ("--held_out=5", "numbers 0 to 9"), ("--held_out=a-b", "numbers 0 to 9"), ("--held_out=,", "pairs of"),
    ("--held_out=5-12", "'5-12' will not do"), ("--held_out=1-2-3", "numbers 0 to 9"), ("--held_out=", "''"),
    ("--held_out=3-8,3-8", "each once"), ("--held_out=5-7,7-5", "each once"), ("--name=mine", "an option"),
    (f"--held_out={ALL_PAIRS}", "all pairs of numbers"), ("--held_out=3-8 --name=a/b", "plain folder"),
    ("--held_out=3-8 --name=../b", "plain folder"), ("--held_out=3-8 --name=facts_char", "no other dataset"),
    ("--held_out=3-8 --name=as_math", "no other dataset"), ("--held_out=3-8 --name=as_math_1-2", "no other"),
    ("--numbers=1", "at least 2"), ("--numbers=51", "at most 50"), ("--numbers=ten", "a whole number"),
    ("--held_out=100%", "'100%' will not do"), ("--held_out=0%", "below 100%"), ("--held_out=nan%", "'nan%'"),
    ("--numbers=20 --held_out=5-25", "0 to 19"), ("--numbers=5", "'5-7' will not do; expected pairs"),
    ("--held_out=3-8 --name=files.py", "no other dataset"), ("--hold_out=3-8", "mean held_out")])
def test_wrong_pairs_and_names_are_one_line_and_write_nothing(bare, argv, message):
    data.prepare("as_math", ["--held_out=1-2"])
    before = sorted(bare.rglob("*"))
    with pytest.raises(UserError, match=message):
        data.prepare("as_math", argv.split())
    with pytest.raises(UserError, match="unknown argument --held_out=3-8"):
        data.prepare("facts_char", ["--held_out=3-8"])
    assert sorted(bare.rglob("*")) == before


TEXT = "\ndef text(): return 'abc'"
OWN = [  # a prepare.py, and what is said of it
    ("TASKS = ()\ndef text(): return ''.join(map(chr, range(300)))", "300 distinct characters"),
    ("TASKS = ()\ndef text(): return 'a\\ud800b'", "UnicodeEncodeError"), (TEXT, "TASKS = None will not do"),
    ("TASKS = ('multiplication',)" + TEXT, "('multiplication',)"), ("TASKS = 'math'" + TEXT, "= 'math'"),
    ("TASKS = [['math']]" + TEXT, "[['math']]"), ("TASKS = ('math', 'math')" + TEXT, "('math', 'math')"),
    ("TASKS = ()", "text() returned None"), ("TASKS = ()\ntext = 'abc'", "TypeError: 'str' object is not"),
    ("TASKS = ()\ndef text(): pass", "text() returned None"), ("TASKS = ()\ndef text(n): pass", "TypeError"),
    ("TASKS = ()\ndef text(): return ''", "text() returned ''"), ("TASKS = (\n", "line 1: SyntaxError"),
    ("TASKS = ()\n1 / 0", "line 2: ZeroDivisionError"), ("import sys\nsys.exit()", "SystemExit"),
    ("TASKS = ()\ndef text():\n    return {}['x']", "line 3: KeyError"),
    ("TASKS = ()\ndef text(held_out='5,7'): return 'abc'", "held_out = '5,7' will not do"),
    ("TASKS = ()\ndef val_text(): pass" + TEXT, "val_text() returned None")]


@pytest.fixture
def mine(bare):
    """The prepare.py of a user's own dataset, mine."""
    Path("data/mine").mkdir()
    return Path("data/mine/prepare.py")


@pytest.mark.parametrize("content, message", OWN)
def test_mistakes_in_an_own_prepare_py_name_the_file_and_the_mistake(mine, content, message):
    mine.write_text(content)
    refused("mine", str(mine), message)
    assert os.listdir("data/mine") == ["prepare.py"]


def test_an_own_text_may_have_another_for_validation(mine):
    mine.write_text("TASKS = []\ndef text(): return 'abab'\ndef val_text(): return 'ac'", "utf-8-sig")
    d = data.load("mine")
    assert (d.vocab, d.tasks, text_of(d), text_of(d, "val")) == ("abc", (), "abab", "ac")
    assert data.references(d, 1) == {"loss_floor": 0, "rule_loss": None}, "a text without lines has no rule"
    mine.write_text("TASKS = []\ndef text(): return 'abab'\ndef val_text(): return 'ca'")
    refused("mine", "data/mine/meta.json is not what")


def test_short_lines_and_a_long_block_have_a_rule(mine):
    """Its probability is too small for a float."""
    mine.write_text("TASKS = ()\ndef text(): return ''.join(f'{i:03}\\n' for i in range(500))")
    assert 0 < data.references(data.load("mine"), 1024)["rule_loss"] < 2


def test_a_large_text_is_loaded_and_measured_at_once(mine):
    """A megabyte; reference losses up to a stated size."""
    mine.write_text("import random\nTASKS = ()\ndef text(): return ''.join("
                    "random.Random(1).choices('abcdefghijklmnopqrstuvwxyz   \\n', k=1_000_000))")
    begin, d = time.process_time(), data.load("mine")
    assert all(loss > 0 for loss in data.references(d, data.LARGEST // 1_000_000).values())
    assert data.references(d, 24) == {"loss_floor": None, "rule_loss": None}
    assert time.process_time() - begin < 15


CSV = "country,capital\nFrance,Paris\nthe UK,London\n"


@pytest.mark.parametrize("content, message", [
    (CSV.replace(",", ";"), "with a comma"), (CSV.replace("London", "L" * 19), "longer than an answer"),
    (CSV.replace("country", "land"), "begins with 'land,capital'"), (CSV.replace("Paris", " "), "empty"),
    (CSV + "france,Lyon\n", "listed twice"), (CSV + "Italy\n", "1 cells"), (CSV + "a,b,c\n", "3 cells"),
    (CSV + ",\n", "empty"), (CSV + 'Italy,"Ro\nme"\n', "unprintable"), (CSV + 'Italy,"Rome\n', "commas"),
    ("", "commas"), ("country,capital", "returned ''"), (CSV + "\udce9", "UTF-8"), ("\0" + CSV, "begins")])
def test_a_list_of_capitals_that_will_not_do_is_named(bare, content, message):
    Path("data/facts_char/capitals.csv").write_bytes(content.encode(errors="surrogateescape"))
    refused("facts_char", "facts_char", message)


def test_a_list_of_capitals_that_a_spreadsheet_saved_is_read(bare):
    Path("data/facts_char/capitals.csv").write_bytes(CSV.replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n")
    assert text_of(data.load("facts_char")) == "Capital of France is Paris \nCapital of the UK is London \n"


def test_unknown_dataset_lists_those_there_are(bare):
    refused("as_mth", "as_mth (did you mean as_math?)", "facts_char")
    refused("../data/as_math", "unknown dataset")


def test_a_lock_lets_one_in_and_leaves_nothing_of_its_own(tmp_path, monkeypatch):
    """Also where the file that it waited for has just been removed by its owner."""
    folder = tmp_path / "a/b"
    with Lock(folder), pytest.raises(UserError, match=f"process {os.getpid()} is training in"):
        Lock(folder).__enter__()
    assert not (tmp_path / "a").exists()

    def flock_what_is_gone(*how, flock=fcntl.flock):
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(*how)
        (folder / "lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock_what_is_gone)
    with Lock(folder):
        assert (folder / "lock").read_text() == str(os.getpid())
        (folder / "ckpt.pt").touch()
    assert os.listdir(folder) == ["ckpt.pt"]
    with pytest.raises(UserError, match="is a file"):
        Lock(folder / "ckpt.pt").__enter__()


def test_encode_lists_the_characters_that_the_vocabulary_lacks():
    with pytest.raises(UserError, match=r"prompt.*'!z'.*'abc'"):
        data.encode("az!b", "abc", "prompt")


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
    lines = [line + "\n" for line in text.removesuffix("\n").split("\n")]

    def from_start(s: str) -> float:
        return sum(after(line, s) for line in lines) / len(lines) if s else 1.0

    def after(tail: str, s: str) -> float:
        return 1.0 if tail.startswith(s) else s.startswith(tail) and from_start(s[len(tail):])

    def from_anywhere(s: str) -> float:
        return sum(after(line[i:], s) for line in lines for i in range(len(line)))

    windows = [text[i:i + block_size + 1] for i in range(len(text) - block_size)]
    total = -sum(math.log(from_anywhere(w) / from_anywhere(w[0])) for w in windows)
    return total / (len(windows) * block_size)


@given(st.text(alphabet="ab\n", min_size=6, max_size=20), st.integers(1, 5))
def test_reference_losses_equal_an_enumeration_from_their_definitions(text, block_size):
    ids = data.encode(text, "ab\n")
    losses = data.loss_floor(ids, block_size), data.rule_loss(ids, block_size, 2)
    expected = enumerated_floor(text, block_size), enumerated_rule(text, block_size)
    assert losses == pytest.approx(expected, abs=1e-9)
