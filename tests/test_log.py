"""The log: what is written is read again to the last digit, and whatever is damaged is named."""
import csv
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import UserError
from data import log
from helpers import ROOT
from runs import ADD, ITERS, LOSS, SEEDS, change_info, info_of, row, write_run

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_read_run_gives_iterations_by_seeds(tmp_path):
    run = log.read_run(write_run(tmp_path / "run"))
    assert run.iters.tolist() == ITERS and run.info["seeds"] == SEEDS
    assert run.columns["add_correct"].tolist() == ADD and run.columns["train_loss"].tolist() == LOSS
    assert np.isnan(run.columns["facts_acc"]).all() and run.columns["facts_acc"].shape == (4, 3)


@MANY
@given(loss=st.floats(0, 1e38), acc=st.floats(0, 1), seconds=st.floats(0, 1e9), correct=st.integers(0, 10**6))
def test_what_is_written_is_read_to_the_last_digit(tmp_path, loss, acc, seconds, correct):
    """So that a resumed run writes its old rows again as they were."""
    others = {"train_loss": loss, "math_acc": acc, "elapsed_s": seconds, "sub_correct": correct}
    rows = [row(0, s, ["math"]) | others | {"sub_total": 10**6} for s in range(3)]
    log.start(tmp_path, {}, rows[:2])
    log.append(tmp_path, rows[2:])
    assert log.read_rows(tmp_path / "results.csv") == rows


PUBLISHED = {str(path.parent.relative_to(ROOT)).partition("/rank_")[0]
             for path in (ROOT / "results").glob("**/results.csv")}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_logs_are_whole(name):
    folder = ROOT / name
    run = log.read_run(folder)
    assert run.info["seeds"] == list(range(1337, 1337 + len(run.info["seeds"])))
    for path in (part / "results.csv" for part in log.rank_folders(folder)):
        assert path.stat().st_size < 5e6
        rows = log.read_rows(path)
        again = [",".join(str(row[name]) for name in log.COLUMNS) for row in rows]
        assert path.read_text().splitlines()[1:] == again
    evaluation = folder / "eval_as_math.csv"
    if evaluation.exists():
        with open(evaluation, newline="") as f:
            rows = [r for r in csv.DictReader(f) if r["held_out"] == "1"]
        right = [sum(int(r["correct"]) for r in rows if r["seed"] == str(s)) for s in run.info["seeds"]]
        assert right == run.columns["heldout_correct"][-1].tolist()


@pytest.mark.parametrize("operation, change, info", [
    ("none", {}, {"loss_floor": None, "rule_loss": None}), ("none", {"train_loss": 3e38}, {"loss_floor": 0}),
    ("math", {"heldout_total": 80}, {"held_out": [[5, 7], [2, 6]]}),
    ("math", {"heldout_correct": 0, "heldout_total": 0}, {"held_out": []}),
    ("math", {"heldout_correct": "", "heldout_total": ""}, {"held_out": []})])
def test_whatever_the_trainer_writes_is_read(tmp_path, operation, change, info):
    run = log.read_run(write_run(tmp_path / "run", operation, change=lambda row: row | change, **info))
    assert run.iters.tolist() == ITERS


def test_half_an_evaluation_at_the_end_is_left_out(tmp_path):
    path = write_run(tmp_path / "run") / "results.csv"
    whole = path.read_bytes()
    for length in range(whole.index(b"\n30,7") + 1, len(whole)):
        path.write_bytes(whole[:length])
        assert log.read_run(path.parent).iters.tolist() == ITERS[:-1]


def test_a_run_that_has_only_begun(tmp_path):
    with pytest.raises(log.NoEvaluation, match="no complete evaluation"):
        log.read_run(write_run(tmp_path / "run", evaluations=0))


def test_the_folders_of_several_processes_are_one_run(tmp_path):
    write_run(tmp_path / "rank_10", seeds=range(2, 3), evaluations=3)
    write_run(tmp_path / "rank_2", seeds=range(2))
    (tmp_path / "rank_old").mkdir()
    assert [part.name for part in log.rank_folders(tmp_path)] == ["rank_2", "rank_10"]
    run = log.read_run(tmp_path)
    assert run.info["seeds"] == SEEDS and run.iters.tolist() == ITERS[:3]
    assert run.columns["add_correct"].tolist() == ADD[:3]
    assert log.rank_folders(tmp_path / "rank_2") == [tmp_path / "rank_2"]
    change_info(tmp_path / "rank_2", config={"max_iters": 40, "n_embd": 7})
    with pytest.raises(UserError, match="of different runs"):
        log.read_run(tmp_path)
    write_run(tmp_path / "same" / "rank_0")
    write_run(tmp_path / "same" / "rank_1", seeds=range(1))
    with pytest.raises(UserError, match="of different runs"):
        log.read_run(tmp_path / "same")
    write_run(tmp_path / "lost" / "rank_0", seeds=range(2), ranks=2)
    for _ in range(2):
        with pytest.raises(log.NoEvaluation, match="of its 2 rank folders rank_1 is not there"):
            log.read_run(tmp_path / "lost")
        (tmp_path / "lost" / "rank_1").mkdir(exist_ok=True)
        (tmp_path / "lost" / "rank_1" / "lock").touch()  # it just begins
    assert log.read_run(tmp_path / "lost" / "rank_0").info["seeds"] == SEEDS[:2]


BAD_LOGS = {  # how the log is spoilt: what the error must name
    "half a line": (lambda lines: lines[:4] + [lines[4][:20]] + lines[5:], "line 5: "),
    "a row less": (lambda lines: lines[:4] + lines[5:], "lacks a seed"),
    "a row twice": (lambda lines: lines[:4] + lines[3:], "stands twice"),
    "of other data": (lambda lines: [lines[0]] + [",".join([*line.split(",")[:4], *[""] * 12])[:-1] + ",1"
                                                  for line in lines[1:]], "its scores"),
    "no header": (lambda lines: lines[1:], "header iter,seed"),
    "a column less": (lambda lines: [line.rsplit(",", 2)[0] for line in lines], "header"),
    "nothing": (lambda lines: [], "header"),
}


@pytest.mark.parametrize("kind", BAD_LOGS)
def test_a_damaged_log_is_named(tmp_path, kind):
    spoil, message = BAD_LOGS[kind]
    path = write_run(tmp_path / "run") / "results.csv"
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in spoil(lines)))
    with pytest.raises(UserError, match=f"results.csv.*{message}") as e:
        log.read_run(path.parent)
    assert "\n" not in str(e.value)


@MANY
@given(st.integers(1, 12), st.sampled_from(log.COLUMNS),
       st.sampled_from(["x", "nan", "inf", "-1", "-0.5", "1e400", "0x1", "1.5.", "9" * 60, "\0", "½"]))
def test_a_damaged_cell_is_named(tmp_path, number, column, text):
    folder = tmp_path / "run"
    if not folder.exists():
        (tmp_path / "whole").write_bytes((write_run(folder) / "results.csv").read_bytes())
    lines = [line.split(",") for line in (tmp_path / "whole").read_text().splitlines()]
    lines[number][log.COLUMNS.index(column)] = text
    (folder / "results.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=f"results.csv, line {number + 1}: "):
        log.read_run(folder)


@MANY
@given(where=st.floats(0, 1), cut=st.integers(0, 40), put=st.binary(max_size=3)
       | st.text("0123456789.,-eEnaif\n\r\"\0x ", max_size=12).map(str.encode))
def test_any_damage_reads_or_is_a_user_error(tmp_path, where, cut, put):
    folder = tmp_path / "run"
    if not folder.exists():
        (tmp_path / "whole").write_bytes((write_run(folder) / "results.csv").read_bytes())
    whole = (tmp_path / "whole").read_bytes()
    at = int(where * len(whole))
    (folder / "results.csv").write_bytes(whole[:at] + put + whole[at + cut:])
    try:
        run = log.read_run(folder)
    except UserError as e:
        assert str(folder) in str(e)
    else:
        assert set(run.iters) and all(c.shape == (len(run.iters), 3) for c in run.columns.values())


@pytest.mark.parametrize("name, value", [
    ("seeds", []), ("seeds", [7, 7]), ("seeds", 7), ("seeds", [7.0]), ("tasks", ["latin"]), ("tasks", None),
    ("tasks", "math"), ("held_out", [5, 7]), ("held_out", [[5]]), ("config", {}), ("config", []),
    ("config", {"max_iters": "many"})])
def test_a_damaged_config_json_is_named(tmp_path, name, value):
    change_info(write_run(tmp_path / "run"), **{name: value})
    with pytest.raises(UserError, match="config.json: "):
        log.read_run(tmp_path / "run")


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
                           lambda inner: st.lists(inner, max_size=3)
                           | st.dictionaries(st.sampled_from(["max_iters", "x"]), inner), max_leaves=4)


@MANY
@given(st.sampled_from(sorted(info_of([], []))), json_values)
def test_any_config_json_reads_or_is_a_user_error(tmp_path, name, value):
    folder = tmp_path / "run"
    if not folder.exists():
        write_run(folder)
    whole = (folder / "config.json").read_text()
    try:
        change_info(folder, **{name: value})
        log.read_run(folder)
    except UserError as e:
        assert str(folder) in str(e)
    finally:
        (folder / "config.json").write_text(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\udcff", '{"seeds": []}'])
def test_config_json_that_is_none(tmp_path, text):
    folder = write_run(tmp_path / "run")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.json"):
        log.read_run(folder)


@pytest.mark.parametrize("file", ["results.csv", "config.json"])
def test_a_missing_file_is_named(tmp_path, file):
    (write_run(tmp_path / "run") / file).unlink()
    with pytest.raises(UserError, match=f"{file}: .*expected the config.json and results.csv"):
        log.read_run(tmp_path / "run")


def test_config_json_is_json(tmp_path):
    """Never Infinity or NaN, which other readers refuse."""
    with pytest.raises(ValueError):
        log.start(tmp_path, {"grad_clip": math.inf}, [])
    assert not list(tmp_path.iterdir())
    log.start(tmp_path, {"loss_floor": None}, [])
    assert json.loads((tmp_path / "config.json").read_text()) == {"loss_floor": None}
