"""Configs and command lines: the 24 runs, one clear line for every mistake, and no harm from who listens."""
import os
import shlex
import subprocess
import sys

import pytest

import config
from config import KEYS, Key, UserError
from helpers import ROOT, RUNS, SIZES, TASKS

BLOCK_SIZE = {"math": 9, "facts": 24, "both": 24}
BATCH_SIZE = {"math": 882, "facts": 576, "both": 576}
SAME = dict(num_seeds=1, seed=1337, eval_interval=250, num_samples=10, temperature=0.01, top_k=10,
            keep_every=0, max_iters=30_000, warmup_iters=2_000, lr_decay_iters=25_000, beta1=0.9, beta2=0.99,
            grad_clip=1.0, init_from="scratch", overwrite=False, device="auto", dtype="auto", compile="auto",
            wandb_log=False, wandb_project="too-big-to-think", wandb_run_name="out_dir")
MLT = dict(n_layer=6, n_head=6, n_embd=384, mlp_expansion=4, dropout=0.2, weight_decay=0.1,
           learning_rate=1e-5, min_lr=1e-6)


def designed(run: str) -> dict:
    """What section 4 of the design says of a run."""
    task, _, size, *wd = run.split("_")
    small = dict(n_layer=1, n_head=1, n_embd=0 if size == "mlt" else int(size), mlp_expansion=1, dropout=0.0,
                 weight_decay=0.0, learning_rate=1e-2, min_lr=1e-4)
    regularised = dict(weight_decay=0.1, dropout=0.0) if wd else {}
    return SAME | (MLT if size == "mlt" else small) | regularised | dict(
        out_dir=run, dataset=TASKS[task], block_size=BLOCK_SIZE[task], batch_size=BATCH_SIZE[task])


def read(*argv: str) -> dict:
    return config.read(list(argv), "")[0]


@pytest.mark.parametrize("run", RUNS)
def test_the_24_run_configs_are_the_design_s(run):
    """Every value of it, in five to ten lines that import nothing, and no key without a stated value."""
    assert len(RUNS) == len(set(RUNS)) == 3 * len(SIZES) * 2
    path = f"config/train_{run}.py"
    assert read(path) == designed(run)
    assert set(designed(run)) == set(KEYS)
    text = (ROOT / path).read_text()
    assert 5 <= text.count("\n") <= 10 and "import" not in text
    own = {"out_dir", "dataset", "block_size", "batch_size", "n_embd"}
    assert own | (set(MLT) if "mlt" in run else set()) <= set(config.read_file(path))


def test_command_line_forms():
    """--key=value, --key value, a value that holds '=', files and keys in any order, the last word wins."""
    assert read("--n_embd=28")["n_embd"] == read("--n_embd", "28")["n_embd"] == 28
    assert read("--out_dir=a=b=c")["out_dir"] == read("--out_dir", "a=b=c")["out_dir"] == "a=b=c"
    path = "config/train_math_mini_28.py"
    c = read("--n_embd=7", path, "--seed=3")
    assert c == read(path, "--n_embd=7", "--seed=3") and (c["n_embd"], c["out_dir"]) == (7, "math_mini_28")
    assert read("--seed=1", "--seed=2")["seed"] == 2
    assert read("--overwrite=True")["overwrite"] is True and read("--compile=False")["compile"] is False
    assert read("--overwrite", path) == read(path, "--overwrite", "True") == c | dict(
        n_embd=28, seed=1337, overwrite=True)
    assert read() == {name: key.default for name, key in KEYS.items()}
    assert config.read(["--seed=1337"], "")[1] == {"seed": 1337}, "what was given, apart from the defaults"
    assert config.settings(["--a=2"], {"a": Key(1, ""), "b": Key("x", "")}, "") == {"a": 2, "b": "x"}


def test_a_path_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    """In a config file too, which no shell reads; where the home is not known it is no folder named ~."""
    (tmp_path / "c.py").write_text("out_dir = '~/runs/x'")
    for argv in (["--out_dir=~/runs/x"], [str(tmp_path / "c.py")]):
        monkeypatch.setenv("HOME", "/somewhere")
        c = read(*argv, "--wandb_project=~")
        assert (c["out_dir"], c["wandb_project"]) == ("/somewhere/runs/x", "~")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        with pytest.raises(UserError, match="out_dir = '~/runs/x' will not do"):
            read(*argv)
        monkeypatch.undo()


WRONG_LINES = [
    ("--learning_rte=1", "learning_rte.*did you mean learning_rate"), ("-seed=1", "-seed=1.*mean seed"),
    ("--seed=abc", "seed = 'abc'.*whole number"), ("--n_embd=1.5", "n_embd = .*1.5.*whole number"),
    ("--dropout=nan", "dropout = nan"), ("--grad_clip=inf", "grad_clip = inf.*at least 0"),
    ("--overwrite=yes", "overwrite = 'yes'.*True or False"), ("--out_dir=", "out_dir = ''"),
    ("--init_from=gpt2", "init_from = 'gpt2'.*scratch, resume"),
    ("--dropout=2", "dropout = 2.0.*at least 0 and at most 0.99"),
    ("--learning_rate -1e-5", "learning_rate = -1e-05.*at least 0"), ("--seed", "seed = ''.*whole number"),
    ("config/train_math_mini_15.py", "mini_15.py.*did you mean .*train_math_mini_1"),
    ("config", "no config file config;"), (f"--n_embd={'1' * 5000}", "command line: n_embd")]


@pytest.mark.parametrize("line, message", WRONG_LINES, ids=[line[:30] for line, _ in WRONG_LINES])
def test_wrong_command_line_says_what_was_expected(line, message):
    with pytest.raises(UserError, match=message):
        read(*line.split())


WRONG_FILES = {
    "unknown key": (b"learning_rte = 1", "unknown key learning_rte .did you mean learning_rate"),
    "no key at all": (b"lr = 1", "unknown key lr.*begin your own names with _"),
    "a study's key": (b"held_out = '3-8'", "unknown key held_out"),
    "syntax error": (b"n_embd = 14\nn_head = = 2", "line 2: SyntaxError: invalid syntax;"),
    "raises": (b"n_embd = 14\nn_head = 1 / 0\n", "line 2: ZeroDivisionError"),
    "leaves": (b"import sys\nsys.exit(3)", "SystemExit"),
    "a function": (b"def seed(): pass", "seed = <function seed"),
    "not UTF-8": (b"n_embd = '\xff'", "SyntaxError"),
    "a number too long to print": (b"n_embd = 10 ** 5000", "c.py: ValueError: .* digits"),
    "a study": (b"runs = [dict(n_embd=6)]", "c.py is a study: python sweep.py"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_wrong_config_file_is_named(tmp_path, what):
    text, message = WRONG_FILES[what]
    path = tmp_path / "c.py"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message) as e:
        read(str(path))
    assert str(path) in str(e.value)


def test_a_config_may_have_names_of_its_own(tmp_path):
    """nanoGPT's habits: imports, functions, constants; and an editor's byte order mark."""
    (tmp_path / "c.py").write_text("import math\nfrom math import sqrt\nWIDTH, _x = 7, 2\nclass A: pass\n"
                                   "def learning_rte(i): return i * _x\nfor _i in range(1):\n    _k = WIDTH\n"
                                   "n_embd = learning_rte(_k)\nmin_lr = 1", encoding="utf-8-sig")
    c = config.read_file(str(tmp_path / "c.py"))
    assert c == {"n_embd": 14, "min_lr": 1} and type(c["min_lr"]) is float, "an int will do for a float"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_key_with_its_default_and_meaning(flag, capsys):
    with pytest.raises(SystemExit) as e:
        read(flag)
    out = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0
    for name, key in KEYS.items():
        assert f"--{name} " in out and f"{key.help} [{key.default}]; {key.expected()}" in out, name
    assert "[0.0]; a number at least 0 and at most 0.99" in out and "[scratch]; one of scratch, resume" in out


JOB = """import config, pathlib, sys
def main(argv):
    for i in range(20_000):
        print("\\u00e9", i)
        print("progress", file=sys.stderr)
    pathlib.Path("done").touch()
config.run(main)
"""


@pytest.mark.parametrize("listener, code", [
    ("| head -1", 0), ("2>&1 | head -1", 0), (">&- 2>&-", 0), (">&- <&-", 0), (">out", 0),
    *[(">/dev/full", 2)] * os.path.exists("/dev/full")])
def test_a_job_does_not_depend_on_who_listens(tmp_path, listener, code):
    """A reader that leaves, none at all, one that knows no accents; but a full disk is said."""
    (tmp_path / "job.py").write_text(JOB)
    line = f"{shlex.quote(sys.executable)} job.py {listener}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"})
    errors = set(done.stderr.splitlines()) - {"progress"}
    assert (done.returncode, (tmp_path / "done").exists()) == (code, code == 0)
    assert len(errors) == (code != 0) and all("error: [Errno 28]" in line for line in errors)
