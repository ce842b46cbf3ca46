"""Faults that a run survives: signals, a full disk, a second run in its folder, a loss that diverges."""
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import data
import train_with_eval
from config import UserError
from helpers import ROOT, command, contents, log, resume, same, spawn, start, train, weights
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


@pytest.mark.parametrize("size, name", [(40_000, "ckpt_best_math.pt"), (100_000, "ckpt.pt"),
                                        (None, "results.csv")])
def test_a_file_that_cannot_grow_in_the_middle_of_a_run(tmp_path, monkeypatch, size, name):
    """At the third evaluation. The second's checkpoint and log stay, and the run resumes from there."""
    folder, evaluate = tmp_path / "run", train_with_eval.Run.evaluate
    args = ["--max_iters=30", "--num_seeds=8"]  # so many that the log outgrows what the child prints

    def evaluate_and_limit(run):
        if run.iter_num == 20:
            limit_files(size or (folder / "results.csv").stat().st_size + 30)  # half a line
        return evaluate(run)

    with monkeypatch.context() as m:
        m.setattr(train_with_eval.Run, "evaluate", evaluate_and_limit)
        child = spawn(folder, args)
        child.join()
    assert child.exitcode == 2
    assert error(folder).startswith(f"error: cannot write {folder / name}: File too large; what was saved")
    assert {*contents(folder)} == {"ckpt.pt", "ckpt_best_math.pt", "config.json", "results.csv", "lock"}
    assert load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] == 10
    assert logged(folder, 16)
    resume(folder)
    assert same(folder, train(tmp_path / "reference", *args))


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
    """With the first one's process id, and nothing changes; the lock of a killed run is in nobody's way."""
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
    monkeypatch.setattr("log.fcntl", None)
    train(tmp_path / "run")
    assert f"nothing prevents a second run in {tmp_path / 'run'}" in capsys.readouterr().out


def test_what_a_killed_run_left_half_written_is_swept_up(tmp_path):
    """Of a trainer's files only; another tool may be writing its own."""
    folder = train(tmp_path / "run")
    for name in (".ckpt.pt.1.part", ".ckpt_best_math.pt.1.part", ".results.csv.1.part", ".plot.png.1.part"):
        (folder / name).touch()
    resume(folder)
    assert {p.name for p in folder.glob(".*")} == {".plot.png.1.part"}


def test_a_diverging_run_resumed_comes_to_the_same_end(tmp_path):
    """It names the same iteration, and what was there before the end stays."""
    folder, ends = tmp_path / "run", []
    for go in (lambda: train(folder, "--learning_rate=1000", "--warmup_iters=0", "--weight_decay=1000"),
               lambda: resume(folder)):
        with pytest.raises(UserError, match="seed 1337: the loss is not finite at iteration [1-9]") as e:
            go()
        ends.append(str(e.value))
    assert ends[0] == ends[1] and [row["iter"] for row in log(folder)] == ["0"]
    assert weights(folder).isfinite().all()


@pytest.mark.parametrize("late", [False, True], ids=["loss", "weights after the last loss"])
def test_what_is_not_finite_is_not_saved_when_a_signal_comes(tmp_path, monkeypatch, late):
    """The last good checkpoint stays as it was."""
    folder, step = train(tmp_path / "run", "--num_seeds=2"), train_with_eval.Run.advance
    good = weights(folder)

    def diverge(run, iterations):
        if late:
            step(run, iterations)
        run.state["params"][1, 3] = torch.inf
        if not late:
            step(run, iterations)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_with_eval.Run, "advance", diverge)
    with pytest.raises(UserError, match=f"seed 1338: the loss is not finite at iteration {20 + late}"):
        resume(folder, "--max_iters=21")
    assert torch.equal(weights(folder), good)


def test_an_evaluation_s_infinite_loss_ends_the_run(monkeypatch):
    run = start(num_seeds=2)
    monkeypatch.setattr(run, "loss", lambda split: np.array([2.8, np.inf]))
    with pytest.raises(UserError, match="seed 1338: the loss is not finite at iteration 0"):
        run.evaluate()


def test_an_evaluation_off_the_interval_does_not_count_when_the_run_goes_on(tmp_path, monkeypatch):
    """The one at max_iters = 25: its row goes, and so does its place among the best."""
    evaluate = train_with_eval.Run.evaluate

    def perfect_at_25(run):
        return [row | ({"math_acc": 1.0} if run.iter_num == 25 else {}) for row in evaluate(run)]

    monkeypatch.setattr(train_with_eval.Run, "evaluate", perfect_at_25)
    folder = train(tmp_path / "run", "--max_iters=25")
    assert load_checkpoint(folder / "ckpt_best_math.pt")[0]["iter_num"] == [25]
    resume(folder, "--max_iters=40")
    reference, best = train(tmp_path / "reference", "--max_iters=40"), "ckpt_best_math.pt"
    assert same(folder, reference) and torch.equal(weights(folder, best), weights(reference, best))


def test_a_new_max_iters_is_kept_by_a_run_killed_at_once(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    folder = train(tmp_path / "run")
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(train_with_eval.Run, "evaluate", killed)
        resume(folder, "--max_iters=40")
    resume(folder)
    assert same(folder, train(tmp_path / "reference", "--max_iters=40"))


def test_resuming_in_a_folder_that_was_moved(tmp_path):
    folder = train(tmp_path / "old").rename(tmp_path / "new")
    resume(folder, "--max_iters=40", "--device=auto", "--dtype=auto", "--compile=auto")
    c = json.loads((folder / "config.json").read_text())["config"]
    assert (c["out_dir"], c["max_iters"], c["dtype"], c["compile"]) == (str(folder), 40, "float32", False)
    assert same(folder, train(tmp_path / "reference", "--max_iters=40"))


def test_resuming_on_another_device_warns(tmp_path, capsys):
    folder = train(tmp_path / "run")
    ckpt = load_checkpoint(folder / "ckpt.pt")[0]
    ckpt["config"]["device"] = "cuda"
    save_checkpoint(folder / "ckpt.pt", ckpt)
    resume(folder, "--device=cpu")
    assert "warning: the run was on cuda" in capsys.readouterr().out


@pytest.mark.parametrize("arg", [
    "eval_interval=5", "num_samples=3", "temperature=0.5", "top_k=3", "learning_rate=0.5", "dtype=bfloat16",
    "block_size=8", "n_layer=2", "n_head=2", "mlp_expansion=2", "dropout=0.5", "weight_decay=0.5"])
def test_resuming_refuses_another_model_schedule_or_protocol(math_run, arg):
    """One log is of one training and of one way to evaluate it."""
    before, name = contents(math_run), arg.split("=")[0]
    with pytest.raises(UserError, match=f"^{name} = .* differs from the run's .*, which resuming cannot"):
        resume(math_run, f"--{arg}")
    assert contents(math_run) == before


def test_resuming_on_another_text_of_the_same_characters_is_refused(math_run, datasets, monkeypatch):
    before, other = contents(math_run), dataclasses.replace(datasets["math"], sha256="0" * 64)
    monkeypatch.setattr(data, "load", lambda name: other)
    with pytest.raises(UserError, match="trained on another text than data/as_math holds now"):
        resume(math_run)
    assert contents(math_run) == before


def test_a_damaged_log_is_refused_before_anything_is_written(tmp_path):
    folder = train(tmp_path / "run")
    path = folder / "results.csv"
    path.write_bytes(path.read_bytes().replace(b"10,1337", b"10,\xff"))
    before = contents(folder)
    with pytest.raises(UserError, match="results.csv, line 3: damaged"):
        resume(folder)
    assert contents(folder) == before
