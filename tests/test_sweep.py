"""sweep.py: what a study trains, skips, resumes and shares out; what it draws; what it says of mistakes."""
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import config
import data
import sweep
from data import log
from helpers import ROOT
from helpers import log as rows_of
from runs import notes_of
from sweep import draw, main, phase, rank, read_log, read_study, time_left

TINY = ["--max_iters=4", "--eval_interval=2", "--num_samples=1", "--device=cpu", "--batch_size=16"]
CURVES = {  # right answers of 196 seen and 4 held-out prompts at iterations 0, 10, 20, 30, and their phase
    "confusion": ([0, 100, 150, 180], [0, 0, 0, 4]), "memorisation": ([0, 196, 196, 196], [0, 4, 4, 3]),
    "comprehension": ([0, 196, 196, 196], [0, 0, 4, 4]), "grokking": ([0, 196, 196, 196], [0, 0, 3, 4])}


@pytest.fixture
def study(tmp_path) -> Path:
    """A study of two runs."""
    path = tmp_path / "sweep_two.py"
    path.write_text('"""Two?"""\nn_head = 2\nruns = [dict(n_embd=4, num_seeds=2), dict(n_embd=6)]\n')
    return path


def run(study: Path, *args: str, folder: str = "two") -> int:
    """Run a study, shortened, into a folder beside it."""
    return main([str(study), *TINY, f"--out_dir={study.parent / folder}", *args])


def write_log(folder: Path, seen: list, unseen: list, pair: tuple = (5, 7), n_embd: int = 14) -> dict:
    """A run of two seeds by hand: right answers at iterations 0, 10, ..., the same for both; 6 s for 10.

    Its config is returned."""
    c = {key: config.KEYS[key].default for key in config.KEYS}
    c |= {"out_dir": str(folder), "n_embd": n_embd, "num_seeds": 2, "max_iters": 10 * len(seen) - 10}
    rows = [dict.fromkeys(log.COLUMNS, "") | {
        "iter": 10 * i, "seed": seed, "train_loss": 0.649, "val_loss": 0.649, "elapsed_s": 6.0 * i,
        "add_correct": (seen[i] + unseen[i]) // 2, "add_total": 100, "math_acc": 0.5, "combined_acc": 0.5,
        "sub_correct": (seen[i] + unseen[i] + 1) // 2, "sub_total": 100,
        "heldout_correct": unseen[i], "heldout_total": 4} for i in range(len(seen)) for seed in (1337, 1338)]
    folder.mkdir(parents=True)
    notes = notes_of(["math"], [1337, 1338], config=c, held_out=[pair], parameters=100 * n_embd,
                     data_sha256=data.load("as_math").sha256)
    log.start(folder, notes, rows)
    return c


def test_a_study_is_trained_drawn_and_then_skipped(study, capsys):
    assert run(study) == 0
    said = capsys.readouterr().out
    assert "unknown until the first run is under way" in said and said.count("to do") == 2
    folders = sorted((study.parent / "two").iterdir())
    assert [path.name for path in folders] == ["n_embd_4", "n_embd_6"]
    wide, written = rows_of(folders[1]), (folders[0] / "results.csv").stat().st_mtime_ns
    assert len(wide) == 3 and "| n_embd_4 |" in (study.parent / "two.md").read_text()
    header, *lines = (folders[1] / "results.csv").read_text().splitlines(keepends=True)
    (folders[1] / "results.csv").write_text(header + lines[0])
    (folders[1] / "ckpt.pt").rename(study.parent / "ckpt.pt")
    with pytest.raises(config.UserError, match="n_embd_6 already holds a run"):
        run(study)
    assert "1 seed(s)  interrupted at 0" in capsys.readouterr().out
    (study.parent / "ckpt.pt").rename(folders[1] / "ckpt.pt")
    assert run(study) == 0 and "2 seed(s)  done" in capsys.readouterr().out
    (folders[1] / "ckpt.pt").unlink()
    (folders[1] / "results.csv").write_text(header)  # killed as it began
    assert run(study) == 0 and rows_of(folders[1]) == wide
    assert (folders[0] / "results.csv").stat().st_mtime_ns == written
    for asked, says in (("num_seeds=3", "n_embd_4 has num_seeds = 2, the study asks for 3"),
                        ("max_iters=2", "max_iters = 2 is below the 4 that the run has done")):
        with pytest.raises(config.UserError, match=says):
            run(study, f"--{asked}")


def test_ctrl_c_stops_the_study_and_the_next_call_goes_on(study, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        append = log.append
        patch.setattr(log, "append", lambda *args: (append(*args), os.kill(os.getpid(), signal.SIGINT)))
        assert run(study) == 130
    assert f"go on with:\npython sweep.py {study}" in capsys.readouterr().err
    assert not (study.parent / "two" / "n_embd_6").exists() and not (study.parent / "two.md").exists()
    assert run(study) == 0 and run(study, folder="again") == 0
    for name in ("n_embd_4", "n_embd_6"):
        assert rows_of(study.parent / "two" / name) == rows_of(study.parent / "again" / name)


def test_parts_share_the_runs_and_the_last_draws(study, capsys, monkeypatch):
    assert run(study, "--part=2/2") == 0
    assert "1 of 2 runs are not done" in capsys.readouterr().out
    assert not (study.parent / "two.md").exists() and run(study, "--plot") == 0
    assert "| n_embd_6 |" in (study.parent / "two.md").read_text()
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(config.UserError, match="--part=1/2 under torchrun"):
        run(study, "--part=1/2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    capsys.readouterr()
    assert run(study) == 0 and "n_embd_6" not in capsys.readouterr().out.split("wrote")[0]
    assert "| n_embd_4 |" in (study.parent / "two.md").read_text()


def test_held_out_pairs_are_trained_on_their_data_and_drawn(tmp_path):
    (tmp_path / "p.py").write_text('draw = "pairs"\nruns = [dict(held_out="3-8"), dict(held_out="5-7")]')
    assert run(tmp_path / "p.py", folder="p") == 0
    other = log.read_run(tmp_path / "p" / "held_out_3-8")
    assert other.notes["held_out"] == [[3, 8]] and other.notes["config"]["dataset"] == "as_math_3-8"
    right = 100 * other.columns["heldout_correct"][-1] / other.columns["heldout_total"][-1]
    assert np.mean(sweep.pair_scores(other)) == right.mean()
    assert (tmp_path / "p.png").stat().st_size > 10_000 and "5-7 has rank" in (tmp_path / "p.md").read_text()
    (tmp_path / "p.py").write_text('draw = "pairs"\nruns = [dict(held_out="3-8,2-6")]')
    with pytest.raises(config.UserError, match="one pair held out, of two digits"):
        run(tmp_path / "p.py", folder="q")


def test_phases_table_and_rank_by_hand(tmp_path):
    logs = [read_log(write_log(tmp_path / name, *curves)) for name, curves in CURVES.items()]
    assert [*map(phase, logs)] == [*CURVES]
    draw("table", tmp_path / "t", logs)
    # 3 of 4 answers; no seed of 2 has all, Wilson up to 65.8%; halfway from 0.767 to 0.531; 18 s
    row, = [row for row in (tmp_path / "t.md").read_text().splitlines() if row.startswith("| memorisation")]
    assert [cell.strip() for cell in row.split("|")][1:-1] == [
        "memorisation", "1,400", "2", "0.3", "100 (100 to 100)", "75 (75 to 75)", "0 of 2 (0% to 65.8%)",
        "memorisation",
        "0.6490 (0.6490 to 0.6490)", "0.7670", "0.5310", "50 (50 to 50)"]
    pairs = [read_log(write_log(tmp_path / f"{a}", [0, 196], [0, right], (a, 7)))
             for a, right in enumerate([4, 3, 3, 2, 4])]
    said = "rank 3.5 of 5 (95% bootstrap interval over seeds 3.5 to 3.5) by its mean held-out score, 75%."
    assert f"1-7 has {said}" in rank(pairs, [1, 7]) and rank(pairs, [5, 7]) == ""


def test_time_left_by_hand(tmp_path):
    begun = write_log(tmp_path / "a", [0, 196, 196], [0, 0, 0])  # 12 s for 20 iterations of 2 seeds
    wide = begun | {"num_seeds": 1, "max_iters": 2000, "n_embd": 28}
    # 0.3 s per iteration and seed at width 14 with its 14 * (14 + 27) = 574; 28 * (28 + 27) = 1540 at 28
    expected = f"about {2000 * 0.3 * 1540 / 574 / 60:,.1f} min"
    assert time_left([begun, wide], [read_log(begun), None]) == expected
    assert time_left([wide], [None]) == "unknown until the first run is under way"


@pytest.mark.parametrize("kind", ["capacity", "phase"])
def test_figures_of_logs_by_hand(tmp_path, kind):
    for n, name in ((6, "confusion"), (14, "grokking"), (28, "memorisation")):
        write_log(tmp_path / "s" / f"n_embd_{n}", *CURVES[name], n_embd=n)
    (tmp_path / "s.py").write_text(f"draw, max_iters, num_seeds = '{kind}', 30, 2\n"
                                   "runs = [dict(n_embd=n) for n in (6, 14, 28, 56)]")
    assert main([str(tmp_path / "s.py"), "--plot", f"--out_dir={tmp_path}/s"]) == 0
    assert (tmp_path / "s.png").stat().st_size > 10_000 and not (tmp_path / "s" / "n_embd_56").exists()
    assert (" grokking " in (tmp_path / "s.md").read_text()) == (kind == "phase")


@pytest.mark.parametrize("name", ["capacity", "pairs", "phase"])
def test_published_studies_are_those_of_the_committed_logs(tmp_path, name):
    """Every run of the study, as its file asks for it."""
    study, runs = read_study(f"config/sweep_{name}.py", {"out_dir": str(ROOT / "results" / name)})
    draw(study["draw"], tmp_path / name, [read_log(c) for c in runs])
    published = ROOT / "results" / f"{name}.md"
    assert (tmp_path / f"{name}.md").read_text() == published.read_text()


@pytest.mark.parametrize("text, args, says", [
    ("", [], "expected runs ="), ("runs = [6]", [], "expected runs ="), ("runs = 6", [], "runs = 6 will"),
    ("runs = [dict(n_embed=6)]", [], "unknown key n_embed (did you mean n_embd?)"),
    ("runs = [dict(n_embd='6')]", [], "n_embd = '6' will not do"),
    ("runs = [dict(base='config/no.py')]", [], "config/no.py"),
    ("runs = [dict(held_out='5')]", [], "held_out"), ("runs = [{}]\ndraw = 'pie'", [], "draw = 'pie'"),
    ("runs = [dict(name='a'), dict(name='a')]", [], "run 2 is a as one before"),
    ("runs = [{}]", ["--name=a"], "unknown argument"),
    ("runs = [{}]", ["--part=0/2"], "--part=0/2"), ("runs = [{}]", ["--wd"], "sweep_bad_wd.py"),
    ("runs = [{}]", ["--overwrite=True"], "unknown argument"), ("runs = [{}]", ["b.py"], "2 studies")])
def test_mistakes_are_one_line(tmp_path, text, args, says):
    path = tmp_path / "sweep_bad.py"
    path.write_text(text)
    with pytest.raises(config.UserError) as e:
        main([str(path), f"--out_dir={tmp_path}/bad", *args])
    assert says in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "bad").exists()


def test_the_studies_of_the_repository():
    runs = {name: read_study(f"config/sweep_{name}.py", {})[1]
            for name in ("paper", "paper_wd", "capacity", "pairs", "phase", "long")}
    assert [*map(len, runs.values())] == [12, 12, 14, 45, 25, 4]
    assert {(one["out_dir"], one["num_seeds"]) for one in runs["paper"]} >= {
        ("paper/math_mini_14", 64), ("paper/both_mini_28", 32), ("paper/math_mini_mlt", 1)}
    assert {one["eval_interval"] for one in runs["capacity"] + runs["pairs"] + runs["phase"]} == {1000}
    assert runs["pairs"][0]["out_dir"] == "results/pairs/held_out_0-1"
    few, many = (one["dataset"] for one in runs["phase"][1:3])
    assert many.startswith(few) and many.count("-") == 5
