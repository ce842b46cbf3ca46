"""What is not ours: nanoGPT's checkpoints both ways, wandb, readers of tables, shells, a user's own text."""
import shutil
import sys
import types

import pytest
import torch

import data
import eval_as_math
import sample
import train_with_eval
from bench import plain_logits
from config import UserError
from helpers import contents, log, resume, run_script, train
from model import GPTConfig, load_checkpoint, save_checkpoint
from reference import gpt_of, random_weights

ASK = ["--num_samples=3", "--max_new_tokens=4", "--start=<3+4=", "--temperature=1"]


CFG = GPTConfig(n_layer=2, n_head=2, mlp_expansion=4)
CHARACTERS = "\n +-0123456789<=>"


@pytest.fixture
def plain() -> dict[str, torch.Tensor]:
    """The weights of nanoGPT's model for arithmetic, far from their initial values, LayerNorms too."""
    return gpt_of(random_weights(CFG).float(), 0, CFG)


@pytest.fixture
def written(plain, tmp_path):
    """A function that saves that model as nanoGPT's train.py would, with something changed; it returns
    --out_dir. `args` are model_args besides those of its shape."""

    def write(prefix: str = "", more=(), without=(), **args) -> str:
        shape = {k: getattr(CFG, k) for k in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
        state = {name: weight.detach() for name, weight in plain.items()}
        state |= {"lm_head.weight": state["transformer.wte.weight"], **dict(more)}
        ckpt = {"model": {prefix + name: weight for name, weight in state.items()},
                "model_args": shape | {"bias": False, "dropout": 0.0} | args,
                "optimizer": torch.optim.AdamW(plain.values()).state_dict(),
                "iter_num": 2000, "best_val_loss": torch.tensor(0.75),
                "config": {"out_dir": "out", "dataset": "as_math", "wandb_log": False, "learning_rate": 1e-3}}
        save_checkpoint(tmp_path / "ckpt.pt", {k: v for k, v in ckpt.items() if k not in without})
        return f"--out_dir={tmp_path}"

    return write


def texts(out: str) -> list[str]:
    """What sample.py printed."""
    return out.split("\n---------------\n")[:-1]


@pytest.mark.parametrize("name", ["ckpt.pt", "ckpt_best_math.pt"])
def test_a_run_s_seed_loads_into_nanogpt(math_run, name):
    """By the README's one-liner: what nanoGPT's state_dict has and nothing else, tied as there."""
    state = {k: v[1] for k, v in torch.load(math_run / name, weights_only=True)["model"].items()}
    block = {"ln_1": [14], "attn.c_attn": [42, 14], "attn.c_proj": [14, 14], "ln_2": [14],
             "mlp.c_fc": [14, 14], "mlp.c_proj": [14, 14]}
    shapes = {"transformer.wte": [17, 14], "transformer.wpe": [9, 14], "transformer.ln_f": [14],
              "lm_head": [17, 14], **{f"transformer.h.0.{name}": shape for name, shape in block.items()}}
    assert {k: list(v.shape) for k, v in state.items()} == {f"{k}.weight": v for k, v in shapes.items()}
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_s_checkpoint_is_read_as_it_is(written, plain, prefix, tmp_path, capsys):
    """Every weight, with mlp_expansion 4, the dataset's vocabulary, and one seed; sampled greedily it says
    what nanoGPT's own model does."""
    mask = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 9, 9).tril() for i in range(2)}
    argument = written(prefix, more=mask)
    ckpt, cfg = load_checkpoint(tmp_path / "ckpt.pt", "as_math")
    assert cfg == CFG and ckpt["vocab"] == CHARACTERS and ckpt["seeds"] == [1337]
    for name, weight in plain.items():
        assert torch.equal(ckpt["model"][name], weight[None])
    sample.main([argument, "--dataset=as_math", *ASK[:-1], "--temperature=0"])
    ids = [CHARACTERS.index(character) for character in "<3+4="]
    for _ in range(4):
        ids.append(plain_logits(plain, torch.tensor([ids[-9:]]), CFG)[0, -1].argmax().item())
    assert texts(capsys.readouterr().out) == ["".join(CHARACTERS[i] for i in ids)] * 3


def test_nanogpt_s_checkpoint_is_evaluated(written, plain, capsys):
    """Of weights in half precision, with nothing beside them too."""
    plain |= {name: weight.detach().half() for name, weight in plain.items()}
    folder = written(without=("iter_num", "best_val_loss", "config", "optimizer"))
    eval_as_math.main([folder, "--dataset=as_math", "--num_samples=1"])
    out = capsys.readouterr().out
    assert "seed 1337, iteration 0" in out and "/ 196 " in out and "/ 4 " in out


BIAS = "transformer.h.0.attn.c_attn.bias"
DATASET = "--dataset=as_math"
REFUSED = {
    "no dataset": ({}, "--temperature=1", "holds no vocabulary.*--dataset=as_math"),
    "another dataset": ({}, "--dataset=facts_char", "its vocabulary of 17 characters is another one"),
    "a bias": ({"more": {BIAS: torch.zeros(42)}}, DATASET, f"{BIAS} not what .* a GPT without biases"),
    "bias=True": ({"bias": True}, DATASET, "bias = True will not do; expected one of False"),
    "GPT-2's vocabulary": ({"vocab_size": 50304}, DATASET, "vocab_size = 50304"),
    "another width of the MLP": ({"mlp_expansion": 2}, DATASET, "mlp.c_fc.weight, .* not what"),
    "untied": ({"more": {"lm_head.weight": torch.ones(17, 14)}}, DATASET, "not tied"),
    "an extra weight": ({"more": {"transformer.x": torch.zeros(1)}}, DATASET, "transformer.x not what"),
    "heads that do not divide": ({"n_head": 3}, DATASET, "n_head not what its model_args describe"),
    "no model": ({"without": ("model",)}, DATASET, "'model' .KeyError."),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_nanogpt_s_gpt_without_biases_is_refused_by_name(written, what):
    how, argument, message = REFUSED[what]
    with pytest.raises(UserError, match=message):
        sample.main([written(**how), *ASK, argument])


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


@pytest.mark.parametrize("problem, message", [
    ("init", "wandb_log = True: No API key configured"), (None, "needs a package: pip install wandb"),
    (types.ModuleType("wandb"), "needs a package: pip install wandb")],
    ids=["refuses", "missing", "a folder of logs"])
def test_what_wandb_lacks_is_said_before_anything_changes(wandb, tmp_path, monkeypatch, problem, message):
    def init(**how):
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    folder = train(tmp_path / "run", "--max_iters=0")
    before = contents(folder)
    monkeypatch.setattr(wandb, "init", init)
    if problem != "init":
        monkeypatch.setitem(sys.modules, "wandb", problem)
    for argument in (f"--out_dir={folder}", f"--out_dir={tmp_path / 'new'}"):
        with pytest.raises(UserError, match=message):
            train(folder, "--wandb_log", "--overwrite", argument)
    assert contents(folder) == before and not (tmp_path / "new").exists()


# --- shells and surroundings

def test_what_the_surroundings_left_behind(math_run, tmp_path, monkeypatch):
    """A notebook's backend for pictures, and the number of processes of a run that torchrun did not start."""
    folder = shutil.copytree(math_run, tmp_path / "run")
    done = run_script("plot_results.py", f"--model_folder={folder}",
                      MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert done.returncode == 0 and done.stderr == "" and (folder / "plot.png").exists()
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert len(log(train(tmp_path / "alone", "--max_iters=0"))) == 1


def test_a_text_without_tasks(tmp_path, monkeypatch, capsys):
    """Whatever trains is resumed and sampled; of a long text the loss is that of some windows."""
    monkeypatch.setattr(data, "ROOT", tmp_path / "data")
    (tmp_path / "data" / "own").mkdir(parents=True)
    (tmp_path / "data" / "own" / "prepare.py").write_text(
        'TASKS = ()\ndef text():\n    return "Tyger, tyger, burning bright, in the forests " * 9')
    monkeypatch.setattr(train_with_eval, "EXACT", 400)
    folder = train(tmp_path / "run", "--dataset=own", "--num_seeds=2")
    assert "data/own is long: the loss is the mean over one window in 37" in capsys.readouterr().out
    assert {p.name for p in folder.glob("*.pt")} == {"ckpt.pt"}
    assert all(row["train_loss"] and not row["math_acc"] and not row["combined_acc"] for row in log(folder))
    resume(folder, "--max_iters=30")
    capsys.readouterr()
    sample.main([f"--out_dir={folder}", "--start=Tyger", "--num_samples=2", "--max_new_tokens=30"])
    assert [len(text) for text in texts(capsys.readouterr().out)] == [35, 35]
