"""Faults that a run survives: signals, a full disk, a second run in its folder, losses that are not finite."""
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import data
import train_with_eval
from config import UserError
from helpers import ROOT, command, contents, log, resume, same, spawn, train, weights
from model import load_checkpoint, save_checkpoint

ENDLESS = ["--max_iters=100000", "--eval_interval=5"]


def wait_for(condition) -> None:
    """Until it holds, at most a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
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
    (signal.SIGTERM, 143, lambda folder: logged(folder, 2)), (signal.SIGINT, 130, lambda f: logged(f, 2)),
    (signal.SIGINT, 130, lambda folder: (folder / "lock").exists())], ids=["TERM", "INT", "INT at the start"])
def test_a_signal_to_a_real_process(tmp_path, number, code, moment):
    """It says how to go on, with the shell's exit code; resumed, it becomes the run never interrupted."""
    folder = tmp_path / "a run"
    process = subprocess.Popen([sys.executable, "train_with_eval.py", *command(folder, ENDLESS)], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: moment(folder))
    process.send_signal(number)
    err = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in err
    assert err.endswith(f"python train_with_eval.py --init_from=resume --out_dir='{folder}'\n")
    end = load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] + 7
    resume(folder, f"--max_iters={end}")
    assert same(folder, train(tmp_path / "reference", "--eval_interval=5", f"--max_iters={end}"))


def test_ctrl_c_outside_training_is_no_traceback(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_with_eval.configs, "read", interrupt)
    child = spawn(tmp_path / "run")
    child.join()
    assert child.exitcode == 130 and (tmp_path / "run.err").read_text() == ""


def limit_files(size: int) -> None:
    """From now on no file of this process may grow beyond `size` bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size, name", [(8_000, "ckpt_best_math.pt"), (20_000, "ckpt.pt"), (None, "results.csv")])
def test_a_file_that_cannot_grow_in_the_middle_of_a_run(tmp_path, monkeypatch, size, name):
    """At the third evaluation. The second's checkpoint and log stay, and the run resumes from there."""
    folder, evaluate = tmp_path / "run", train_with_eval.Run.evaluate

    def evaluate_and_limit(run):
        if run.iter_num == 20:
            limit_files(size or (folder / "results.csv").stat().st_size + 30)  # half a line
        return evaluate(run)

    with monkeypatch.context() as m:
        m.setattr(train_with_eval.Run, "evaluate", evaluate_and_limit)
        child = spawn(folder, ["--max_iters=30"])
        child.join()
    assert child.exitcode == 2
    assert error(folder).startswith(f"error: cannot write {folder / name}: File too large; what was saved before")
    assert {*contents(folder)} == {"ckpt.pt", "ckpt_best_math.pt", "config.json", "results.csv", "lock"}
    assert load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] == 10
    assert [row["iter"] for row in log(folder)][:2] == ["0", "10"]
    resume(folder)
    assert same(folder, train(tmp_path / "reference", "--max_iters=30"))


def test_a_file_that_cannot_grow_from_the_start(tmp_path):
    """Nothing of a run is left in the way of the next try."""
    folder = tmp_path / "run"
    child = spawn(folder, first=lambda: limit_files(20_000))
    child.join()
    assert child.exitcode == 2 and "ckpt.pt: File too large" in error(folder)
    assert {*contents(folder)} == {"lock"}
    with pytest.raises(UserError, match="ckpt.pt to resume; train without --init_from=resume"):
        resume(folder)
    train(folder)


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of 60 kB on a folder, or changes how it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("may not mount a disk here")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_full_disk(disk, tmp_path):
    """Too small for two checkpoints at once; then it grows."""
    folder = disk("size=80k")
    child = spawn(folder)
    child.join()
    assert child.exitcode == 2 and "No space left on device" in error(folder)
    assert not list(folder.glob(".*.part"))
    disk("remount,size=1m")
    child = spawn(folder)
    child.join()
    assert child.exitcode == 0 and same(folder, train(tmp_path / "reference"))


def test_a_read_only_folder(disk):
    folder = disk("size=1m")
    spawn(folder).join()
    before = contents(folder)
    disk("remount,ro")
    child = spawn(folder)
    child.join()
    assert child.exitcode == 2 and error(folder).startswith(f"error: cannot write {folder}/lock: Read-only")
    assert contents(folder) == before


@pytest.mark.parametrize("args", [[], ["--overwrite=True"], ["--init_from=resume"]], ids=str)
def test_a_second_run_in_a_folder_is_refused(tmp_path, args):
    """With the first one's process id, and nothing is changed; the lock of a killed run is in nobody's way."""
    folder = tmp_path / "run"
    child = spawn(folder, ENDLESS)
    wait_for(lambda: logged(folder, 2))
    os.kill(child.pid, signal.SIGSTOP)
    before = contents(folder)
    with pytest.raises(UserError, match=f"process {child.pid} is training in {folder}"):
        train_with_eval.main([f"--out_dir={folder}", *args])
    assert contents(folder) == before
    child.kill()
    child.join()
    resume(folder, f"--max_iters={int(log(folder)[-1]['iter']) + 1}")
    train(folder, "--overwrite=True")


def test_a_system_without_locks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_with_eval, "fcntl", None)
    train(tmp_path / "run")
    assert f"nothing prevents a second run in {tmp_path / 'run'}" in capsys.readouterr().out


def test_what_a_killed_run_left_half_written_is_swept_up(tmp_path):
    """Of a trainer's files only; another tool may be writing its own."""
    folder = train(tmp_path / "run")
    for name in (".ckpt.pt.1.part", ".ckpt_best_math.pt.1.part", ".results.csv.1.part", ".plot.png.1.part"):
        (folder / name).touch()
    resume(folder)
    assert {p.name for p in folder.glob(".*")} == {".plot.png.1.part"}


DIVERGING = ["--learning_rate=1000", "--warmup_iters=0", "--weight_decay=1000", "--max_iters=40"]


def test_a_signal_after_a_loss_that_is_not_finite_saves_nothing(tmp_path, monkeypatch):
    """The last good checkpoint stays; resumed, the run comes to the same end."""
    folder = tmp_path / "run"
    save = train_with_eval.Run.save

    def save_and_signal(run, *args):
        save(run, *args)
        if run.iter_num == 0:
            signal.raise_signal(signal.SIGINT)

    def diverge(run):
        run.state["params"][1, 3] = torch.nan
        step(run)

    train(folder, "--num_seeds=2")
    before = contents(folder)
    step = train_with_eval.Run.advance
    del save_and_signal
    with monkeypatch.context() as m:
        m.setattr(train_with_eval.Run, "advance", lambda run: (diverge(run), signal.raise_signal(signal.SIGINT)))
        with pytest.raises(UserError, match="seed 1338: the loss is not finite at iteration 20"):
            resume(folder, "--max_iters=40")
    assert torch.equal(weights(folder), weights(folder)) and weights(folder).isfinite().all()
    assert {*before} == {*contents(folder)}
