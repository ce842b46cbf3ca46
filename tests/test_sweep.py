"""sweep.py: what a study trains, skips, resumes and shares out; what it writes; what it says of mistakes."""
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import config
import data
from config import sweep_pairs
from data import log
from data.files import Lock
from helpers import ROOT
from helpers import log as rows_of
from runs import CURVES, write_log
from sweep import main, read_log, read_study, table, time_left

TINY = ["--max_iters=4", "--eval_interval=2", "--num_samples=1", "--device=cpu", "--batch_size=16"]
@pytest.fixture
def study(tmp_path) -> Path:
    """A study of two runs."""
    path = tmp_path / "sweep_two.py"
    path.write_text('"""Two?"""\nn_head = 2\nruns = [dict(n_embd=4, num_seeds=2), dict(n_embd=6)]\n')
    return path


def run(study: Path, *args: str, folder: str = "two") -> int:
    """Run a study, shortened, into a folder beside it."""
    return main([str(study), *TINY, f"--out_dir={study.parent / folder}", *args])


def test_a_study_is_trained_drawn_and_then_skipped(study, capsys):
    assert run(study) == 0
    said = capsys.readouterr().out
    assert "unknown until the first run is under way" in said and said.count("to do") == 2
    folders = sorted((study.parent / "two").iterdir())
    assert [path.name for path in folders] == ["n_embd_4", "n_embd_6"]
    wide, written = rows_of(folders[1]), (folders[0] / "results.csv").stat().st_mtime_ns
    assert len(wide) == 3 and "| n_embd_4 |" in (study.parent / "two.md").read_text()
    header, *lines = (folders[1] / "results.csv").read_text().splitlines(keepends=True)
    (folders[1] / "results.csv").write_text(header + "".join(lines[:2]))
    (folders[1] / "ckpt.pt").rename(study.parent / "ckpt.pt")
    with pytest.raises(config.UserError, match="n_embd_6 already holds a run"):
        run(study)
    assert "1 seed(s)  begun, at 2" in capsys.readouterr().out
    (study.parent / "ckpt.pt").rename(folders[1] / "ckpt.pt")
    assert run(study) == 0 and "2 seed(s)  done" in capsys.readouterr().out
    (folders[1] / "ckpt.pt").unlink()
    (folders[1] / "results.csv").write_text(header)  # killed as it began
    assert run(study) == 0 and rows_of(folders[1]) == wide
    assert (folders[0] / "results.csv").stat().st_mtime_ns == written
    for asked, says in (("num_seeds=3", "n_embd_4 has num_seeds = 2, the study asks for 3"),
                        ("max_iters=2", "n_embd_4 has done 4 iterations, the study asks for max_iters = 2")):
        with pytest.raises(config.UserError, match=says):
            run(study, f"--{asked}")


def test_ctrl_c_stops_the_study_and_the_next_call_goes_on(study, capsys, monkeypatch, signals):
    with monkeypatch.context() as patch:
        append = log.append
        patch.setattr(log, "append", lambda *args: (append(*args), os.kill(os.getpid(), signal.SIGINT)))
        assert run(study) == 130
    assert f"go on with:\npython sweep.py {shlex.quote(str(study))}" in capsys.readouterr().err
    assert not (study.parent / "two" / "n_embd_6").exists() and not (study.parent / "two.md").exists()
    assert run(study) == 0 and run(study, folder="again") == 0
    for name in ("n_embd_4", "n_embd_6"):
        assert rows_of(study.parent / "two" / name) == rows_of(study.parent / "again" / name)


def test_processes_that_start_together_train_each_run_once(study, capfd):
    """Under torchrun too, where each run is an ordinary one; and a run that another process trains is left
    alone, until that one ends without finishing it."""
    with Lock(study.parent / "two" / "n_embd_6"):
        assert run(study) == 0
    said = capfd.readouterr().out
    assert f"left alone: process {os.getpid()} is training in" in said and "1 of 2 runs are not done" in said
    assert not (study.parent / "two.md").exists()
    command = ["sweep.py", str(study), *TINY, f"--out_dir={study.parent}/many"]
    started = [subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={
        **os.environ, "TORCHELASTIC_RUN_ID": "x", "RANK": str(i), "WORLD_SIZE": "2"}) for i in range(2)]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "".join(said).count("parameters, ") == 2 and "| n_embd_6 |" in "".join(said)
    assert run(study) == 0 and "2 of 2" in capfd.readouterr().out
    for name in ("n_embd_4", "n_embd_6"):
        assert rows_of(study.parent / "two" / name) == rows_of(study.parent / "many" / name)


def test_a_run_that_was_left_alone_is_come_back_to(study, monkeypatch, capfd):
    """The other process, which ends while this one trains the next run, has not finished its own."""
    (other := Lock(study.parent / "two" / "n_embd_4")).__enter__()
    other.begun, append = True, log.append
    monkeypatch.setattr(log, "append", lambda *args: (append(*args), other.file.closed or other.__exit__()))
    assert run(study) == 0 and "left alone" in capfd.readouterr().out
    assert "| n_embd_4 |" in (study.parent / "two.md").read_text()


def test_held_out_pairs_are_trained_on_their_data(tmp_path):
    (tmp_path / "p.py").write_text('runs = [dict(held_out="3-8"), dict(held_out="5-7")]')
    assert run(tmp_path / "p.py", folder="p") == 0
    other = log.read_run(tmp_path / "p" / "held_out_3-8")
    assert other.info["held_out"] == [[3, 8]] and other.info["config"]["dataset"] == "as_math_3-8"
    right = 100 * other.columns["heldout_correct"][-1] / other.columns["heldout_total"][-1]
    assert np.mean(sweep_pairs.pair_scores(other)) == right.mean()


def test_table_by_hand(tmp_path):
    logs = [read_log(write_log(tmp_path / name, *curves)) for name, curves in CURVES.items()]
    # 3 of 4 answers; no seed of 2 has all, Wilson up to 65.8%; halfway from 0.767 to 0.531; 18 s
    row, = [row for row in table("t", logs).splitlines() if row.startswith("| memorisation")]
    assert [cell.strip() for cell in row.split("|")][1:-1] == [
        "memorisation", "1,400", "2", "0.3", "100 (100 to 100)", "75 (75 to 75)", "0 of 2 (0% to 65.8%)",
        "0.6490 (0.6490 to 0.6490)", "0.7670", "0.5310", "50 (50 to 50)"]
    for rank in range(3):  # of 18 s each
        write_log(tmp_path / "three" / f"rank_{rank}", *CURVES["grokking"], seed=10 * rank)
    logs[:] = logs[0], log.read_run(tmp_path / "three")
    logs[0].info["taken_from"] = "results/x: its first seeds"
    said = table("t", logs)
    assert "\nconfusion is taken from results/x: its first seeds, which says what it took.\n" in said
    assert [row.split("|")[4].strip() for row in said.splitlines()[-2:]] == ["-", "0.9"]


def test_time_left_by_hand(tmp_path):
    begun = write_log(tmp_path / "a", [0, 196, 196], [0, 0, 0])  # 12 s for 20 iterations of 2 seeds
    wide = begun | {"num_seeds": 1, "max_iters": 2000, "n_embd": 28}
    # 0.3 s per iteration and seed at width 14, where a token is 13,048 operations; 40,208 at 28
    expected = f"about {2000 * 0.3 * 40_208 / 13_048 / 60:,.1f} min"
    assert time_left([begun, wide], [read_log(begun), None]) == expected
    assert time_left([wide], [None]) == "unknown until the first run is under way"


def test_what_a_study_draws_and_says(tmp_path, capsys):
    """On a figure of its own, of the runs that are done; what is wrong there is one line."""
    write_log(tmp_path / "s" / "n_embd_6", *CURVES["grokking"], n_embd=6)
    text = ("max_iters, num_seeds, runs = 30, 2, [dict(n_embd=6), dict(n_embd=8)]\n"
            "def draw(fig, logs):\n    fig.text(0, 0, 'x')\n    return f'{len(logs)} drawn'\n")
    (tmp_path / "s.py").write_text(text)
    command = [str(tmp_path / "s.py"), "--plot", f"--out_dir={tmp_path}/s"]
    assert main(command) == 0 and "1 of 2 runs are not done\n" in capsys.readouterr().out
    assert (tmp_path / "s.md").read_text().endswith("|\n\n1 drawn")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "s.py").write_text("table = False\n" + text.replace("return", "return 1 / 0 #"))
    with pytest.raises(config.UserError, match="s.py, line 5: ZeroDivisionError"):
        main(command)


def test_a_study_that_yields_is_a_film(tmp_path, capsys):
    """Written at once or not at all; without a table there is no text."""
    Image = pytest.importorskip("PIL.Image")
    write_log(tmp_path / "s" / "n_embd_6", *CURVES["grokking"], n_embd=6)
    text = ("max_iters, num_seeds, runs, table = 30, 2, [dict(n_embd=6)], False\n"
            "def draw(fig, logs):\n    for i in range(3):\n        fig.set_facecolor((i / 2, 0, 0))\n"
            "        yield\n")
    (tmp_path / "s.py").write_text(text)
    command = [str(tmp_path / "s.py"), "--plot", f"--out_dir={tmp_path}/s"]
    assert main(command) == 0 and capsys.readouterr().out == f"wrote {tmp_path}/s.gif\n"
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s.gif", "s.py"}
    with Image.open(tmp_path / "s.gif") as film:
        seen = []
        for i in range(film.n_frames):
            film.seek(i)
            seen.append((film.convert("RGB").getpixel((0, 0))[0], film.info["duration"]))
    assert [red for red, _ in seen] == pytest.approx([0, 127, 255], abs=2)
    assert seen[0][1] == 200 and sum(ms for _, ms in seen) >= 3 * 200 + 3000
    before = (tmp_path / "s.gif").read_bytes()
    (tmp_path / "s.py").write_text(text.replace("i / 2", "i / (1 - i)"))
    with pytest.raises(config.UserError, match="s.py, line 4: ZeroDivisionError"):
        main(command)
    assert (tmp_path / "s.gif").read_bytes() == before


@pytest.mark.parametrize("text, args, says", [
    ("", [], "expected runs ="), ("runs = [6]", [], "expected runs ="), ("runs = 6", [], "runs = 6 will"),
    ("runs = [dict(n_embed=6)]", [], "unknown key n_embed (did you mean n_embd?)"),
    ("runs = [dict(n_embd='6')]", [], "n_embd = '6' will not do"),
    ("runs = [dict(base='config/no.py')]", [], "config/no.py"),
    ("runs = [dict(held_out='5')]", [], "held_out"), ("runs = [{}]\ndraw = 'pie'", [], "expected a function"),
    ("runs = [dict(name='a'), dict(name='a')]", [], "run 2 is a as one before"),
    ("runs = [{}]", ["--name=a"], "unknown argument"),
    ("runs = [{}]", ["--overwrite=True"], "unknown argument"), ("runs = [{}]", ["b.py"], "2 studies")])
def test_mistakes_are_one_line(tmp_path, text, args, says):
    path = tmp_path / "sweep_bad.py"
    path.write_text(text)
    with pytest.raises(config.UserError) as e:
        main([str(path), f"--out_dir={tmp_path}/bad", *args])
    assert says in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "bad").exists()


def test_the_studies_of_the_repository():
    runs = {name: read_study(f"config/sweep_{name}.py", {})[1]
            for name in ("paper", "paper_wd", "capacity", "pairs", "phase", "long", "digits", "learning")}
    assert [*map(len, runs.values())] == [12, 12, 14, 45, 25, 2, 8, 2]
    assert runs["digits"][0]["out_dir"] == "results/math_mini_14"
    assert {(one["out_dir"], one["keep_every"], one["num_seeds"]) for one in runs["learning"]} == {
        ("results/learning/n14", 50, 1), ("results/learning/n28", 50, 1)}
    assert {(one["out_dir"], one["num_seeds"]) for one in runs["paper"]} >= {
        ("paper/math_mini_14", 64), ("paper/both_mini_28", 32), ("paper/math_mini_mlt", 1)}
    assert {one["eval_interval"] for one in runs["capacity"] + runs["pairs"] + runs["phase"]} == {1000}
    assert runs["pairs"][0]["out_dir"] == "results/pairs/held_out_0-1"
    few, many = (one["dataset"] for one in runs["phase"][1:3])
    assert many.startswith(few) and many.count("-") == 5


def test_a_variant_whose_name_could_mean_another_is_refused(tmp_path, monkeypatch):
    """Else the study would train on that."""
    monkeypatch.setattr(data, "ROOT", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "prepare.py").write_text(
        'TASKS = ()\n\n\ndef text(weeks=4, days=7):\n    return "Monday\\n" * weeks * days\n')
    study = tmp_path / "sweep_x.py"
    study.write_text("dataset = 'mine'\nruns = [dict(weeks=5), dict(weeks=5, days=6)]")
    assert [c["dataset"] for c in read_study(str(study), {})[1]] == ["mine_5", "mine_5_6"]
    study.write_text("dataset = 'mine'\nruns = [dict(days=5)]")
    with pytest.raises(config.UserError, match="run 1: mine_5 could have other options"):
        read_study(str(study), {})


def test_nothing_to_draw_is_said(study):
    with pytest.raises(config.UserError, match="no run in .*two is done; train them first"):
        run(study, "--plot")
