"""The training loop: its update, its batches, and that nothing but the config decides a result."""
import gc
import json
import os
import signal
import weakref
from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import data
import train_with_eval
from config import UserError
from helpers import contents, log, resume, same, settings, start, train, weights
from model import GPTConfig, flatten, init_weights, load_checkpoint
from reference import flat_of, gpt_of, loss
from train_with_eval import COLUMNS, draw_offsets, learning_rate, schedule, update

MATH_COLUMNS = {"add_correct", "add_total", "sub_correct", "sub_total", "math_acc", "heldout_correct",
                "heldout_total"}
FACTS_COLUMNS = {"facts_correct", "facts_total", "facts_acc"}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def advance(run: train_with_eval.Run, iterations: int) -> torch.Tensor:
    """The weights (S, P) of a run after some updates, on the CPU."""
    run.advance(iterations)
    return run.state["params"].cpu()


@pytest.mark.parametrize("it, expected", [
    (0, 1e-2 / 2001), (1_999, 1e-2 * 2000 / 2001), (2_000, 1e-2), (13_500, (1e-2 + 1e-4) / 2), (25_000, 1e-4),
    (30_000, 1e-4)])
def test_learning_rate(it, expected):
    """Linear warm-up to iteration 2,000, cosine to 25,000 with its middle at 13,500, then constant."""
    assert learning_rate(it, settings()) == pytest.approx(expected, rel=1e-12)


def test_update_equals_pytorch_s_adamw_and_clipping_per_seed():
    """Eight updates of two seeds, whose gradients lie on the two sides of the clipping norm.

    Each seed must follow torch.optim.AdamW and clip_grad_norm_ on a plain model of its own: clipping over
    both seeds at once, decay of LayerNorm, or a rate off by one iteration would all show.
    """
    cfg = GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8, mlp_expansion=4)
    seeds = [0, 1]
    flat = init_weights(cfg, seeds).double()
    flat[0] += 0.5 * torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0)).double()
    windows = torch.randint(11, (8, 2, cfg.block_size + 1, 5), generator=torch.Generator().manual_seed(1))
    norms = []
    for s in seeds:
        gpt = gpt_of(flat, s, cfg)
        loss(gpt, windows[0, s].T).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in gpt.parameters()]).item())
    clip = (norms[0] * norms[1]) ** 0.5
    assert norms[0] > 1.3 * clip > 1.3 * 1.3 * norms[1]
    c = settings(warmup_iters=3, lr_decay_iters=7, weight_decay=0.1, grad_clip=clip, max_iters=8)
    zeros = torch.zeros_like(flat)
    state = {"params": flat.clone(), "exp_avg": zeros.clone(), "exp_avg_sq": zeros.clone(),
             "it": torch.tensor([0]), "first_bad": torch.full((2,), -1)}
    decay = train_with_eval.decayed(cfg) * c["weight_decay"]
    with torch.no_grad():
        for window in windows:
            update(state, window, schedule(c), decay, cfg, c, torch.float32)
    for s in seeds:
        gpt = gpt_of(flat, s, cfg)
        groups = [{"params": [p for p in gpt.parameters() if p.dim() == dim], "weight_decay": decay}
                  for dim, decay in ((2, 0.1), (1, 0))]
        adamw = torch.optim.AdamW(groups, betas=(c["beta1"], c["beta2"]), eps=1e-8)
        for it, window in enumerate(windows):
            for group in adamw.param_groups:
                group["lr"] = learning_rate(it, c)
            adamw.zero_grad()
            loss(gpt, window[s].T).backward()
            torch.nn.utils.clip_grad_norm_(gpt.parameters(), clip)
            adamw.step()
        for name in ("exp_avg", "exp_avg_sq"):
            expected = flat_of(gpt, cfg, lambda p, name=name, adamw=adamw: adamw.state[p][name])
            torch.testing.assert_close(state[name][s], expected, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(state["params"][s], flat_of(gpt, cfg), rtol=1e-3, atol=2e-5)
        assert (state["params"][s] - flat[s]).abs().max() > 1e-2, "hardly anything moved: nothing was tested"


def test_grad_clip_0_clips_nothing():
    a, b = (advance(start(grad_clip=clip, warmup_iters=0), 3) for clip in (0.0, 1e9))
    torch.testing.assert_close(a, b)


def test_a_seed_s_result_does_not_depend_on_how_many_train_beside_it():
    together = advance(start(num_seeds=3, warmup_iters=5), 12)
    alone = advance(start(seed=1338, warmup_iters=5), 12)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_batches_are_uniform_over_offsets():
    """Chi-square of 882,000 draws over as_math's 1,755 offsets; the first and the last occur."""
    offsets = draw_offsets([1337, 4], 0, 1755, 882)
    assert offsets.shape == (1000, 2, 882)
    for s in (0, 1):
        counts = torch.bincount(offsets[:, s].flatten(), minlength=1755)
        assert len(counts) == 1755 and counts.min() > 0
        chi2 = ((counts - 882_000 / 1755) ** 2 / (882_000 / 1755)).sum()
        assert abs(chi2 - 1754) < 5 * (2 * 1754) ** 0.5
    assert not torch.equal(offsets[:, 0], offsets[:, 1])
    assert not torch.equal(offsets, draw_offsets([1337, 4], 1, 1755, 882)), "every block has the same batches"


@pytest.fixture
def windows_seen(monkeypatch):
    """A function that runs a config for some iterations, without its arithmetic, and returns its batches."""

    def seen(iterations: int, **changed) -> torch.Tensor:
        windows = []

        def spy(state, window, *_):
            windows.append(window.clone())
            state["it"] += 1

        monkeypatch.setattr(train_with_eval, "update", spy)
        advance(start(**changed), iterations)
        return torch.stack(windows)  # (iterations, S, T + 1, B)

    return seen


def test_training_sees_every_window_of_the_file_and_nothing_else(windows_seen, datasets):
    """Offsets 0 .. len - block_size - 1: the first and the last window too."""
    batches = windows_seen(20, batch_size=882)[:, 0].permute(0, 2, 1).reshape(-1, 10).numpy()
    every = data.windows(datasets["math"].train, 9)
    assert {w.tobytes() for w in batches.astype(np.uint8)} == {w.tobytes() for w in every}


def test_batches_are_a_function_of_seed_and_iteration(windows_seen):
    """Whatever eval_interval, num_samples and the number of seeds; also past the first 1,000 iterations."""
    batches = windows_seen(1003, num_seeds=2)
    other = windows_seen(1003, num_seeds=2, eval_interval=7, num_samples=1, max_iters=1003)
    assert torch.equal(batches, other)
    assert torch.equal(batches[:, 1:], windows_seen(1003, seed=1338))
    assert not torch.equal(batches[:3], batches[1000:]), "a block of batches came twice"


@pytest.fixture(scope="session")
def dropout_run(tmp_path_factory):
    """Two seeds with dropout, 40 iterations, never interrupted."""
    return train(tmp_path_factory.mktemp("dropout"), "--num_seeds=2", "--dropout=0.1", "--max_iters=40")


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    """One seed, 40 iterations, never interrupted."""
    return train(tmp_path_factory.mktemp("plain"), "--max_iters=40")


def test_evaluation_does_not_change_training(dropout_run, tmp_path):
    other = train(tmp_path / "run", "--num_seeds=2", "--dropout=0.1", "--max_iters=40", "--eval_interval=7",
                  "--num_samples=3", "--top_k=3")
    assert torch.equal(weights(other), weights(dropout_run))


def test_the_same_config_gives_the_same_run(math_run, tmp_path):
    assert same(train(tmp_path / "run", "--num_seeds=2"), math_run)


def test_two_compiled_runs_are_equal_to_the_bit_and_to_rounding_to_the_eager_one(compiled_runs, math_run):
    """Compiled by C++, as every run without dropout is on a CPU."""
    assert json.loads((compiled_runs[0] / "config.json").read_text())["step"] == "fused"
    assert same(*compiled_runs)
    torch.testing.assert_close(weights(compiled_runs[0]), weights(math_run)[:1], rtol=1e-3, atol=1e-4)


def test_a_run_under_torch_compile_is_of_its_own_config_whatever_ran_before_it():
    """In one process, as bench.py has it: an earlier run's constants must not live on."""
    start(compile=True, dropout=0.5, batch_size=128)
    changed = dict(batch_size=128, warmup_iters=0, grad_clip=0.01, dropout=1e-9)
    compiled, eager = (advance(start(compile=yes, **changed), 4) for yes in (True, False))
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


def test_any_number_of_configs_compile_in_one_process(monkeypatch):
    """As bench.py has it. The limit is the same whatever compiles, so the quickest backend stands in here."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiler(f, backend="eager", **how))
    try:
        for n in range(1, 11):
            assert advance(start(n_embd=n, compile=True, dropout=0.1), 1).isfinite().all()
    finally:
        torch.compiler.reset()


def test_evaluates_at_every_interval_and_at_the_end(tmp_path, math_run):
    assert [(r["iter"], r["seed"]) for r in log(math_run)] == [
        (str(it), str(seed)) for it in (0, 10, 20) for seed in (1337, 1338)]
    odd = train(tmp_path / "run", "--eval_interval=4", "--max_iters=10", "--num_samples=1")
    assert [r["iter"] for r in log(odd)] == ["0", "4", "8", "10"]


def test_the_log_holds_the_exact_losses(math_run, datasets):
    """The mean cross-entropy over every window, by a plain model; val is train, the same bytes."""
    windows = torch.from_numpy(data.windows(datasets["math"].train, 9).astype(np.int64))
    ckpt, cfg = load_checkpoint(math_run / "ckpt.pt")
    for s, row in enumerate(log(math_run)[-2:]):
        with torch.no_grad():
            exact = loss(gpt_of(flatten(ckpt["model"], cfg), s, cfg), windows).item()
        assert float(row["train_loss"]) == pytest.approx(exact, rel=1e-5)
        assert row["val_loss"] == row["train_loss"]


def test_config_json_says_what_ran(math_run):
    notes = json.loads((math_run / "config.json").read_text())
    assert notes["parameters"] == 1456 and notes["seeds"] == [1337, 1338]
    assert (round(notes["loss_floor"], 3), round(notes["rule_loss"], 3)) == (0.531, 0.767)
    c = notes["config"]
    assert (c["device"], c["dtype"], c["compile"], c["max_iters"]) == ("cpu", "float32", False, 20)
    assert len(notes["data_sha256"]) == 64 and notes["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("run, best, empty", [
    ("math_run", {"math"}, FACTS_COLUMNS), ("facts_run", {"facts"}, MATH_COLUMNS),
    ("both_run", {"math", "facts", "combined"}, set())])
def test_a_run_leaves_what_its_dataset_has(run, best, empty, request):
    """ckpt_best_combined for both alone; columns of a task that the dataset lacks are empty, no others."""
    folder = request.getfixturevalue(run)
    checkpoints = {p.name for p in folder.glob("*.pt")}
    assert checkpoints == {"ckpt.pt"} | {f"ckpt_best_{kind}.pt" for kind in best}
    for row in log(folder):
        assert [*row] == [k for k in COLUMNS if k != "elapsed_s"]
        assert {k for k, v in row.items() if v == ""} == empty


def test_max_iters_0_evaluates_once(both_run):
    assert [r["iter"] for r in log(both_run)] == ["0"]
    ckpt, cfg = load_checkpoint(both_run / "ckpt.pt")
    assert ckpt["iter_num"] == 0 and torch.equal(flatten(ckpt["model"], cfg), init_weights(cfg, [1337]))


def test_resuming_a_run_that_was_shorter_equals_one_never_interrupted(plain_run, tmp_path):
    folder = train(tmp_path / "run", "--max_iters=20")
    resume(folder, "--max_iters=40")
    assert same(folder, plain_run)


@pytest.mark.parametrize("at, number", [(13, signal.SIGINT), (20, signal.SIGTERM), (40, signal.SIGINT)])
def test_an_interrupted_run_goes_on_unharmed(dropout_run, tmp_path, monkeypatch, capsys, at, number):
    """Between two evaluations, where one is due, and after the last update; with dropout, two seeds."""
    step = train_with_eval.Run.advance

    def advance_and_signal(run, iterations):
        n = min(iterations, at - run.iter_num) if run.iter_num < at else iterations
        step(run, n)
        if run.iter_num == at:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as m:
        m.setattr(train_with_eval.Run, "advance", advance_and_signal)
        args = "--num_seeds=2", "--dropout=0.1", "--max_iters=40"
        folder = train(tmp_path / "run", *args, code=128 + number)
    assert f"--init_from=resume --out_dir={folder}" in capsys.readouterr().err
    assert load_checkpoint(folder / "ckpt.pt")[0]["iter_num"] == at
    resume(folder)
    assert same(folder, dropout_run)
    assert torch.equal(weights(folder, "ckpt_best_math.pt"), weights(dropout_run, "ckpt_best_math.pt"))


@pytest.mark.parametrize("half", ["4", "40,1337,2.7"])
def test_resuming_drops_half_a_line_that_a_killed_run_left(plain_run, tmp_path, half):
    folder = train(tmp_path / "run", "--max_iters=20")
    with open(folder / "results.csv", "a") as f:
        f.write(half)
    resume(folder, "--max_iters=40")
    assert same(folder, plain_run)


def test_a_finished_run_resumed_stays_as_it_is(math_run, tmp_path):
    folder = train(tmp_path / "run", "--num_seeds=2")
    resume(folder)
    assert same(folder, math_run)


@pytest.mark.parametrize("args, message", [
    (["--n_embd=28"], "n_embd = 28 differs from the run's 14"), (["--seed=1"], "seed = 1"),
    (["--num_seeds=3"], "num_seeds = 3"), (["--batch_size=9"], "batch_size = 9"),
    (["--max_iters=5"], "max_iters = 5"),
    (["--compile=True"], "compile = True"), (["--dataset=facts_char"], "dataset = facts_char")], ids=str)
def test_resuming_refuses_what_cannot_change(math_run, args, message):
    before = contents(math_run)
    with pytest.raises(UserError, match=message):
        resume(math_run, *args)
    assert contents(math_run) == before


def test_an_existing_run_is_refused_and_left_alone(math_run):
    before = contents(math_run)
    with pytest.raises(UserError, match="already holds a run.*--init_from=resume.*--overwrite=True"):
        train(math_run)
    assert contents(math_run) == before


def test_overwrite_replaces_a_run(tmp_path):
    """Nothing of the old run stays, its rows and its best checkpoints neither."""
    folder = train(tmp_path / "run", "--max_iters=0", run="both_mini_14")
    train(folder, "--overwrite=True", "--max_iters=0")
    assert [row["facts_acc"] for row in log(folder)] == [""]
    assert {p.name for p in folder.glob("*.pt")} == {"ckpt.pt", "ckpt_best_math.pt"}


@pytest.mark.parametrize("args, message", [
    (["--n_head=3"], "n_embd = 14 is not divisible by n_head = 3"),
    (["--block_size=1764"], "block_size = 1764"),
    (["--lr_decay_iters=4"], "lr_decay_iters = 4"), (["--min_lr=0.1"], "min_lr = 0.1"),
    (["--dataset=as_mth"], "did you mean as_math"), (["--init_from=resume"], "to resume")], ids=str)
def test_what_does_not_fit_together_is_refused_before_anything_is_made(tmp_path, args, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", *args)
    assert not (tmp_path / "run").exists()


def test_an_absurd_schedule_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="warmup_iters"):
        train(tmp_path / "run", f"--warmup_iters={10**400}", f"--lr_decay_iters={10**400}")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(tmp_path):
    with pytest.raises(UserError, match="--device=cuda: there is none here"):
        train(tmp_path / "run", "--device=cuda")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_seed(tmp_path):
    """At the next evaluation; what was logged before stays."""
    with pytest.raises(UserError, match="seed 1337: the loss is not finite at iteration [0-9]"):
        train(tmp_path / "run", "--learning_rate=1000", "--warmup_iters=0", "--weight_decay=1000")
    assert [r["iter"] for r in log(tmp_path / "run")] == ["0"]


class Graph:
    """Of torch.cuda what `record` uses, without a GPU: a graph that replays nothing."""

    def replay(self):
        pass


def test_what_a_recorded_step_reads_lives_as_long_as_it(monkeypatch):
    """A graph reads the table of learning rates at its address, whoever may have got that memory since.

    The state and dropout's are left as they were.
    """
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: "dropout's")
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    state, table = {"it": torch.tensor([3])}, torch.ones(5)
    read = weakref.ref(table)

    def step(table=table):
        state["it"] += table.long()[:1]

    replay = train_with_eval.record(step, state)
    del step, table
    gc.collect()
    replay()
    assert read() is not None, "the table was freed"
    assert restored == ["dropout's"]
    assert state["it"] == 4, "the recording itself, which on a GPU runs nothing"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 1,000 bytes where n seeds take 101 + 10 n; the numbers of seeds that were tried."""
    tried, peak = [], [0]

    class FakeRun:
        def __init__(self, c, dataset, ckpt=None, share=slice(None), rank=0):
            self.seeds = train_with_eval.seeds_of(c)[share]

        def evaluate(self):
            tried.append(len(self.seeds))
            peak[0] = 101 + 10 * len(self.seeds)
            if peak[0] > 1000:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(train_with_eval, "Run", FakeRun)
    monkeypatch.setattr(train_with_eval, "memory_of", lambda device: 1000)
    monkeypatch.setattr(train_with_eval, "memory", lambda c, dataset: {"": 11 * c["num_seeds"]})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peak[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 300)
    return tried


def fit(seeds: int, share: slice = slice(None)) -> train_with_eval.Run:
    return train_with_eval.fit(settings(num_seeds=seeds) | {"device": "cuda"}, None, None, share, 0)


@pytest.mark.parametrize("seeds", [90, 99, 180, 5000, 100_000])
def test_too_many_seeds_for_a_gpu_are_refused_with_the_largest_number_that_fits(gpu, seeds):
    with pytest.raises(UserError, match=f"num_seeds = {seeds} .* the largest that does is 89; lower it"):
        fit(seeds)
    assert max(gpu) < 200, "a number was tried of which it was plain that it does not fit"


def test_seeds_that_fit_a_gpu_train(gpu):
    assert len(fit(89).seeds) == 89 and gpu == [89]


def test_too_many_seeds_of_a_process_are_refused(gpu):
    with pytest.raises(UserError, match="num_seeds = 300 .* the largest that does is 89 a process; lower it"):
        fit(300, slice(100, 200))


@pytest.mark.parametrize("fits, answer", [(1, "is 1; lower it"), (0, "is 0; lower batch_size")])
def test_a_model_of_which_hardly_a_seed_fits_a_gpu(gpu, monkeypatch, fits, answer):
    def evaluate(run):
        if len(run.seeds) > fits:
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(train_with_eval.Run, "evaluate", evaluate)
    for seeds in (2, 3, 50):
        with pytest.raises(UserError, match=answer):
            fit(seeds)


def test_other_errors_of_a_gpu_are_not_taken_for_too_little_memory(gpu, monkeypatch):
    monkeypatch.setattr(train_with_eval.Run, "evaluate", Mock(side_effect=RuntimeError("illegal address")))
    with pytest.raises(RuntimeError, match="illegal"):
        fit(2)


@needs_cuda
def test_cuda_recorded_step_equals_the_eager_one():
    run = start(device="cuda", num_seeds=2, warmup_iters=5, batch_size=128)
    eager = start(device="cuda", num_seeds=2, warmup_iters=5, batch_size=128)
    table = schedule(eager.c).cuda()
    decay = train_with_eval.decayed(eager.cfg).cuda() * eager.c["weight_decay"]
    offsets = draw_offsets(eager.seeds, 0, len(eager.dataset.train) - 9, 128).cuda()
    with torch.no_grad():
        for it in range(20):
            window = train_with_eval.take(eager.text["train"], offsets[it], 9)
            update(eager.state, window, table, decay, eager.cfg, eager.c, eager.dtype)
    torch.testing.assert_close(advance(run, 20), eager.state["params"].cpu(), rtol=1e-3, atol=1e-4)


@needs_cuda
def test_two_cuda_runs_are_equal(tmp_path):
    a, b = (train(tmp_path / name, "--device=cuda", "--dropout=0.1", "--num_seeds=2") for name in "ab")
    assert same(a, b)


@needs_cuda
def test_a_cuda_run_equals_the_cpu_s_to_rounding(tmp_path, math_run):
    other = train(tmp_path / "run", "--device=cuda", "--num_seeds=2")
    torch.testing.assert_close(weights(other), weights(math_run), rtol=1e-2, atol=1e-3)
