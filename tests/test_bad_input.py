"""Whatever a user gets wrong ends with exit code 2 and one line on stderr, and leaves every file as it was.

Each test draws inputs that are bad by construction and hands them to a script's `main`, in this process, the
way `config.run` does; about a dozen go to real processes.
"""
import contextlib
import io
import math
import os
import pickle
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import bench
import config
import data
import eval_as_math
import eval_capitals
import plot_all_models
import plot_results
import sample
import train_with_eval
from config import KEYS, Key
from helpers import ROOT, TASKS, run_script
from model import load_checkpoint
from sample import RUN_KEYS

EVALUATION = RUN_KEYS | sample.ASK_KEYS | {k: KEYS[k] for k in ("num_samples", "temperature", "top_k")}
MATH = ["--out_dir=math"]
SCRIPTS = {  # what is run, its keys, and a command line that is good in the sandbox
    "train_with_eval": (train_with_eval.main, KEYS, ["--out_dir=new", "--max_iters=0", "--device=cpu"]),
    "sample": (sample.main, RUN_KEYS | sample.SAMPLE_KEYS, [*MATH, "--start=<", "--num_samples=1"]),
    "eval_as_math": (eval_as_math.main, EVALUATION, [*MATH, "--num_samples=1"]),
    "eval_capitals": (eval_capitals.main, EVALUATION, ["--out_dir=facts", "--num_samples=1"]),
    "plot_results": (plot_results.main, plot_results.KEYS, ["--model_folder=math"]),
    "plot_all_models": (plot_all_models.main, plot_all_models.KEYS, ["--root_dir=root"]),
    "bench": (bench.main, bench.KEYS, ["--seconds=0.01", "--compile=False"]),
    "prepare": (partial(data.prepare, "as_math"), data.read("as_math")[1] | {"name": data.NAME}, []),
}
RESUME = [*MATH, "--init_from=resume"]


@pytest.fixture(scope="module")
def box(tmp_path_factory, datasets, math_run, facts_run):
    """The working directory, with runs, configs, and data that is read in place of the real one."""
    folder = tmp_path_factory.mktemp("box")
    for name, run in (("math", math_run), ("facts", facts_run), ("root/math_mini_14", math_run)):
        shutil.copytree(run, folder / name)
    for name in TASKS.values():
        shutil.copytree(ROOT / "data" / name, folder / "data" / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "config", folder / "config", ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        m.setattr(data, "ROOT", folder / "data")
        torch.set_flush_denormal(False)  # as below
        yield folder


def state(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def outcome(main, argv: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a script; what would be a traceback, or a warning's line, is raised."""
    err = io.StringIO()
    with (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err),
          mock.patch.object(sys, "argv", ["script", *argv]), warnings.catch_warnings(action="error"),
          pytest.raises(SystemExit) as e):
        config.run(main)
    torch.set_flush_denormal(False)  # a training sets it; hypothesis draws subnormal numbers
    return e.value.code or 0, err.getvalue()


def refused(name: str, argv: list[str]) -> str:
    """Assert that script `name` refuses `argv`, in one line, and changes nothing; that line."""
    before = state(Path())
    code, err = outcome(SCRIPTS[name][0], argv)
    assert (code, err.count("\n")) == (2, 1) and err.endswith("\n"), (argv, err)
    assert err.startswith("error: ") and len(err) > 20, err
    assert state(Path()) == before
    return err


@contextlib.contextmanager
def holding(path: str, content: bytes):
    """`path` holds `content`, for a while."""
    old = Path(path).read_bytes() if Path(path).exists() else None
    Path(path).write_bytes(content)
    try:
        yield
    finally:
        Path(path).unlink() if old is None else Path(path).write_bytes(old)


def many(n: int):
    """Settings of a test of n inputs."""
    return settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))


# --- configs

no_text = st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=2), st.binary(max_size=3), st.just({}))
unprintable = st.builds("a{}b".format, st.sampled_from(["\0", "\ud800", "\udcff"])) | st.just("")


def outside(key: Key) -> st.SearchStrategy:
    """Numbers of the key's type outside its range."""
    if isinstance(key.default, int):
        below = [st.integers(max_value=int(key.lo) - 1)] if math.isfinite(key.lo) else []
        return st.one_of(*below, *([st.integers(min_value=int(key.hi) + 1)] if math.isfinite(key.hi) else []))
    reals = partial(st.floats, allow_subnormal=False)
    below = [reals(max_value=key.lo, exclude_max=True)] if math.isfinite(key.lo) else []
    above = [reals(min_value=key.hi, exclude_min=True)] if math.isfinite(key.hi) else []
    return st.one_of(*below, *above, st.just(math.nan))


def bad_values(key: Key) -> st.SearchStrategy:
    """Values that a config file must not give to a key."""
    if key.choices:
        return st.one_of(no_text, st.text(max_size=8).filter(lambda t: t not in key.choices), st.integers())
    if isinstance(key.default, bool):
        return st.one_of(no_text, st.text(max_size=8), st.integers(), st.floats())
    if isinstance(key.default, str):
        return st.one_of(no_text, st.booleans(), st.integers(), unprintable)
    fraction = [st.floats()] if isinstance(key.default, int) else []
    return st.one_of(no_text, st.text(max_size=8), st.booleans(), *fraction, outside(key))


def literal(value: object) -> str:
    """Python source of a value."""
    plain = not isinstance(value, float) or math.isfinite(value)
    return repr(value) if plain else f"float('{value}')"


@many(400)
@given(st.sampled_from([*KEYS]).flatmap(lambda k: st.tuples(st.just(k), bad_values(KEYS[k]))))
def test_a_config_s_bad_value(box, setting):
    name, value = setting
    text = f"{name} = {literal(value)}"
    with holding("c.py", text.encode()):
        err = refused("train_with_eval", ["c.py", "--out_dir=new"])
    if name != "out_dir":
        assert f"c.py: {name} = " in err and "expected" in err


names = st.from_regex("[a-z][a-z_0-9]{0,9}", fullmatch=True)
# --- command lines

def bad_texts(key: Key) -> st.SearchStrategy:
    """Texts that a command line must not give to a key."""
    if key.choices or isinstance(key.default, bool):
        good = [str(c) for c in key.choices or (True, False)]
        return st.text(max_size=8).filter(lambda t: t not in good)
    if isinstance(key.default, str):
        return unprintable
    words = st.text(max_size=8).filter(lambda t: not any(map(str.isnumeric, t)) and "inf" not in t.lower())
    fractions = st.floats(allow_infinity=False).map(str) if isinstance(key.default, int) else st.nothing()
    return words | fractions | outside(key).map(str)


@st.composite
def bad_lines(draw) -> tuple[str, list[str]]:
    """A script, and its good command line with something bad in it."""
    name = draw(st.sampled_from([*SCRIPTS]))
    keys, line = SCRIPTS[name][1:]
    kinds = [names.filter(lambda n: n not in keys and not n.startswith("h")).map("--{}=1".format),
             st.text("xyz./", min_size=1, max_size=9)]
    if keys:
        key = draw(st.sampled_from([*keys]))
        kinds += [bad_texts(keys[key]).map(lambda t: f"--{key}={t}")] * 4
    at = draw(st.integers(0, len(line)))
    return name, [*line[:at], draw(st.one_of(kinds)), *line[at:]]


@many(700)
@given(bad_lines())
def test_a_bad_command_line(box, script):
    name, argv = script
    # the last of two values counts: the good one must not come after the bad one
    given_keys = [arg.split("=")[0] for arg in argv]
    assume(len(set(given_keys)) == len(given_keys))
    refused(*script)


together = st.one_of(
    st.tuples(st.integers(2, 30), st.integers(1, 60)).filter(lambda t: t[1] % t[0]).map(
        lambda t: [f"--n_head={t[0]}", f"--n_embd={t[1]}"]),
    st.tuples(st.integers(1, 9999), st.integers(1, 9999)).map(
        lambda t: [f"--lr_decay_iters={t[0]}", f"--warmup_iters={t[0] + t[1]}"]),
    st.tuples(st.floats(0.001, 1), st.floats(1.01, 9)).map(
        lambda t: [f"--learning_rate={t[0]}", f"--min_lr={t[0] * t[1]}"]),
    st.sampled_from([("as_math", 1764), ("facts_char", 1547), ("both_math_and_facts", 3311)]).flatmap(
        lambda t: st.integers(t[1], 4096).map(lambda n: [f"--dataset={t[0]}", f"--block_size={n}"])),
    st.integers(4000, 65536).map(lambda n: ["--n_layer=1000", f"--n_embd={n}"]),
    st.integers(5000, 100_000).map(lambda n: ["--batch_size=1000000", f"--num_seeds={n}"]),
    names.filter(lambda n: n not in TASKS.values()).map(lambda n: [f"--dataset={n}"]),
    names.map(lambda n: [f"--out_dir=c_{n}", "--init_from=resume"]),
    names.map(lambda n: ["--out_dir=math/ckpt.pt"] + [f"--wandb_project={n}"]),
    st.integers(2, 9).map(lambda n: [*MATH, f"--n_layer={n}"]),
    st.sampled_from([["--n_embd=28"], ["--block_size=5"], ["--seed=1"], ["--num_seeds=3"], ["--dropout=0.1"],
                     ["--dataset=facts_char"], ["--batch_size=7"], ["--max_iters=3"]]).map(
        lambda line: [*RESUME, *line]))


@many(250)
@given(together)
def test_settings_that_do_not_go_together(box, argv):
    """Or not with the data, the memory of any machine, or what a folder holds."""
    refused("train_with_eval", ["--out_dir=new", "--device=cpu", "--max_iters=1", *argv])


ALPHABET = "\n +-0123456789<=>"
strange = st.text(min_size=1, max_size=8).filter(lambda t: set(t) - set(ALPHABET + "\r\0"))


@many(150)
@given(strange, st.booleans())
def test_a_prompt_that_the_vocabulary_cannot_spell(box, prompt, in_file):
    with holding("prompt.txt", prompt.encode("utf-8", "surrogatepass")):
        start = "FILE:prompt.txt" if in_file else prompt
        refused("sample", [*MATH, f"--start={start}"])


@pytest.mark.parametrize("name, argv, message", [
    ("sample", ["--start="], "start = ''"), ("sample", ["--start=FILE:empty.txt"], "prompt is empty"),
    ("sample", ["--start=FILE:none.txt"], "none.txt: No such file"),
    ("sample", ["--start=FILE:math"], "math: Is a directory"),
    ("sample", ["--start=FILE:~no-such-user/x"], "x: No such file"),
    ("sample", ["--model_seed=7"], "1337, 1338"), ("sample", ["--out_dir=nowhere"], "nowhere"),
    ("sample", ["--ckpt=ckpt_best_mth.pt"], "did you mean ckpt_best_math.pt"),
    ("sample", ["--dataset=facts_char"], "vocabulary"),
    ("eval_as_math", ["--out_dir=facts"], "the vocabulary lacks: '+0<='"),
    ("eval_capitals", MATH, "the vocabulary lacks: 'CFacefilnoprst'"),
    ("train_with_eval", ["--overwrite", "config/none.py"], "none.py"),
    ("train_with_eval", ["--n_head=3"], "n_embd = 14 is not divisible by n_head = 3"),
    ("train_with_eval", ["--block_size=1764"], "block_size = 1764"),
    ("train_with_eval", ["--lr_decay_iters=4"], "lr_decay_iters = 4"),
    ("train_with_eval", ["--min_lr=0.1"], "min_lr = 0.1"),
    ("train_with_eval", ["--dataset=as_mth"], "did you mean as_math"),
    ("train_with_eval", ["--init_from=resume"], "to resume"),
    ("train_with_eval", ["--grad_clip=inf"], "grad_clip = inf"),
    ("train_with_eval", [f"--warmup_iters={10**400}"], "warmup_iters"),
    ("train_with_eval", ["--device=mps"], "there is none here"),
    ("plot_all_models", ["--root_dir=math/ckpt.pt"], "ckpt.pt"),
    ("plot_results", ["--operation=facts"], "facts")], ids=str)
def test_what_the_issue_lists(box, name, argv, message):
    line = [arg for arg in SCRIPTS[name][2] if arg.split("=")[0] not in {a.split("=")[0] for a in argv}]
    with holding("empty.txt", b""), mock.patch("torch.backends.mps.is_available", return_value=False):
        err = refused(name, [*line, *argv])
    assert message in err


edits = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8))


def edited(content: bytes, edit: tuple[float, int, bytes]) -> bytes:
    """Some bytes from somewhere on are cut out, others put in."""
    where, cut, put = edit
    at = int(where * len(content))
    return content[:at] + put + content[at + cut:]


# --- checkpoints

READERS = st.sampled_from([("sample", [*MATH, "--start=<"]), ("eval_as_math", MATH),
                           ("train_with_eval", [*RESUME, "--max_iters=21"])])
def saved(ckpt: dict, **how) -> bytes:
    """A checkpoint as torch.save writes it."""
    out = io.BytesIO()
    torch.save(ckpt, out, **how)
    return out.getvalue()


@pytest.mark.parametrize("name", [
    "model", "model_args", "seeds", "iter_num", "vocab", "config", "optimizer", "random", "best", "elapsed_s",
    "computed", "metrics"])
def test_a_checkpoint_that_lacks_something(box, name):
    """What only resuming needs does not harm the other readers."""
    ckpt = load_checkpoint(Path("math/ckpt.pt"))[0]
    with holding("math/ckpt.pt", saved({key: value for key, value in ckpt.items() if key != name})):
        assert "ckpt.pt" in refused("train_with_eval", [*RESUME, "--max_iters=21"])
        if name in ("model", "model_args", "iter_num", "vocab"):
            assert "ckpt.pt" in refused("sample", [*MATH, "--start=<"])


@many(100)
@given(st.sampled_from([*KEYS]).flatmap(lambda k: st.tuples(st.just(k), bad_values(KEYS[k]))))
def test_a_checkpoint_of_a_config_that_cannot_be(box, setting):
    ckpt = load_checkpoint(Path("math/ckpt.pt"))[0]
    with holding("math/ckpt.pt", saved(ckpt | {"config": ckpt["config"] | dict([setting])})):
        assert "ckpt.pt" in refused("train_with_eval", RESUME)


@many(100)
@given(reader=READERS, share=st.floats(0, 0.9999))
def test_half_a_checkpoint(box, reader, share):
    content = Path("math/ckpt.pt").read_bytes()
    with holding("math/ckpt.pt", content[:int(share * len(content))]):
        assert "ckpt.pt is truncated" in refused(*reader)


@many(300)
@given(st.lists(edits, min_size=1, max_size=3), st.booleans())
def test_a_damaged_checkpoint_is_read_or_refused(box, changes, old_format):
    """Damage inside of a weight cannot be told from a weight: sampling goes on, or there is one line."""
    content = saved(torch.load("math/ckpt_best_math.pt"), _use_new_zipfile_serialization=not old_format)
    for change in changes:
        content = edited(content, change)
    with holding("math/ckpt.pt", content):
        before = state(Path())
        code, err = outcome(sample.main, [*MATH, "--start=<", "--num_samples=1", "--max_new_tokens=1"])
        assert (code, err) == (0, "") or (code == 2 and err.startswith("error: ") and err.count("\n") == 1)
        assert state(Path()) == before


class Code:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


WAYS = [(os.mkdir, "ran"), (Path.touch, Path("ran")), (eval, "open('ran', 'w')"), (exec, "open('ran', 'w')"),
        (os.system, "touch ran"), (open, "ran", "w"), (shutil.copytree, "config", "ran")]


@many(100)
@given(reader=READERS, way=st.sampled_from(WAYS), where=st.sampled_from(["", "model", "vocab", "config"]),
       form=st.sampled_from(["zip", "old", 0, 1, 2, 3, 4, 5]))
def test_a_pickle_with_code_in_it_is_not_run(box, reader, way, where, form):
    ckpt = Code(*way) if not where else load_checkpoint(Path("math/ckpt.pt"))[0] | {where: Code(*way)}
    if isinstance(form, int):
        content = pickle.dumps(ckpt, protocol=form)
    else:
        content = saved(ckpt, _use_new_zipfile_serialization=form == "zip")
    with holding("math/ckpt.pt", content):
        assert "ckpt.pt" in refused(*reader)
    assert not Path("ran").exists()


# --- the sandbox itself, and real processes

@pytest.mark.parametrize("name", [n for n in SCRIPTS if n not in ("bench", "plot_all_models")])
def test_the_command_lines_are_good_without_what_is_bad(box, name):
    """Else nothing above was tested."""
    before = set(state(Path()))
    assert outcome(SCRIPTS[name][0], SCRIPTS[name][2])[0] == 0
    for path in sorted(set(state(Path())) - before, reverse=True):
        Path(path).rmdir() if Path(path).is_dir() else Path(path).unlink()


PROCESSES = [
    ["train_with_eval.py", "{box}/c.py"],
    ["train_with_eval.py", "--n_embd=65536", "--n_layer=1000", "--device=cpu"],
    ["train_with_eval.py", "--out_dir={box}/math"], ["sample.py", "--out_dir={box}/evil", "--start=<"],
    ["plot_results.py", "--model_folder={box}/evil"], ["data/as_math/prepare.py", "--block_size=9"]]


@pytest.mark.parametrize("argv", PROCESSES, ids=" ".join)
def test_a_real_process(box, argv):
    argv = [arg.format(box=box) for arg in argv]
    Path("c.py").write_text("n_embd = = 14")
    Path("evil").mkdir(exist_ok=True)
    Path("evil/ckpt.pt").write_bytes(pickle.dumps({"model": Code(os.mkdir, f"{box}/ran")}))
    before, here = state(box), sorted(ROOT.iterdir())
    done = run_script(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert state(box) == before and sorted(ROOT.iterdir()) == here
