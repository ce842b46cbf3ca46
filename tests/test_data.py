"""Data: texts, bins, what is held out, the two reference losses, and what is said of a user's own files."""
import fcntl
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
from config import UserError
from data.facts_char.prepare import capitals
from data.files import Lock
from helpers import ROOT, TASKS, VOCAB, popen, run_script


def text_of(dataset: data.Dataset, split: str = "train") -> str:
    return "".join(dataset.vocab[i] for i in getattr(dataset, split))


@pytest.mark.parametrize("task, tasks, characters, block_size, floor, rule", [
    ("math", ("math",), 1764, 9, 0.531, 0.767), ("facts", ("facts",), 1547, 24, 0.179, 0.233),
    ("both", ("math", "facts"), 3311, 24, 0.194, 0.496)])
def test_the_datasets_are_the_design_s(datasets, task, tasks, characters, block_size, floor, rule):
    """Their sizes and vocabularies, and the reference losses to three digits."""
    d = datasets[task]
    assert len(d.train) == characters and len(d.vocab) == VOCAB[task] and d.tasks == tasks
    assert list(d.vocab) == sorted(set(text_of(d)))
    assert text_of(d) == text_of(d, "val"), "train and validation are the same text by design"
    assert {k: round(v, 3) for k, v in data.references(d, block_size).items()} == {
        "loss_floor": floor, "rule_loss": rule}


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


@pytest.fixture
def mine(bare):
    """The prepare.py of a user's own dataset, mine."""
    Path("data/mine").mkdir()
    return Path("data/mine/prepare.py")


def bytes_of(folder: Path) -> list[bytes]:
    """A dataset's three files."""
    return [(folder / file).read_bytes() for file in data.FILES]


def refused(name: str, *parts: str) -> None:
    """Assert that the dataset is refused in one line that has all `parts`."""
    with pytest.raises(UserError) as e:
        data.load(name)
    assert all(part in str(e.value) for part in parts) and "\n" not in str(e.value), str(e.value)


def test_prepare_works_as_typed_from_anywhere_and_is_deterministic(bare, datasets):
    """`python data/<name>/prepare.py` on a fresh checkout writes the same bytes, whatever the hash seed."""
    for i, name in enumerate(TASKS.values()):
        cwd, script = (bare, f"data/{name}/prepare.py") if i else (bare / "data" / name, "prepare.py")
        done = run_script(script, cwd=cwd, PYTHONHASHSEED=str(i), PYTHONPATH="")
        assert (done.returncode, done.stderr) == (0, "") and name in done.stdout
        assert bytes_of(bare / "data" / name) == bytes_of(ROOT / "data" / name)


def test_preparing_at_once_is_harmless(bare):
    """Four processes load the same variants, none of them prepared."""
    code = "import data\nfor n in range(10, 30):\n    assert data.load(f'as_math_{n}').numbers == n"
    running = [popen("-c", code, cwd=bare) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 4


def test_missing_files_are_written_and_said(bare, datasets, capsys):
    for missing, said in ((data.FILES, "meta.json, train.bin, val.bin"), (["val.bin"], "val.bin"), ([], "")):
        for file in missing:
            Path("data/as_math", file).unlink(missing_ok=True)
        assert np.array_equal(data.load("as_math").train, datasets["math"].train)
        assert capsys.readouterr().out == (f"data/as_math: wrote {said}\n" if said else "")
        assert bytes_of(bare / "data/as_math") == bytes_of(ROOT / "data/as_math")


@pytest.mark.parametrize("name", ["as_math", "mine", "mine_abc", "short"])
def test_files_of_another_text_are_refused_and_the_command_mends_them(bare, mine, name, capsys):
    """Else the log would speak of held-out equations that stand in the text. What meta.json says of the same
    text is written anew."""
    mine.write_text("TASKS = ()\ndef text(word='ab'): return word * 2")
    data.prepare("mine", ["--word=xy", "--name=short"])
    data.load(name)
    before = bytes_of(bare / "data" / name)
    for file in data.FILES:
        with open(bare / "data" / name / file, "ab") as f:
            f.write(b" ")
        if file != "meta.json":
            refused(name, f"data/{name}/", f"{file} is not what", f"; rm data/{name}/*.bin, and training")
            assert run_script("-c", f"rm data/{name}/*.bin", program="sh", cwd=bare).returncode == 0
        capsys.readouterr()
        data.load(name)
        assert capsys.readouterr().out.startswith(f"data/{name}: wrote ")
        assert bytes_of(bare / "data" / name) == before


digit_pairs = st.tuples(st.integers(0, 9), st.integers(0, 9))


def trials(n: int):
    """Settings of a test of n drawn inputs."""
    return settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))


@trials(30)
@given(st.lists(digit_pairs, min_size=1, max_size=20, unique_by=frozenset))
def test_any_pairs_can_be_held_out(bare, pairs):
    """By a dataset that has all other equations, whatever the order in which they are named."""
    d = data.load("as_math_" + "_".join(f"{a}-{b}" for a, b in pairs))
    assert sorted(line.rstrip() for line in text_of(d).splitlines()) == equations(pairs)
    assert set(map(frozenset, d.held_out)) == set(map(frozenset, pairs)) and d.tasks == ("math",)
    other = {"held_out": ",".join(f"{b}-{a}" for a, b in pairs[::-1])}
    assert data.make("as_math", other).sha256 == d.sha256


@trials(20)
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
    data.prepare("as_math", ["--held_out=3-8,2-6"])
    assert "train on it with --dataset=as_math_3-8_2-6" in capsys.readouterr().out
    data.prepare("both_math_and_facts", ["--held_out=3-8", "--name=other"])
    both = data.load("other")
    assert (both.held_out, both.tasks) == (((3, 8),), ("math", "facts"))
    assert "Capital of" in text_of(both) and "3+8=" not in text_of(both) and "5+7=12" in text_of(both)
    meta = json.loads(Path("data/other/meta.json").read_text())
    assert (meta["options"], meta["source"]) == ({"held_out": "3-8"}, "both_math_and_facts")
    Path("data/other/meta.json").write_text("{}")
    refused("other", "unknown dataset other", "no data/other/meta.json says so")


ALL_PAIRS = ",".join(f"{a}-{b}" for a in range(10) for b in range(a, 10))


@pytest.mark.parametrize("argv, message", [
    ("--held_out=5", "numbers 0 to 9"), ("--held_out=a-b", "numbers 0 to 9"), ("--held_out=", "''"),
    ("--held_out=1-2-3", "'1-2-3' will not do"), ("--held_out=5-7,7-5", "each once"),
    ("--numbers=20 --held_out=5-20", "0 to 19"), ("--numbers=5", "'5-7' will not do; expected pairs"),
    ("--held_out=100%", "'100%' will not do"), ("--held_out=0%", "below 100%"), ("--held_out=nan%", "'nan%'"),
    (f"--held_out={ALL_PAIRS}", "all pairs of numbers"), ("--numbers=51", "at most 50"),
    ("--numbers=ten", "a whole number"), ("--hold_out=3-8", "mean held_out"), ("--name=mine", "an option"),
    ("--held_out=3-8 --name=../b", "plain folder"), ("--held_out=3-8 --name=as_math", "no other dataset"),
    ("--held_out=3-8 --name=as_math_1-2", "no other"), ("--held_out=3-8 --name=files.py", "File exists")])
def test_wrong_options_are_one_line_and_write_nothing(bare, argv, message):
    before = sorted(bare.rglob("*"))
    with pytest.raises(UserError, match=message):
        data.prepare("as_math", argv.split())
    assert sorted(bare.rglob("*")) == before


TEXT = "\ndef text(): return 'abc'"
CSV = "country,capital\nFrance,Paris\nthe UK,London\n"


@pytest.mark.parametrize("content, message", [
    ("TASKS = ()\ndef text(): return ''.join(map(chr, range(300)))", "300 distinct characters"),
    ("TASKS = ()\ndef text(): return 'a\\ud800b'", "UnicodeEncodeError"), (TEXT, "TASKS = None will not do"),
    ("TASKS = ('multiplication',)" + TEXT, "('multiplication',)"), ("TASKS = 'math'" + TEXT, "= 'math'"),
    ("TASKS = ()", "KeyError: 'text'"), ("TASKS = ()\ntext = 'abc'", "TypeError: 'abc' is not a callable"),
    ("TASKS = ()\ndef text(): pass", "text is None"), ("TASKS = ()\ndef text(n): pass", "TypeError"),
    ("TASKS = ()\ndef text(): return ''", "text is ''"),
    ("TASKS = ()\ndef text():\n    return {}['x']", "line 3: KeyError"),
    ("TASKS = ()\ndef text(held_out='5,7'): return 'abc'", "held_out = '5,7' will not do"),
    ("TASKS = ()\ndef val_text(): pass" + TEXT, "text is None")])
def test_mistakes_in_an_own_prepare_py_name_the_file_and_the_mistake(mine, content, message):
    mine.write_text(content)
    refused("mine", str(mine), message)
    assert os.listdir("data/mine") == ["prepare.py"]


@pytest.mark.parametrize("content, message", [
    (CSV.replace(",", ";"), "'country;capital'"), (CSV.replace("country", "land"), "'land,capital'"),
    (CSV.replace("London", "L" * 19), "at most 18 characters"), (CSV.replace("Paris", " "), "'France,'"),
    (CSV + "france,Lyon\n", "'France,Paris' will not do"), (CSV + "a,b,c\n", "'a,b,c'"),
    (CSV + 'Italy,"Ro\nme"\n', "Italy"), (CSV + 'Italy,"Rome\n', "country,capital"),
    ("", "country,capital"), ("country,capital", "text is ''"), (CSV + "\udce9", "UTF-8")])
def test_a_list_of_capitals_that_will_not_do_is_named(bare, content, message):
    Path("data/facts_char/capitals.csv").write_bytes(content.encode(errors="surrogateescape"))
    refused("facts_char", "facts_char", message)


def test_a_list_of_capitals_that_a_spreadsheet_saved_is_read(bare):
    Path("data/facts_char/capitals.csv").write_bytes(CSV.replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n")
    assert text_of(data.load("facts_char")) == "Capital of France is Paris \nCapital of the UK is London \n"


def test_an_own_text_may_have_another_for_validation(mine):
    mine.write_text("TASKS = []\ndef text(): return 'abab'\ndef val_text(): return 'ac'", "utf-8-sig")
    d = data.load("mine")
    assert (d.vocab, d.tasks, text_of(d), text_of(d, "val")) == ("abc", (), "abab", "ac")
    assert data.references(d, 1) == {"loss_floor": 0, "rule_loss": None}, "a text without lines has no rule"
    mine.write_text("TASKS = []\ndef text(): return 'abab'\ndef val_text(): return 'ca'")
    refused("mine", "data/mine/val.bin is not what")


def test_short_lines_and_a_long_block_have_a_rule(mine):
    """Its probability is too small for a float."""
    mine.write_text("TASKS = ()\ndef text(): return ''.join(f'{i:03}\\n' for i in range(500))")
    assert 0 < data.references(data.load("mine"), 1024)["rule_loss"] < 2


def test_a_large_text_is_loaded_and_measured_at_once(mine, monkeypatch):
    """A megabyte, within a test's time; reference losses up to a stated size."""
    mine.write_text("import random\nTASKS = ()\ndef text(): return ''.join("
                    "random.Random(1).choices('abcdefghijklmnopqrstuvwxyz   \\n', k=1_000_000))")
    monkeypatch.setattr(data, "LARGEST", 1_000_000)
    d = data.load("mine")
    assert all(loss > 0 for loss in data.references(d, 1).values())
    assert data.references(d, 2) == {"loss_floor": None, "rule_loss": None}


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
    with Lock(folder):
        shutil.rmtree(folder)  # while it trains, and another begins there
        other = Lock(folder).__enter__()
    assert os.listdir(folder) == ["lock"]
    other.__exit__()
    folder.mkdir(parents=True)
    (folder / "ckpt.pt").touch()
    with pytest.raises(UserError, match="is a file"):
        Lock(folder / "ckpt.pt").__enter__()


def test_rng_is_a_function_of_its_arguments():
    """And of all of them: the same numbers again, others for another seed, purpose or index."""
    first = data.rng(1, "batches", 2).random(4)
    assert np.array_equal(first, data.rng(1, "batches", 2).random(4))
    for other in ((2, "batches", 2), (1, "weights", 2), (1, "batches", 3), (2, "batches", 1)):
        assert not np.array_equal(first, data.rng(*other).random(4))


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
