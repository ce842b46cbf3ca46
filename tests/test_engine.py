"""The engine: its update, the C++ step against PyTorch's, what is chosen where, runs that move, memory."""
import functools
import json
import os
import shlex
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import engine
from config import UserError
from engine import fused, pytorch
from engine.run import check_finite, fresh
from helpers import resume, run_script, same, settings, start, train, weights
from model import GPTConfig, forward, init_weights, unflatten
from reference import flat_of, gpt_of, loss_of
from train_with_eval import learning_rate, rates

SHAPES = {
    "n14": {},
    "wide": dict(run="facts_mini_28", num_seeds=2, weight_decay=0.1, batch_size=300),
    "deep": dict(run="both_mini_14", n_layer=3, n_head=2, n_embd=10, mlp_expansion=3, block_size=7),
    "odd": dict(n_embd=15, n_head=3, block_size=5, num_seeds=3, weight_decay=0.01, batch_size=33),
    "tiny": dict(n_embd=2, block_size=1, batch_size=1, grad_clip=0.0),
}
AUTO = dict(compile="auto", max_iters=30_000)
DEFAULT = ("--device=cuda", "--compile=True", "--dtype=bfloat16", "--n_layer=2", "--dropout=0.1",
           "--num_seeds=2")  # of a GPU: compiled, recorded, bfloat16, with dropout
needs_compiler = pytest.mark.skipif(fused.compiler() is None, reason="no C++ compiler")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
by_both = pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])


@pytest.fixture(scope="module", autouse=True)
def build_once():
    """A shape's C++ step is compiled once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "build", functools.cache(fused.build))
        yield


def test_update_equals_pytorch_s_adamw_and_clipping_per_seed(monkeypatch):
    """Eight updates of two seeds, whose gradients lie on the two sides of the clipping norm; in three slices.

    Each seed must follow torch.optim.AdamW and clip_grad_norm_ on a plain model of its own: clipping over
    both seeds at once, decay of LayerNorm, or a rate off by one iteration would all show.
    """
    monkeypatch.setattr(pytorch, "SLICE", 160)  # of 2 * 5 * 6 * 8 numbers
    cfg = GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8, mlp_expansion=4)
    flat = init_weights(cfg, [0, 1]).double()
    flat[0] += 0.5 * torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0)).double()
    windows = torch.randint(11, (8, 2, 5, cfg.block_size + 1), generator=torch.Generator().manual_seed(1))
    norms = []
    for s in (0, 1):
        gpt = gpt_of(flat, s, cfg)
        loss_of(gpt, windows[0, s], cfg).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in gpt.values()]).item())
    clip = (norms[0] * norms[1]) ** 0.5
    assert norms[0] > 1.3 * clip > 1.3 * 1.3 * norms[1]
    c = settings(warmup_iters=3, lr_decay_iters=7, weight_decay=0.1, grad_clip=clip)
    state = {name: x.double() for name, x in fresh(cfg, [0, 1]).items()} | {"params": flat}
    ours = pytorch.PyTorch(c | {"batch_size": 5}, cfg, state, windows.flatten().int())
    ours.update(torch.arange(80).view(8, 2, 5).int() * (cfg.block_size + 1), rates(0, 8, c))
    for s in (0, 1):
        gpt = gpt_of(flat, s, cfg)
        groups = [{"params": [p for p in gpt.values() if p.dim() == dim], "weight_decay": decay}
                  for dim, decay in ((2, 0.1), (1, 0))]
        adamw = torch.optim.AdamW(groups, betas=(c["beta1"], c["beta2"]), eps=1e-8)
        for it, window in enumerate(windows):
            for group in adamw.param_groups:
                group["lr"] = learning_rate(it, c)
            adamw.zero_grad()
            loss_of(gpt, window[s], cfg).backward()
            torch.nn.utils.clip_grad_norm_(gpt.values(), clip)
            adamw.step()
        for name in ("exp_avg", "exp_avg_sq"):
            expected = flat_of(gpt, cfg, lambda p, name=name, adamw=adamw: adamw.state[p][name])
            torch.testing.assert_close(ours.state[name][s], expected, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(ours.state["params"][s], flat_of(gpt, cfg), rtol=1e-3, atol=2e-5)
        moved = (ours.state["params"][s] - flat[s]).abs().max()
        assert moved > 1e-2, "hardly anything: nothing was tested"


def test_a_batch_in_parts_has_the_same_gradient(monkeypatch):
    """As on a GPU, where a batch of n14 has 21 of them, and the 6-layer model's is whole."""
    whole = start(num_seeds=2, warmup_iters=0).advance(5)
    monkeypatch.setattr(pytorch, "chunks", lambda window, n_embd: 4)
    torch.testing.assert_close(start(num_seeds=2, warmup_iters=0).advance(5), whole, rtol=1e-3, atol=1e-4)
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert [pytorch.chunks(torch.empty(2, 882, 10), n) for n in (14, 384)] == [21, 1]
    assert pytorch.chunks(torch.empty(2, 7, 2), 2) == pytorch.chunks(torch.empty(1, 882, 10), 14) == 1


def test_grad_clip_0_clips_nothing():
    a, b = (start(grad_clip=clip, warmup_iters=0).advance(3) for clip in (0.0, 1e9))
    torch.testing.assert_close(a, b)


@by_both
def test_what_is_not_finite_is_told_apart_by_seed(compiled):
    """It spreads over that seed's weights and not to another's."""
    run = start(compile=compiled, num_seeds=2)
    run.engine.state["params"][1, 5] = torch.nan
    run.advance(3)
    params = run.engine.state["params"]
    assert params[0].isfinite().all() and params[1].isnan().sum() > 100
    with pytest.raises(UserError, match="seed 1338: the loss is not finite at iteration 3"):
        check_finite(params, [1337, 1338], 3)


@needs_compiler
@pytest.mark.parametrize("changed", SHAPES.values(), ids=SHAPES)
def test_the_cpp_step_equals_pytorch_s_to_rounding(changed):
    """50 updates; then the losses of every window, though PyTorch's last pass is not full, and of one in
    seven; and the logits of texts shorter than the block too, at positions which may lie apart in memory."""
    changed = dict(batch_size=128, warmup_iters=500) | changed
    a, b = runs = [start(compile=yes, **changed) for yes in (True, False)]
    assert [run.c["step"] for run in runs] == ["fused", "eager"]
    # away from the start, where attention's gradients are so small that Adam makes steps of their rounding
    noise = 0.2 * torch.randn(a.engine.state["params"].shape, generator=torch.Generator().manual_seed(0))
    for run in runs:
        run.engine.state["params"] += noise
    began = a.engine.state["params"].clone()
    assert (a.advance(50) - began).abs().max() > 5e-3, "hardly anything moved: nothing was tested"
    b.advance(50)
    for name in ("params", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(a.engine.state[name], b.engine.state[name], rtol=1e-3, atol=2e-5)

    params, cfg, S = a.engine.state["params"], a.engine.cfg, a.c["num_seeds"]
    losses, expected = a.engine.losses(a.text), b.engine.losses(b.text)
    assert losses.shape == (S, len(a.text) - cfg.block_size)
    torch.testing.assert_close(losses.mean(1), expected.mean(1), rtol=1e-4, atol=1e-5)
    for run in runs:
        torch.testing.assert_close(run.engine.losses(run.text, 7), losses[:, ::7], rtol=1e-4, atol=1e-5)
    windows = pytorch.take(a.text, torch.arange(40).expand(S, 40), cfg.block_size)
    expected = pytorch.window_losses(params, windows, cfg, torch.float32)
    torch.testing.assert_close(losses[:, :40], expected, rtol=1e-4, atol=1e-5)

    for T in {1, cfg.block_size}:
        tokens, last = torch.randint(cfg.vocab_size, (S, 37, T)), torch.randint(T, (37, S)).mT
        expected = forward(unflatten(params, cfg), tokens, cfg, last=last)[:, :, 0]
        torch.testing.assert_close(a.engine.logits(tokens, last), expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_neither_other_seeds_nor_the_number_of_threads_change_a_bit():
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = start(compile=True, num_seeds=2, batch_size=128)
        torch.set_num_threads(1)
        assert run.engine.threads == threads
        found.append((run.advance(20), run.engine.losses(run.text)))
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other))
    alone = start(compile=True, seed=1338, batch_size=128).advance(20)
    assert torch.equal(found[0][0][1:], alone) and not torch.equal(found[0][0][:1], alone)


def test_a_run_under_torch_compile_is_of_its_own_config_whatever_ran_before_it(monkeypatch):
    """In one process, as bench.py has it, any number of them: an earlier run's constants must not live on.

    PyTorch gives up after some; here after one. Graphs of forward and backward are made, as on a GPU, with
    attention's products as sums, but run by PyTorch itself: to compile them in C++ as well, which no run
    does, takes a minute.
    """
    compiler = torch.compile
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiler(f, backend="aot_eager", **how))
    changed = dict(warmup_iters=0, grad_clip=0.01, dropout=1e-9)
    try:
        for n in (1, 2, 10):
            compiled, eager = (start(step=step, n_embd=n, **changed) for step in ("compiled", "eager"))
            torch.testing.assert_close(compiled.advance(4), eager.advance(4), rtol=1e-3, atol=1e-4)
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("what", ["update", "losses", "logits"])
def test_nothing_is_left_on_the_cpu_and_nobody_waits(monkeypatch, what):
    """A tensor made on the CPU does not go with those of `meta`, and what asks for a number finds none."""
    monkeypatch.setattr(pytorch, "autocast", lambda *_: nullcontext())  # which knows no such device
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: x)  # of losses, when they are done
    c = settings(num_seeds=2, n_layer=2, n_head=2, dropout=0.1) | {"device": "meta"}
    cfg = GPTConfig(n_layer=2, n_head=2, dropout=0.1)
    state, text = fresh(cfg, [1, 2]), torch.zeros(100, dtype=torch.int32)
    run = pytorch.PyTorch(c, cfg, state, text)
    if what == "update":
        run.update(torch.zeros(3, 2, 8, dtype=torch.int32), rates(0, 3, c))
    elif what == "losses":
        assert run.losses(text).shape == (2, 91)
    else:
        tokens, last = torch.zeros(2, 5, 9, device="meta").int(), torch.zeros(2, 5, device="meta").long()
        assert run.logits(tokens, last).shape == (2, 5, 17)
    assert {x.device.type for x in run.state.values()} == {"meta"}


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_recorded_step_equals_the_eager_one(monkeypatch, compiled):
    changed = dict(device="cuda", num_seeds=2, warmup_iters=5, batch_size=128)
    recorded = start(compile=compiled, **changed).advance(20)
    monkeypatch.setattr(pytorch, "record", lambda step, state: step)
    torch.testing.assert_close(recorded, start(**changed).advance(20), rtol=1e-3, atol=1e-4)


@needs_cuda
def test_a_cuda_run_is_the_same_again_stopped_or_not(tmp_path):
    whole, again = (train(tmp_path / name, *DEFAULT) for name in ("whole", "again"))
    stopped = train(tmp_path / "stopped", *DEFAULT, "--max_iters=10")
    resume(stopped, "--max_iters=20")
    assert same(again, whole) and same(stopped, whole)


@needs_compiler
@pytest.mark.parametrize("changed, step", [
    (AUTO, "fused"), (AUTO | {"max_iters": 100}, "eager"),
    ({"compile": True}, "fused"), ({"compile": False, "max_iters": 30_000}, "eager"),
    (AUTO | {"n_embd": 256}, "fused"), (AUTO | {"n_embd": 512}, "eager"),
    (AUTO | {"dropout": 0.1}, "eager"), (AUTO | {"dtype": "bfloat16"}, "eager")], ids=str)
def test_what_computes_a_run_on_a_cpu(changed, step):
    c = settings(**changed)
    assert (c["step"], c["compile"]) == (step, step != "eager")


@pytest.mark.parametrize("run, changed, found", [
    ("math_mini_14", {}, "cpu fused float32"), ("math_mini_28", {}, "cpu fused float32"),
    ("math_mini_14", {"num_seeds": 64}, "cuda compiled float32"),
    ("both_mini_56", {}, "cuda eager float32"), ("both_mini_56", {"num_seeds": 8}, "cuda compiled float32"),
    ("both_mini_56", {"max_iters": 3000}, "cpu fused float32"),
    ("math_mini_14", {"device": "cuda", "max_iters": 3000}, "cuda eager float32"),
    ("math_mini_14", {"num_seeds": 64, "compile": False}, "cuda eager float32"),
    ("math_mini_mlt", {}, "cuda compiled bfloat16"),
    ("math_mini_mlt", {"max_iters": 20_000}, "cuda eager bfloat16"),
    ("math_mini_14", {"dropout": 0.1, "compile": True}, "cuda compiled float32")], ids=str)
def test_what_computes_a_run_where_there_is_a_gpu(monkeypatch, capsys, run, changed, found):
    """Two cores, which train n14 in 9 s and n28 in 25 s, and an H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(engine, "lacks_for_compiling", str)
    monkeypatch.setattr(fused, "compiler", lambda: ["g++"])
    c = settings(run, **{"device": "auto", "compile": "auto", "batch_size": 882} | changed)
    assert f"{c['device']} {c['step']} {c['dtype']}" == found
    said = capsys.readouterr().out
    assert ("--device=cuda chooses the GPU" in said) == (c["device"] == "cpu")
    assert ("--compile=True" in said) == (c["step"] == "eager" and "compile" not in changed)


def test_a_gpu_without_python_s_headers_trains_uncompiled(monkeypatch, tmp_path, capsys):
    """As a fresh Debian is: Triton could not build its launcher."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", "true")
    assert settings(device="cuda", num_seeds=9999, **AUTO)["step"] == "eager"
    assert "install python3-dev" in capsys.readouterr().out
    with pytest.raises(UserError, match="--compile=True lacks Python's headers; install python3-dev"):
        settings(device="cuda", compile=True)
    (tmp_path / "Python.h").touch()
    assert settings(device="cuda", compile=True)["step"] == "compiled"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--compile=True lacks a C compiler"):
        settings(device="cuda", compile=True)


def command(path: Path, line: str) -> Path:
    """A shell script that stands in for a program."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("visible", ["0", "", "-1"])
def test_a_gpu_that_this_pytorch_cannot_use_is_said(monkeypatch, tmp_path, capsys, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command(tmp_path / "nvidia-smi", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settings(device="auto")["device"] == "cpu"
    assert ("warning: a GPU that this PyTorch cannot use" in capsys.readouterr().out) == (visible == "0")


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler(monkeypatch, capsys, compiler):
    """Or with a name for one alone. Asked for, it is refused; else the run is trained without, and says so if
    it is long."""
    with pytest.raises(UserError, match="--compile=True lacks what to compile: on a CPU it is float32"):
        settings(compile=True, dropout=0.1)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UserError, match="--compile=True lacks a C.. compiler; install g.."):
        settings(compile=True)
    assert settings(compile="auto", max_iters=100)["step"] == "eager" and not capsys.readouterr().out
    assert settings(**AUTO)["step"] == "eager"
    assert "it lacks a C++ compiler" in capsys.readouterr().out


@needs_compiler
@pytest.mark.parametrize("wrapped", [False, True], ids=["g++ -O2", "ccache g++"])
def test_a_compiler_may_be_a_command_with_arguments(monkeypatch, tmp_path, wrapped):
    plain = shlex.join(fused.compiler())
    wrapper = command(tmp_path / "ccache", f'echo "$1" > "{tmp_path}/used"; exec "$@"')
    monkeypatch.setenv("CXX", f"{shlex.quote(str(wrapper))} {plain}" if wrapped else f"{plain} -O2")
    assert start(compile=True, n_embd=2, block_size=2 + wrapped).advance(1).isfinite().all()
    assert (tmp_path / "used").exists() == wrapped


@pytest.mark.parametrize("line, message", [
    ("[ $1 = --version ]", "c.. cannot compile step.cpp: exit code 1; .*--compile=False"),
    # one that makes no library stands in for a folder of temporary files mounted noexec
    ("true", "cannot load step.cpp, compiled: .*TMPDIR.*--compile=False")])
def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path, line, message):
    monkeypatch.setenv("CXX", shlex.quote(str(command(tmp_path / "c++", line))))
    with pytest.raises(UserError, match=message):
        start(compile=True, n_embd=3)


@needs_compiler
def test_a_run_moves_to_a_machine_without_a_compiler_and_back(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engine, "seconds", lambda c, device, step: step == "eager")  # C++ pays at once
    folder, stays = (train(tmp_path / name, "--compile=auto", "--max_iters=20") for name in "ab")
    resume(stays, "--max_iters=60")
    assert "equal to rounding" not in capsys.readouterr().out
    for iters, compiler, step in ((40, "no-such-compiler", "eager"), (60, "", "fused")):
        monkeypatch.setenv("CXX", compiler)
        resume(folder, f"--max_iters={iters}")
        assert json.loads((folder / "config.json").read_text())["computed"]["step"] == step
        lines = [line for line in capsys.readouterr().out.splitlines() if "equal to rounding" in line]
        assert len(lines) == 1 and f"up to iteration {iters - 20}" in lines[0]
    torch.testing.assert_close(weights(folder), weights(stays), rtol=1e-2, atol=1e-3)


PEAK = """
import sys, engine
from pathlib import Path
from helpers import start
run = start(**eval(sys.argv[1]))
run.advance(2)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]
print(engine.memory(run.c, run.engine.cfg) / 1024 / int(peak))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("changed", [
    dict(block_size=64, n_embd=128, batch_size=64), dict(num_seeds=64, batch_size=882, compile=True),
    dict(n_layer=6, n_head=6, n_embd=192, mlp_expansion=4, batch_size=64)], ids=["wide", "64 seeds", "deep"])
def test_the_estimate_of_memory_is_within_a_factor_of_two(changed):
    if "compile" in changed and fused.compiler() is None:
        pytest.skip("no C++ compiler")
    done = run_script("-c", PEAK, repr(changed), PYTHONPATH="tests")
    assert 0.5 < float(done.stdout.split()[-1]) < 2, done


def test_a_run_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "memory_of", lambda device: 2**30)
    engine.check_memory(settings(), GPTConfig())
    with pytest.raises(UserError, match="GiB of memory are needed, and cpu has 1; lower num_seeds"):
        engine.check_memory(settings(num_seeds=10_000), GPTConfig())


@pytest.mark.parametrize("error, raised", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), UserError),
    (RuntimeError("CUDA error: out of memory"), UserError), (MemoryError(), UserError),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), UserError),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), UserError),
    (RuntimeError("illegal address"), RuntimeError), (KeyError("out of memory"), KeyError)], ids=str)
def test_a_device_s_out_of_memory_is_said_in_our_words_and_no_other_error(error, raised):
    with pytest.raises(raised, match="cpu is out of memory with num_seeds = 1, batch_size = 8; lower one"
                       if raised is UserError else str(error)), engine.out_of_memory(settings()):
        raise error
