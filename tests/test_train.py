"""The training loop: what it computes, what it leaves, and that nothing but the config decides a result."""
import dataclasses
import json
import shutil
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import engine
import eval_as_math
from config import UserError
from data.batches import BLOCK, Batches, draw_block
from data.log import COLUMNS
from engine import pytorch
from engine import run as runs
from engine.run import keep_best, load_latest
from helpers import contents, log, resume, same, settings, spawn, start, train, weights
from model import init_weights, load_checkpoint
from train_with_eval import evaluate, learning_rate, plain_line, rates

MATH_COLUMNS = {"add_correct", "add_total", "sub_correct", "sub_total", "math_acc", "heldout_correct",
                "heldout_total"}
FACTS_COLUMNS = {"facts_correct", "facts_total", "facts_acc"}
@pytest.mark.parametrize("it, expected", [
    (0, 1e-2 / 2001), (1_999, 1e-2 * 2000 / 2001), (2_000, 1e-2), (13_500, (1e-2 + 1e-4) / 2), (25_000, 1e-4),
    (30_000, 1e-4), (10**8 - 1, 1e-4)])
def test_learning_rate(it, expected):
    """Linear warm-up to iteration 2,000, cosine to 25,000 with its middle at 13,500, then constant."""
    c = settings()
    assert learning_rate(it, c) == pytest.approx(expected, rel=1e-12)
    lr, bias1, bias2 = rates(it, 1, c)[0].tolist()
    assert lr == pytest.approx(expected) and bias1 == pytest.approx(1 - 0.9 ** (it + 1))
    assert bias2 == pytest.approx((1 - 0.99 ** (it + 1)) ** 0.5)


def test_batches_are_uniform_over_offsets():
    """Chi-square of 882,000 draws over as_math's 1,755 offsets; the first and the last occur."""
    offsets = torch.from_numpy(draw_block([1337, 4], 0, 1755, 882))
    assert offsets.shape == (1000, 2, 882) and offsets.dtype == torch.int32
    for s in (0, 1):
        counts = torch.bincount(offsets[:, s].flatten(), minlength=1755)
        assert len(counts) == 1755 and counts.min() > 0
        chi2 = ((counts - 882_000 / 1755) ** 2 / (882_000 / 1755)).sum()
        assert abs(chi2 - 1754) < 5 * (2 * 1754) ** 0.5
    assert not torch.equal(offsets[:, 0], offsets[:, 1])


def test_batches_from_anywhere_are_those_of_the_blocks():
    """Asked for past the end of a block, the rest of the block; started in the middle, as a resumed run."""
    blocks = np.concatenate([draw_block([3, 4], i, 50, 2) for i in range(3)])
    assert not np.array_equal(blocks[:BLOCK], blocks[BLOCK:2 * BLOCK]), "a block of batches came twice"
    batches, it = Batches([3, 4], 50, 2, end=2500), 700
    while it < 2500:
        got = batches.get(it, min(250, 2500 - it))
        assert np.array_equal(got, blocks[it:it + len(got)])
        it += len(got)


@pytest.fixture
def batches_seen(monkeypatch, tmp_path):
    """A function that trains as `args` say, without the arithmetic of it, and returns the batches."""
    seen = []

    class Recorder(pytorch.PyTorch):
        def update(self, batches, rates):
            assert rates.shape == (len(batches), 3)
            seen[-1].append(batches.clone())

    def run(*args: str) -> torch.Tensor:
        seen.append([])
        train(tmp_path / str(len(seen)), "--num_samples=1", *args)
        return torch.cat(seen[-1])  # (iterations, S, B)

    monkeypatch.setattr(engine, "make", Recorder)
    return run


def test_training_sees_every_window_of_the_file_and_nothing_else(batches_seen):
    """Offsets 0 .. len - block_size - 1: the first and the last window too."""
    assert batches_seen("--batch_size=882").unique().tolist() == list(range(1764 - 9))


def test_batches_are_a_function_of_seed_and_iteration(batches_seen):
    """Whatever eval_interval and the number of seeds; also past the first 1,000 iterations."""
    batches = batches_seen("--max_iters=1003", "--num_seeds=2", "--eval_interval=500")
    assert batches.shape == (1003, 2, 128)
    assert torch.equal(batches[:, 1:], batches_seen("--max_iters=1003", "--seed=1338", "--eval_interval=170"))
    assert torch.equal(batches[:1000], torch.from_numpy(draw_block([1337, 1338], 0, 1755, 128)))


def test_a_seed_s_result_does_not_depend_on_how_many_train_beside_it(math_run, tmp_path):
    alone = weights(train(tmp_path / "alone", "--seed=1338"))
    torch.testing.assert_close(weights(math_run)[1:], alone, rtol=1e-4, atol=1e-5)
    assert (weights(math_run)[0] - alone).abs().max() > 1e-2


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    """One seed, 40 iterations, never interrupted."""
    return train(tmp_path_factory.mktemp("plain"), "--max_iters=40")


def test_evaluation_does_not_change_training(tmp_path):
    """With dropout, whose random numbers are the only ones that the whole program shares."""
    args = "--num_seeds=2", "--dropout=0.1", "--max_iters=40"
    other = train(tmp_path / "other", *args, "--eval_interval=7", "--num_samples=3", "--top_k=3")
    assert torch.equal(weights(other), weights(train(tmp_path / "run", *args)))


def test_the_same_config_gives_the_same_run(math_run, tmp_path):
    assert same(train(tmp_path / "run", "--num_seeds=2"), math_run)


def test_where_nobody_watches_a_bar_each_evaluation_is_a_line(tmp_path, capsys):
    train(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0 of 20", "10 of 20", "20 of 20"]
    assert all("loss" in line and "held-out" in line for line in lines) and "min left" in lines[1]
    run = SimpleNamespace(iter_num=100, c={"max_iters": 200}, rows=[
        {"train_loss": 0.5, "math_acc": 0.25, "facts_acc": "", "heldout_total": ""}])
    assert plain_line(run, 20, 60.0) == (
        "100 of 200: loss 0.500, math 25.0%; 0.3 it/s, 5.0 min left")


def test_config_json_says_what_ran(math_run):
    info = json.loads((math_run / "config.json").read_text())
    assert info["parameters"] == 1456 and info["seeds"] == [1337, 1338] and info["held_out"] == [[5, 7]]
    assert (round(info["loss_floor"], 3), round(info["rule_loss"], 3)) == (0.531, 0.767)
    c = info["config"]
    assert (c["device"], c["dtype"], c["compile"], c["max_iters"]) == ("cpu", "auto", False, 20)
    assert info["computed"] == {"device": "cpu", "dtype": "float32", "step": "eager"}
    assert (info["ranks"], info["before"]) == (1, [])
    assert len(info["data_sha256"]) == 64 and info["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("run, best, empty", [
    ("math_run", {"math"}, FACTS_COLUMNS), ("facts_run", {"facts"}, MATH_COLUMNS),
    ("both_run", {"math", "facts", "combined"}, set())])
def test_a_run_leaves_what_its_dataset_has(run, best, empty, request):
    """ckpt_best_combined for both alone; columns of a task that the dataset lacks are empty, no others."""
    folder = request.getfixturevalue(run)
    checkpoints = {f"ckpt_best_{kind}.pt" for kind in best}
    left = {name for name in contents(folder) if not name.startswith("eval_")}  # by other tests
    assert left == checkpoints | {"ckpt.pt", "config.json", "results.csv"}
    for row in log(folder):
        assert [*row] == [k for k in COLUMNS if k != "elapsed_s"]
        assert {k for k, v in row.items() if v == ""} == empty


def test_the_best_checkpoints_are_those_of_the_log(tmp_path):
    """For each seed the first evaluation with its highest score, and the weights that made it."""
    args = "--num_seeds=3", "--learning_rate=0.05", "--max_iters=50"
    rows = log(train(tmp_path / "run", *args))
    best = load_checkpoint(tmp_path / "run" / "ckpt_best_math.pt")[0]
    for i, seed in enumerate(best["seeds"]):
        scores = [float(row["math_acc"]) for row in rows if row["seed"] == str(seed)]
        assert best["metrics"]["math_acc"][i] == max(scores)
        assert best["iter_num"][i] == 10 * scores.index(max(scores))
    it = best["iter_num"][1]
    then = weights(train(tmp_path / "then", *args[:2], f"--max_iters={it}"))
    assert torch.equal(weights(tmp_path / "run", "ckpt_best_math.pt")[1], then[1])


def test_of_equal_evaluations_the_first_is_the_best():
    best = {}
    for it, scores in ((10, (0.5, 0.1)), (20, (0.5, 0.2)), (30, (0.4, 0.2))):
        rows = [{"iter": it, "math_acc": score, "facts_acc": "", "combined_acc": score} for score in scores]
        best = keep_best(best, rows, torch.full((2, 3), float(it)))
    assert [*best] == ["math"] and best["math"]["iter_num"].tolist() == [10, 20]
    assert best["math"]["params"][:, 0].tolist() == [10, 20]


def test_each_loss_is_of_its_own_text(datasets):
    run = start()
    other = dataclasses.replace(datasets["math"], val=datasets["math"].val[:100].clip(max=2))
    row, = evaluate(run.engine, other, [1337], 0, run.c)
    expected = run.engine.losses(torch.from_numpy(other.val.astype(np.int32))).mean().item()
    assert row["val_loss"] == pytest.approx(expected, rel=1e-6) != pytest.approx(row["train_loss"], rel=1e-3)
    assert row["train_loss"] == pytest.approx(run.engine.losses(run.text).mean().item(), rel=1e-6)


def test_max_iters_0_evaluates_once(both_run):
    assert [r["iter"] for r in log(both_run)] == ["0"]
    ckpt, cfg = load_checkpoint(both_run / "ckpt.pt")
    assert ckpt["iter_num"] == 0 and torch.equal(weights(both_run), init_weights(cfg, [1337]))


def test_a_hundred_million_iterations_begin_at_once(tmp_path):
    folder = tmp_path / "run"
    child = spawn(folder, ["--max_iters=100000000", "--lr_decay_iters=100000000"])
    while not (folder / "results.csv").exists() or len(log(folder)) < 2:
        assert child.is_alive()
        time.sleep(0.05)
    child.kill()
    child.join()


@pytest.mark.parametrize("half", ["", "4", "40,1337,2.7"])
def test_resuming_a_run_that_was_shorter_equals_one_never_interrupted(plain_run, tmp_path, half):
    """Also where a killed run left half a line in the log."""
    folder = train(tmp_path / "run", "--max_iters=20")
    with open(folder / "results.csv", "a") as f:
        f.write(half)
    resume(folder, "--max_iters=40")
    assert same(folder, plain_run)
    best = "ckpt_best_math.pt"
    assert torch.equal(weights(folder, best), weights(plain_run, best))


def test_kept_checkpoints_are_the_weights_at_their_iterations(plain_run, tmp_path, capsys):
    """Whatever eval_interval; resumed too. They hold no optimizer, readers take them."""
    folder = train(tmp_path / "run", "--max_iters=15", "--keep_every=5")
    resume(folder, "--max_iters=40")
    kept = [f"ckpt_{it:06}.pt" for it in range(0, 41, 5)]
    assert sorted(path.name for path in folder.glob("ckpt_0*.pt")) == kept and same(folder, plain_run)
    assert torch.equal(weights(folder, kept[8]), weights(folder))
    assert torch.equal(weights(folder, kept[5]), weights(train(tmp_path / "then", "--max_iters=25")))
    assert load_checkpoint(folder / kept[5])[0].keys() == load_checkpoint(folder / "ckpt.pt")[0].keys() - {
        "optimizer", "random", "best", "metrics", "elapsed_s"}
    eval_as_math.main([f"--out_dir={folder}", f"--ckpt={kept[5]}", "--num_samples=1"])
    assert "iteration 25;" in capsys.readouterr().out
    with pytest.raises(UserError, match="ckpt_000025.pt cannot be resumed"):
        load_latest(folder / kept[5])


@pytest.mark.parametrize("arg", [
    "n_embd=28", "seed=1", "num_seeds=3", "batch_size=9", "dataset=facts_char", "eval_interval=5",
    "num_samples=3", "temperature=0.5", "top_k=3", "learning_rate=0.5", "dtype=bfloat16", "block_size=8",
    "n_layer=2", "n_head=2", "mlp_expansion=2", "dropout=0.5", "weight_decay=0.5"])
def test_resuming_refuses_another_model_schedule_or_protocol(math_run, arg):
    """One log is of one training and of one way to evaluate it."""
    before = contents(math_run)
    with pytest.raises(UserError, match=f"^{arg.split('=')[0]} = .* differs from the run's .*, which "):
        resume(math_run, f"--{arg}")
    assert contents(math_run) == before


def test_an_existing_run_is_refused_and_left_alone(math_run):
    before = contents(math_run)
    with pytest.raises(UserError, match="already holds a run.*--init_from=resume.*--overwrite=True"):
        train(math_run)
    with pytest.raises(UserError, match="max_iters = 5"):
        resume(math_run, "--max_iters=5")
    assert contents(math_run) == before


def test_overwrite_replaces_a_run(tmp_path):
    """Nothing of the old run stays: no row of it, none of its best checkpoints, no picture."""
    folder = train(tmp_path / "run", "--max_iters=0", "--keep_every=1", run="both_mini_14")
    (folder / "plot.png").touch()
    train(folder, "--overwrite=True", "--max_iters=0")
    assert [row["facts_acc"] for row in log(folder)] == [""]
    assert {*contents(folder)} == {"ckpt.pt", "ckpt_best_math.pt", "config.json", "results.csv"}


def test_config_json_keeps_what_computed_a_run_before(tmp_path, monkeypatch):
    """Of each stretch on another machine or commit; and the time goes on, from where the checkpoint was."""
    folder = tmp_path / "run"
    for commit, end in (("a", 0), ("b", 20), ("b", 30), ("c", 40)):
        monkeypatch.setattr(runs, "git_commit", lambda commit=commit: commit)
        train(folder, f"--max_iters={end}", "--init_from=auto")
    info = json.loads((folder / "config.json").read_text())
    assert [(one["until"], one["git_commit"]) for one in info["before"]] == [(0, "a"), (30, "b")]
    assert info["git_commit"] == "c" and info["before"][0]["computed"] == info["computed"]


def test_the_time_of_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """From what was spent until its checkpoint, not until the evaluation before."""
    slow = pytorch.PyTorch.update
    monkeypatch.setattr(pytorch.PyTorch, "update", lambda *how: (slow(*how), time.sleep(0.02 * len(how[1]))))
    folder = train(tmp_path / "run", "--max_iters=20", "--batch_size=8")
    spent = load_checkpoint(folder / "ckpt.pt")[0]["elapsed_s"]
    times = [float(line.split(",")[-1]) for line in (folder / "results.csv").read_text().splitlines()[1:]]
    assert times[1] + 0.1 < spent <= times[2] + 0.005
    resume(folder)
    assert float((folder / "results.csv").read_text().splitlines()[-1].split(",")[-1]) >= round(spent, 2)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_our_own_repository(tmp_path, monkeypatch):
    """None in a folder of another one, and outside any."""
    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *args], cwd=tmp_path, check=True,
                       capture_output=True)

    (tmp_path / "ours").mkdir()
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.git_commit() is None
    git("init")
    git("commit", "--allow-empty", "--message=x")
    assert len(runs.git_commit()) == 40
    monkeypatch.setattr(runs, "ROOT", tmp_path / "ours")
    assert runs.git_commit() is None
