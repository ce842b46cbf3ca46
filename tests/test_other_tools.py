"""What is not ours: nanoGPT's checkpoints both ways, wandb, readers of tables, shells, a user's own text."""
import shutil
import subprocess
import sys
import types

import pytest
import torch

import data
import eval_as_math
import plot_results
import sample
import train_with_eval
from config import UserError
from helpers import ROOT, TINY, contents, log, resume, run_script, train
from model import GPTConfig, load_checkpoint, save_checkpoint, shapes
from reference import GPT

ASK = ["--num_samples=3", "--max_new_tokens=4", "--start=<3+4=", "--temperature=1"]


def nanogpt_checkpoint(gpt: GPT, prefix: str = "", **args) -> dict:
    """What nanoGPT's train.py saves of a model; `args` are model_args besides those of its shape."""
    optimizer = torch.optim.AdamW(gpt.parameters())
    shape = {k: getattr(gpt.cfg, k) for k in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    return {"model": {prefix + k: v for k, v in gpt.state_dict().items()},
            "model_args": shape | {"bias": False, "dropout": 0.0} | args, "optimizer": optimizer.state_dict(),
            "iter_num": 2000, "best_val_loss": torch.tensor(0.75),
            "config": {"out_dir": "out", "dataset": "as_math", "wandb_log": False, "learning_rate": 1e-3}}


@pytest.fixture
def plain() -> GPT:
    """nanoGPT's model, of the size of the arithmetic's vocabulary, its LayerNorms and all else distinct."""
    torch.manual_seed(3)
    gpt = GPT(GPTConfig(n_layer=2, n_head=2, mlp_expansion=4))
    for weight in gpt.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    return gpt


@pytest.fixture
def written(plain, tmp_path):
    """A function that saves that model as nanoGPT would, with something changed; it returns --out_dir."""

    def write(prefix: str = "", more=(), without=(), **args) -> str:
        ckpt = nanogpt_checkpoint(plain, prefix, **args)
        ckpt["model"] |= dict(more)
        ckpt["model"] = {k: v for k, v in ckpt["model"].items() if k not in without}
        save_checkpoint(tmp_path / "ckpt.pt", {k: v for k, v in ckpt.items() if k not in without})
        return f"--out_dir={tmp_path}"

    return write


def texts(out: str) -> list[str]:
    """What sample.py printed."""
    return out.split("\n---------------\n")[:-1]


@pytest.mark.parametrize("name", ["ckpt.pt", "ckpt_best_math.pt"])
def test_a_run_s_seed_loads_into_nanogpt(math_run, name):
    """By the README's one-liner, strictly: what nanoGPT's state_dict has and nothing else, tied as there."""
    ckpt, cfg = load_checkpoint(math_run / name)
    raw = torch.load(math_run / name, weights_only=True)
    for seed in range(2):
        gpt = GPT(cfg)
        gpt.load_state_dict({k: v[seed] for k, v in raw["model"].items()}, strict=True)
        assert set(gpt.state_dict()) == {*shapes(cfg), "lm_head.weight"}
        assert torch.equal(gpt.lm_head.weight, ckpt["model"]["transformer.wte.weight"][seed])


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_s_checkpoint_is_read_as_it_is(written, plain, prefix, tmp_path):
    """Every weight, with mlp_expansion 4, the dataset's vocabulary, and one seed."""
    mask = {f"{prefix}transformer.h.{i}.attn.bias": torch.ones(1, 1, 9, 9).tril() for i in range(2)}
    written(prefix, more=mask)
    ckpt, cfg = load_checkpoint(tmp_path / "ckpt.pt", "as_math")
    assert cfg == plain.cfg and ckpt["vocab"] == "\n +-0123456789<=>" and ckpt["seeds"] == [1337]
    for name, weight in plain.state_dict().items():
        assert torch.equal(ckpt["model"][name], weight[None])


def test_nanogpt_s_checkpoint_is_sampled(written, plain, capsys):
    """Greedy samples are those of nanoGPT's own model."""
    sample.main([written("_orig_mod."), "--dataset=as_math", *ASK[:-1], "--temperature=0"])
    vocab, ids = "\n +-0123456789<=>", []
    for ch in "<3+4=":
        ids.append(vocab.index(ch))
    for _ in range(4):
        ids.append(plain(torch.tensor([ids[-9:]]))[0, -1].argmax().item())
    assert texts(capsys.readouterr().out) == ["".join(vocab[i] for i in ids)] * 3


def test_nanogpt_s_checkpoint_is_evaluated(written, plain, tmp_path, capsys):
    """Of weights in half precision, with nothing beside them too."""
    plain.half()
    folder = written(without=("iter_num", "best_val_loss", "config", "optimizer"))
    eval_as_math.main([folder, "--dataset=as_math", "--num_samples=1"])
    out = capsys.readouterr().out
    assert "seed 1337, iteration 0" in out and "/ 196 " in out and "/ 4 " in out


BIAS = "transformer.h.0.attn.c_attn.bias"
DATASET = "--dataset=as_math"
REFUSED = {
    "no dataset": ({}, "--temperature=1", "holds no vocabulary.*--dataset=as_math"),
    "another dataset": ({}, "--dataset=facts_char", "its vocabulary of 17 characters is another one"),
    "an unknown dataset": ({}, "--dataset=as_mth", "did you mean as_math"),
    "a bias": ({"more": {BIAS: torch.zeros(42)}}, DATASET, f"{BIAS} not what .* a GPT without biases"),
    "bias=True": ({"bias": True}, DATASET, "bias = True will not do; expected one of False"),
    "GPT-2's vocabulary": ({"vocab_size": 50304}, DATASET, "vocab_size = 50304"),
    "another width of the MLP": ({"mlp_expansion": 2}, DATASET, "mlp.c_fc.weight, .* not what"),
    "untied": ({"more": {"lm_head.weight": torch.ones(17, 14)}}, DATASET, "not tied"),
    "an extra weight": ({"more": {"transformer.x": torch.zeros(1)}}, DATASET, "transformer.x not what"),
    "heads that do not divide": ({"n_head": 3}, DATASET, "n_head not what its model_args describe"),
    "a layer less": ({"n_layer": 3}, DATASET, "transformer.h.2"),
    "no model": ({"without": ("model",)}, DATASET, "'model' .KeyError."),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_nanogpt_s_gpt_without_biases_is_refused_by_name(written, what):
    how, argument, message = REFUSED[what]
    with pytest.raises(UserError, match=message):
        sample.main([written(**how), *ASK, argument])


def test_nanogpt_s_checkpoint_cannot_be_resumed(written, tmp_path):
    argument = written()
    with pytest.raises(UserError, match="ckpt.pt holds no vocabulary"):
        train_with_eval.main([argument, "--init_from=resume"])
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.fixture
def wandb(monkeypatch):
    """A wandb that keeps what it is given: `runs`, and `logged` (step, values)."""
    module = types.ModuleType("wandb")
    module.runs, module.logged, module.Error = [], [], type("Error", (Exception,), {})
    module.init = lambda **how: module.runs.append(how)
    module.log = lambda values, step: module.logged.append((step, values))
    module.finish = lambda: module.runs.append("finished")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_every_evaluation(wandb, tmp_path):
    """The mean over seeds under the log's own names, and each seed's; nothing for what the data has not."""
    folder = train(tmp_path / "run", "--num_seeds=2", "--wandb_log", "--wandb_project=p")
    how, end = wandb.runs
    assert end == "finished"
    assert (how["project"], how["name"]) == ("p", "run") and how["config"]["num_seeds"] == 2
    rows = log(folder)
    assert [step for step, _ in wandb.logged] == [0, 10, 20]
    for i, (_, values) in enumerate(wandb.logged):
        pair = rows[2 * i:2 * i + 2]
        for row in pair:
            assert values[f"seed_{row['seed']}/train_loss"] == float(row["train_loss"])
        assert values["train_loss"] == pytest.approx(sum(float(row["train_loss"]) for row in pair) / 2)
        assert values["heldout_correct"] == sum(int(row["heldout_correct"]) for row in pair) / 2
        assert "elapsed_s" in values and not any("facts" in name or "iter" in name for name in values)


def test_what_wandb_refuses_is_said_before_anything_changes(wandb, tmp_path, monkeypatch):
    def init(**how):
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    folder = train(tmp_path / "run", "--max_iters=0")
    before = contents(folder)
    monkeypatch.setattr(wandb, "init", init)
    for argument in (f"--out_dir={folder}", f"--out_dir={tmp_path / 'new'}"):
        with pytest.raises(UserError, match="wandb_log = True: No API key configured"):
            train(folder, "--wandb_log", "--overwrite", argument)
    assert contents(folder) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("instead", [None, types.ModuleType("wandb")], ids=["missing", "a folder of logs"])
def test_without_wandb_it_is_said_before_anything_is_made(monkeypatch, tmp_path, instead):
    monkeypatch.setitem(sys.modules, "wandb", instead)
    with pytest.raises(UserError, match="wandb_log = True needs a package: pip install wandb"):
        train(tmp_path / "run", "--wandb_log=True")
    assert not (tmp_path / "run").exists()
    train(tmp_path / "run", "--max_iters=0")


# --- shells and surroundings

def test_a_run_whose_terminal_is_not_there_trains(tmp_path):
    """Nor can it show the folder's name, where there is one."""
    folder = tmp_path / "\u00dcbung"
    argv = ["train_with_eval.py", f"--out_dir={folder}", *TINY, "--max_iters=0"]
    done = subprocess.run(["bash", "-c", 'exec "$@" >&- 2>&-', "-", sys.executable, *argv], cwd=ROOT)
    assert done.returncode == 0 and len(log(folder)) == 1
    done = run_script(*argv, "--overwrite", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "\\xdcbung: 1,456 parameters" in done.stdout


def test_what_the_surroundings_left_behind(math_run, tmp_path, monkeypatch):
    """A notebook's backend for pictures, and the number of processes of a run that torchrun did not start."""
    folder = shutil.copytree(math_run, tmp_path / "run")
    done = run_script("plot_results.py", f"--model_folder={folder}",
                      MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert done.returncode == 0 and done.stderr == "" and (folder / "plot.png").exists()
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert len(log(train(tmp_path / "alone", "--max_iters=0"))) == 1


def test_a_text_without_tasks_in_a_folder_like_a_formula(tmp_path, monkeypatch, capsys):
    """Whatever trains, every tool reads."""
    monkeypatch.setattr(data, "ROOT", tmp_path / "data")
    (tmp_path / "data" / "own").mkdir(parents=True)
    (tmp_path / "data" / "own" / "prepare.py").write_text(
        'TASKS = ()\ndef text():\n    return "Tyger, tyger, burning bright, in the forests " * 9')
    monkeypatch.setattr(train_with_eval, "EXACT", 400)
    folder = train(tmp_path / "cost$5_$x", "--dataset=own", "--num_seeds=2")
    assert "data/own is long: the loss is the mean over one window in 37" in capsys.readouterr().out
    assert {p.name for p in folder.glob("*.pt")} == {"ckpt.pt"}
    assert all(row["train_loss"] and not row["math_acc"] and not row["combined_acc"] for row in log(folder))
    resume(folder, "--max_iters=30")
    plot_results.main([f"--model_folder={folder}"])
    assert (folder / "plot.png").stat().st_size > 10_000
    capsys.readouterr()
    sample.main([f"--out_dir={folder}", "--start=Tyger", "--num_samples=2", "--max_new_tokens=30"])
    assert [len(text) for text in texts(capsys.readouterr().out)] == [35, 35]
