"""Configs and command lines: the 24 runs, and one clear line for every mistake."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import config
from config import KEYS, UserError
from helpers import ROOT, RUNS, SIZES, TASKS, run_script

BLOCK_SIZE = {"math": 9, "facts": 24, "both": 24}
BATCH_SIZE = {"math": 882, "facts": 576, "both": 576}
SAME = dict(num_seeds=1, seed=1337, eval_interval=250, num_samples=10, temperature=0.01, top_k=10,
            max_iters=30_000, warmup_iters=2_000, lr_decay_iters=25_000, beta1=0.9, beta2=0.99, grad_clip=1.0,
            init_from="scratch", overwrite=False, device="auto", dtype="auto", compile="auto",
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


def test_there_are_24_runs():
    assert len(RUNS) == len(set(RUNS)) == 3 * len(SIZES) * 2


@pytest.mark.parametrize("run", RUNS)
def test_run_config_is_the_design_s(run):
    """Every value of it, in at most ten lines, and no key without a stated value."""
    path = f"config/train_{run}.py"
    assert read(path) == designed(run)
    assert set(designed(run)) == set(KEYS)
    with open(path) as f:
        assert len(f.readlines()) <= 10


def test_command_line_forms():
    """--key=value, --key value, a value that holds '=', files and keys in any order, the last word wins."""
    assert read("--n_embd=28")["n_embd"] == read("--n_embd", "28")["n_embd"] == 28
    assert read("--out_dir=a=b=c")["out_dir"] == read("--out_dir", "a=b=c")["out_dir"] == "a=b=c"
    path = "config/train_math_mini_28.py"
    c = read("--n_embd=7", path, "--seed=3")
    assert c == read(path, "--n_embd=7", "--seed=3") and (c["n_embd"], c["out_dir"]) == (7, "math_mini_28")
    assert read("--seed=1", "--seed=2")["seed"] == 2
    assert read("--overwrite=True")["overwrite"] is True and read("--compile=False")["compile"] is False
    assert read() == {name: key.default for name, key in KEYS.items()}


def test_what_was_given_is_told_apart_from_the_defaults():
    assert config.read(["--seed=1337"], "")[1] == {"seed": 1337}


def test_an_int_will_do_for_a_float(tmp_path):
    (tmp_path / "c.py").write_text("learning_rate = 1\nmin_lr = 0")
    for c in (read(str(tmp_path / "c.py")), read("--learning_rate=1", "--min_lr=0")):
        assert (c["learning_rate"], c["min_lr"]) == (1.0, 0.0)
        assert type(c["learning_rate"]) is type(c["min_lr"]) is float


WRONG_LINES = {
    "unknown key": ("--learning_rte=1", "learning_rte.*did you mean learning_rate"),
    "unknown key far from all": ("--zzzzqqq=1", "zzzzqqq"),
    "abbreviated": ("--n_em=1", "n_em.*n_embd"),
    "text for an int": ("--seed=abc", "seed = 'abc'.*whole number"),
    "float for an int": ("--n_embd=1.5", "n_embd = .*1.5.*whole number"),
    "text for a float": ("--dropout=x", "dropout = 'x'.*a number"),
    "not a number": ("--dropout=nan", "dropout = nan"),
    "text for a bool": ("--overwrite=yes", "overwrite = 'yes'.*True or False"),
    "no choice": ("--init_from=gpt2", "init_from = 'gpt2'.*scratch, resume"),
    "dropout 2": ("--dropout=2", "dropout = 2.0.*at least 0 and at most 0.99"),
    "negative rate": ("--learning_rate=-1", "learning_rate = -1.0.*at least 0"),
    "eval_interval 0": ("--eval_interval=0", "eval_interval = 0.*at least 1"),
    "num_seeds 0": ("--num_seeds=0", "num_seeds = 0.*at least 1"),
    "absurd size": ("--n_embd=99999999", "n_embd = 99999999.*at most"),
    "negative iterations": ("--max_iters=-5", "max_iters = -5.*at least 0"),
    "empty text": ("--out_dir=", "out_dir = ''"),
    "no value": ("--seed", "seed"),
    "one dash": ("-seed=1", "-seed=1|seed"),
    "config file missing": ("config/train_math_mini_15.py", "mini_15.py.*did you mean .*train_math_mini_1"),
    "a folder": ("config", "config file config"),
}


@pytest.mark.parametrize("what", WRONG_LINES)
def test_wrong_command_line_says_what_was_expected(what):
    argument, message = WRONG_LINES[what]
    with pytest.raises(UserError, match=message):
        read(argument)


WRONG_FILES = {
    "unknown key": ("learning_rte = 1", "unknown key learning_rte .did you mean learning_rate"),
    "syntax error": ("n_embd = 14\nn_head = = 2", "line 2.*invalid syntax"),
    "raises": ("n_embd = 1 / 0", "ZeroDivisionError"),
    "leaves": (
        "import sys as _sys\n_sys.exit(3)", "SystemExit"),
    "out of range": ("dropout = 2", "dropout = 2.*at most 0.99"),
    "wrong type": ("n_embd = '14'", "n_embd = '14'.*whole number"),
    "bool for an int": ("n_layer = True", "n_layer = True.*whole number"),
    "int for a bool": ("overwrite = 1", "overwrite = 1.*True or False"),
    "None": ("out_dir = None", "out_dir = None.*a text"),
    "a list": ("n_embd = [14]", "n_embd = .*whole number"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_wrong_config_file_is_named(tmp_path, what):
    text, message = WRONG_FILES[what]
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as e:
        read(str(path))
    assert str(path) in str(e.value)


@pytest.mark.parametrize("written", [b"n_embd = '\xff'", b"\0"], ids=["not UTF-8", "zero byte"])
def test_config_file_that_is_no_text(tmp_path, written):
    (tmp_path / "c.py").write_bytes(written)
    with pytest.raises(UserError, match="c.py"):
        read(str(tmp_path / "c.py"))


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_too_large_for_a_float_is_out_of_range(tmp_path, digits):
    for source in (f"--learning_rate={'1' * digits}", f"--n_embd={'1' * digits}"):
        with pytest.raises(UserError, match="command line"):
            read(source)
    (tmp_path / "c.py").write_text(f"n_embd = 10**{digits}")
    with pytest.raises(UserError, match="c.py: n_embd"):
        read(str(tmp_path / "c.py"))
    (tmp_path / "c.py").write_text(f"learning_rate = 10**{digits}")
    with pytest.raises(UserError, match="c.py: learning_rate"):
        read(str(tmp_path / "c.py"))


def test_a_config_s_own_constants_are_no_keys(tmp_path):
    (tmp_path / "c.py").write_text("WIDTH = 7\n_x = 2\nn_embd = WIDTH * _x")
    assert read(str(tmp_path / "c.py")) == read("--n_embd=14")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_key_with_its_default_and_meaning(flag, capsys):
    with pytest.raises(SystemExit) as e:
        read(flag)
    out = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0
    for name, key in KEYS.items():
        assert f"--{name} " in out and f"{key.help} [{key.default}]" in out, name


values = st.one_of(st.text(max_size=8), st.integers(-10**30, 10**30).map(str), st.floats().map(str),
                   st.sampled_from(["True", "False", "auto", "", "=", "None", "1e400", "0x1", "1_0"]))
arguments = st.one_of(st.builds("--{}={}".format, st.sampled_from([*KEYS, "n_hed", ""]), values),
                      st.builds("--{}".format, st.sampled_from([*KEYS])), values,
                      st.text(alphabet="-=_ansed1.", max_size=8))


@settings(max_examples=500)
@given(st.lists(arguments.filter(lambda text: not text.startswith("-h")), max_size=5))
def test_any_command_line_is_read_or_refused(argv):
    """Never another exception, and never a value outside its range."""
    try:
        c = read(*argv)
    except UserError as e:
        assert str(e)
        return
    assert list(c) == list(KEYS)
    for name, key in KEYS.items():
        assert type(c[name]) is type(key.default) or c[name] in key.choices
        assert isinstance(c[name], str) or key.lo <= c[name] <= key.hi


@pytest.mark.parametrize("argv, culprit", [
    (["train_with_eval.py", "config/train_math_mini_14.py", "--learning_rte=1"], "learning_rte"),
    (["train_with_eval.py", "--dataset=as_mth", "--out_dir=never_made"], "as_math"),
    (["eval_as_math.py", "--out_dir=nowhere"], "nowhere"),
    (["sample.py", "--num_samples=x"], "num_samples")], ids=lambda x: x[-1] if isinstance(x, list) else x)
def test_a_mistake_is_one_line_and_exit_code_2(argv, culprit):
    """As a real process: no traceback, nothing on stdout, nothing made."""
    done = run_script(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert culprit in done.stderr
    assert not (ROOT / "never_made").exists()
