"""Faults that a run survives: signals, full disks, a second run in its folder, a loss that diverges."""
import dataclasses
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import data
import engine
import train_with_eval
from config import UserError
from helpers import ROOT, command, contents, log, popen, resume, run_script, same, spawn, train, weights
from model import load_checkpoint

ENDLESS = ["--max_iters=100000", "--eval_interval=5"]


def wait_for(condition) -> None:
    """Until it holds, or the test reaches its limit."""
    while not condition():
        time.sleep(0.01)


def logged(folder, rows: int) -> bool:
    """Whether a run has logged as much."""
    return (folder / "results.csv").exists() and (folder / "results.csv").read_bytes().count(b"\n") > rows


def error(folder) -> str:
    """The one error line that a child ended with."""
    text = folder.with_suffix(".err").read_text()
    assert "Traceback" not in text
    return text.splitlines()[-1]


@pytest.mark.parametrize("number, code, moment", [
    ("TERM", 143, lambda folder: logged(folder, 2)), ("HUP", 129, lambda folder: logged(folder, 2)),
    ("INT", 130, lambda folder: (folder / "lock").exists())], ids=["TERM", "HUP", "INT at the start"])
def test_a_signal_to_a_real_process(tmp_path, number, code, moment):
    """It says how to go on, from where it was started; resumed, it becomes the run never interrupted."""
    folder = tmp_path / "a run"
    config_file, *rest = command(Path("a run"), ENDLESS)
    run = popen(str(ROOT / "train_with_eval.py"), str(ROOT / config_file), *rest, cwd=tmp_path)
    wait_for(lambda: moment(folder))
    run.send_signal(getattr(signal, f"SIG{number}"))
    err = run.communicate()[1]
    assert run.returncode == code and "Traceback" not in err
    python, *line = shlex.split(err.splitlines()[-1])
    assert python == "python" and line[1:] == ["--init_from=resume", "--out_dir=a run"]
    end = load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] + 7
    assert run_script(*line, f"--max_iters={end}", cwd=tmp_path).returncode == 0
    assert same(folder, train(tmp_path / "reference", "--eval_interval=5", f"--max_iters={end}"))


def test_a_closed_terminal_does_not_stop_what_nohup_started(tmp_path):
    child = spawn(tmp_path / "run", ENDLESS, first=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(lambda: logged(tmp_path / "run", 2))
    os.kill(child.pid, signal.SIGHUP)
    wait_for(lambda: logged(tmp_path / "run", 5))
    child.terminate()
    child.join()
    assert child.exitcode == 143


def making(update):
    """An `engine.make` whose engines update by `update(engine, their own update, batches, rates)`."""

    def make(*how, make=engine.make):
        made = make(*how)
        made.update = partial(update, made, made.update)
        return made

    return make


@pytest.mark.parametrize("first, second, apart, code", [
    (signal.SIGUSR1, signal.SIGUSR1, 0.02, 128 + signal.SIGUSR1),
    (signal.SIGUSR2, signal.SIGTERM, 2, -signal.SIGTERM)], ids=["at once", "later"])
def test_a_second_signal(tmp_path, first, second, apart, code):
    """timeout, scancel and torchrun signal a process and its group: that is one. Later it is an order."""

    def slowly(made, update, *how):
        (tmp_path / "now").touch()
        time.sleep(4 * apart + 0.5)
        update(*how)

    folder = tmp_path / "run"
    child = spawn(folder, ENDLESS, first=lambda: setattr(engine, "make", making(slowly)))
    wait_for((tmp_path / "now").exists)
    os.kill(child.pid, first)
    time.sleep(apart)
    os.kill(child.pid, second)
    child.join()
    saved = load_checkpoint(folder / "ckpt.pt")[0]["iter_num"]
    assert (child.exitcode, saved) == (code, code > 0)
    resume(folder, "--max_iters=2")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has loaded")
def test_ctrl_c_while_torch_is_imported_is_no_traceback(tmp_path):
    """Or while it does what comes next: the error that is due."""
    draw = random.Random(0)
    for script in ("train_with_eval.py", "sample.py", "eval_as_math.py") * 2:
        run = popen(script, f"--out_dir={tmp_path}", "--model_seed=-2")
        wait_for(lambda pid=run.pid: "libtorch" in Path(f"/proc/{pid}/maps").read_text())
        time.sleep(draw.uniform(0, 0.8))
        run.send_signal(signal.SIGINT)
        assert "Traceback" not in run.communicate()[1] and run.returncode in (130, -signal.SIGINT, 2)


@pytest.mark.parametrize("at, number", [(13, signal.SIGINT), (20, signal.SIGTERM), (40, signal.SIGINT)])
def test_an_interrupted_run_goes_on_unharmed(tmp_path, monkeypatch, signals, at, number):
    """Between two evaluations, where one is due, and after the last update; with dropout, two seeds."""
    args, done = ["--num_seeds=2", "--dropout=0.1", "--max_iters=40"], 0

    def signal_at(made, update, batches, rates):
        nonlocal done
        update(batches, rates)
        done += len(batches)
        if done == at:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as m:
        m.setattr(engine, "make", making(signal_at))
        m.setattr(train_with_eval, "LOOK_EVERY_S", 0)  # after every update
        folder = train(tmp_path / "run", *args, code=128 + number if at < 40 else 0)
    assert load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] == at
    resume(folder)
    reference, best = train(tmp_path / "reference", *args), "ckpt_best_math.pt"
    assert same(folder, reference) and torch.equal(weights(folder, best), weights(reference, best))


# --- disks

def limit_files(size: int) -> None:
    """From now on no file of this process may grow beyond `size` bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size, name, saved", [
    (40_000, "ckpt_best_math.pt", 10), (100_000, "ckpt.pt", 10), (None, "results.csv", 20)])
def test_a_file_that_cannot_grow_in_the_middle_of_a_run(tmp_path, monkeypatch, size, name, saved):
    """From the evaluation before on. The checkpoint and the log stay, and the run resumes from there."""
    folder, evaluate = tmp_path / "run", train_with_eval.evaluate
    args = ["--max_iters=30", "--num_seeds=8"]  # so many that the log outgrows what the child prints

    def evaluate_and_limit(model, dataset, seeds, iter_num, c):
        if iter_num == saved:
            limit_files(size or (folder / "results.csv").stat().st_size + 30)  # half a line
        return evaluate(model, dataset, seeds, iter_num, c)

    with monkeypatch.context() as m:
        m.setattr(train_with_eval, "evaluate", evaluate_and_limit)
        child = spawn(folder, args)
        child.join()
    assert child.exitcode == 2
    assert error(folder).startswith(f"error: cannot write {folder / name}: File too large; what was saved")
    assert {*contents(folder)} == {"ckpt.pt", "ckpt_best_math.pt", "config.json", "results.csv"}
    assert load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] == saved
    assert logged(folder, 16)
    resume(folder)
    assert same(folder, train(tmp_path / "reference", *args))


def test_a_run_that_could_not_save_anything_says_how_to_begin_anew(tmp_path):
    folder = tmp_path / "run"
    child = spawn(folder, first=lambda: limit_files(20_000))
    child.join()
    assert child.exitcode == 2 and "ckpt.pt: File too large" in error(folder)
    with pytest.raises(UserError, match="ckpt.pt to resume; train without --init_from=resume"):
        resume(folder)
    with pytest.raises(UserError, match=r"holds a run .results.csv.; replace it with --overwrite=True"):
        train(folder)
    train(folder, "--overwrite")


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a small disk on a folder, or changes how it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("may not mount a disk here")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_read_only_folder(disk):
    folder = disk("size=1m")
    spawn(folder).join()
    before = contents(folder)
    disk("remount,ro")
    child = spawn(folder)
    child.join()
    assert child.exitcode == 2 and error(folder).startswith(f"error: cannot write {folder}/lock: Read-only")
    assert contents(folder) == before


def test_a_read_only_checkout_trains(disk, tmp_path, monkeypatch, capsys):
    """Its data are made in memory, and that is said."""
    (disk("size=1m") / "data" / "as_math").mkdir(parents=True)
    shutil.copy(ROOT / "data" / "as_math" / "prepare.py", tmp_path / "disk" / "data" / "as_math")
    disk("remount,ro")
    reference = train(tmp_path / "reference")
    monkeypatch.setattr(data, "ROOT", tmp_path / "disk" / "data")
    assert same(train(tmp_path / "run"), reference)
    assert "data/as_math is used without being written" in capsys.readouterr().out


# --- two at once

@pytest.mark.parametrize("args", [[], ["--overwrite=True"], ["--init_from=resume"]], ids=str)
def test_a_second_run_in_a_folder_is_refused(tmp_path, args):
    """With the first one's process id, and nothing changes; the lock of a killed run is in nobody's way."""
    folder = tmp_path / "run"
    child = spawn(folder, ENDLESS)
    wait_for(lambda: logged(folder, 2))
    os.kill(child.pid, signal.SIGSTOP)
    before = contents(folder)
    with pytest.raises(UserError, match=re.escape(f"process {child.pid} is training in {folder}")):
        train_with_eval.main([f"--out_dir={folder}", *args])
    assert contents(folder) == before
    child.kill()
    child.join()
    resume(folder, f"--max_iters={int(log(folder)[-1]['iter']) + 1}")
    train(folder, "--overwrite=True")


@pytest.mark.parametrize("iters", [0, 20])
def test_of_two_runs_that_begin_together_in_a_new_folder_one_trains(tmp_path, iters):
    """The other, shorter or just as long, is refused and harms nothing, whichever comes first."""
    for i in range(5):
        folder, gate = tmp_path / str(i), multiprocessing.Barrier(2)
        pair = {seed: spawn(folder, [f"--seed={seed}", f"--max_iters={n}"], first=gate.wait)
                for seed, n in ((1, 20), (2, iters))}
        for child in pair.values():
            child.join()
        assert sorted(child.exitcode for child in pair.values()) == [0, 2]
        winner = next(seed for seed, child in pair.items() if child.exitcode == 0)
        assert {row["seed"] for row in log(folder)} == {str(winner)}
        assert load_checkpoint(folder / "ckpt.pt")[0]["seeds"] == [winner]
        assert int(log(folder)[-1]["iter"]) == (20 if winner == 1 else iters)


def test_a_system_without_locks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.files.fcntl", None)
    train(tmp_path / "run")
    assert f"nothing prevents a second run in {tmp_path / 'run'}" in capsys.readouterr().out


# --- what a run does not go on from

def test_what_a_killed_run_left_half_written_is_swept_up(tmp_path):
    """Of a trainer's files only; another tool may be writing its own."""
    folder = train(tmp_path / "run")
    for name in (".ckpt.pt.1.part", ".ckpt_000250.pt.1.part", ".results.csv.1.part", ".plot.png.1.part"):
        (folder / name).touch()
    resume(folder)
    assert {p.name for p in folder.glob(".*")} == {".plot.png.1.part"}


def test_a_diverging_run_resumed_comes_to_the_same_end(tmp_path):
    """It names the same iteration, and what was there before the end stays."""
    folder, ends = tmp_path / "run", []
    train(folder, "--learning_rate=1000", "--warmup_iters=0", "--weight_decay=1000", "--max_iters=0")
    for _ in range(2):
        with pytest.raises(UserError, match="seed 1337: the loss is not finite at iteration [1-9]") as e:
            resume(folder, "--max_iters=20")
        ends.append(str(e.value))
    assert ends[0] == ends[1] and [row["iter"] for row in log(folder)] == ["0"]
    assert weights(folder).isfinite().all()


def test_what_is_not_finite_is_not_saved_when_a_signal_comes(tmp_path, monkeypatch, signals):
    """The last good checkpoint stays as it was."""
    folder = train(tmp_path / "run", "--num_seeds=2")
    good = weights(folder)

    def diverge(made, *_):
        made.state["params"][1, 3] = torch.inf
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(engine, "make", making(diverge))
    with pytest.raises(UserError, match="seed 1338: the loss is not finite at iteration 2"):
        resume(folder, "--max_iters=25")
    assert torch.equal(weights(folder), good)


def test_an_evaluation_off_the_interval_does_not_count_when_the_run_goes_on(tmp_path, monkeypatch):
    """The one at max_iters = 25: its row goes, and so does its place among the best."""
    evaluate = train_with_eval.evaluate

    def perfect_at_25(model, dataset, seeds, iter_num, c):
        rows = evaluate(model, dataset, seeds, iter_num, c)
        return [row | ({"math_acc": 1.0} if iter_num == 25 else {}) for row in rows]

    monkeypatch.setattr(train_with_eval, "evaluate", perfect_at_25)
    folder, best = train(tmp_path / "run", "--max_iters=25"), "ckpt_best_math.pt"
    assert load_checkpoint(folder / best)[0]["iter_num"] == [25]
    resume(folder, "--max_iters=40")
    reference = train(tmp_path / "reference", "--max_iters=40")
    assert same(folder, reference) and torch.equal(weights(folder, best), weights(reference, best))


def test_resuming_on_another_text_of_the_same_characters_is_refused(math_run, datasets, monkeypatch):
    before, other = contents(math_run), dataclasses.replace(datasets["math"], sha256="0" * 64)
    monkeypatch.setattr(data, "load", lambda name: other)
    with pytest.raises(UserError, match="trained on another text than data/as_math has now"):
        resume(math_run)
    assert contents(math_run) == before


def test_a_log_that_is_not_the_run_s_is_refused_before_anything_is_written(tmp_path):
    """One with another seed, of the same seed on other data, or of other tasks."""
    folder, table = train(tmp_path / "run"), tmp_path / "run" / "results.csv"
    own = table.read_bytes()
    others = [own.replace(b"\n10,1337", b"\n10,7")]
    for *how, run in (["facts_mini_14"], ["both_mini_14"], ["--dataset=as_math_3-8", "math_mini_14"]):
        others.append((train(tmp_path / run, *how, run=run) / "results.csv").read_bytes())
    for other in others:
        table.write_bytes(other)
        before = contents(folder)
        with pytest.raises(UserError, match="results.csv.* it lacks what .*ckpt.pt has"):
            resume(folder, "--max_iters=30")
        assert contents(folder) == before
    table.write_bytes(own)
    resume(folder, "--max_iters=30")
    assert same(folder, train(tmp_path / "reference", "--max_iters=30"))


def test_the_same_command_again_goes_on_or_starts(tmp_path):
    """--init_from=auto, for schedulers: where nothing is, after a kill as it began, and at the end."""
    folder, args = tmp_path / "run", ["--init_from=auto", "--dropout=0.1", "--max_iters=30"]
    reference = train(tmp_path / "reference", *args[1:])
    child = spawn(folder, args, first=lambda: limit_files(20_000))
    child.join()
    assert child.exitcode == 2 and {*contents(folder)} == {"config.json", "results.csv"}
    assert same(train(folder, *args), reference)
    train(folder, *args, "--max_iters=40")
    assert same(train(folder, *args, "--max_iters=40"), train(tmp_path / "longer", *args, "--max_iters=40"))
    before = contents(folder)
    for other in ("--n_embd=28", "--seed=1", "--num_seeds=2", "--batch_size=64"):
        with pytest.raises(UserError, match=f"{other[2:].split('=')[0]} = .* differs from the run's"):
            train(folder, *args, "--max_iters=40", other)
    (folder / "ckpt.pt").unlink()
    with pytest.raises(UserError, match="already holds a run .ckpt_best_math.pt.; replace it"):
        train(folder, *args)
    assert contents(folder) == {name: text for name, text in before.items() if name != "ckpt.pt"}
