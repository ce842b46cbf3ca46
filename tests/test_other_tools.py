"""Other people's tools: nanoGPT's checkpoints both ways, wandb, and the log as a table."""
import csv
import sys
import types

import pytest
import torch

import bench
import eval_as_math
import sample
import train_with_eval
from config import UserError
from helpers import contents, log, resume, train
from model import GPTConfig, load_checkpoint, save_checkpoint, shapes

ASK = ["--num_samples=3", "--max_new_tokens=4", "--start=<3+4=", "--temperature=1"]


def nanogpt_checkpoint(gpt: bench.PlainGPT, prefix: str = "", **args) -> dict:
    """What nanoGPT's train.py saves of a model; `args` are model_args besides those of its shape."""
    optimizer = torch.optim.AdamW(gpt.parameters())
    shape = {k: getattr(gpt.cfg, k) for k in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    return {"model": {prefix + k: v for k, v in gpt.state_dict().items()},
            "model_args": shape | {"bias": False, "dropout": 0.0} | args, "optimizer": optimizer.state_dict(),
            "iter_num": 2000, "best_val_loss": torch.tensor(0.75),
            "config": {"out_dir": "out", "dataset": "as_math", "wandb_log": False, "learning_rate": 1e-3}}


@pytest.fixture
def plain() -> bench.PlainGPT:
    """nanoGPT's model, of the size of the arithmetic's vocabulary, its LayerNorms and all else distinct."""
    torch.manual_seed(3)
    gpt = bench.PlainGPT(GPTConfig(n_layer=2, n_head=2, mlp_expansion=4))
    for weight in gpt.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    return gpt.eval()


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
        gpt = bench.PlainGPT(cfg)
        gpt.load_state_dict({k: v[seed] for k, v in raw["model"].items()}, strict=True)
        assert set(gpt.state_dict()) == {*shapes(cfg), "lm_head.weight"}
        assert gpt.lm_head.weight is gpt.transformer.wte.weight
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
    assert "seed 1337, iteration 0" in capsys.readouterr().out
    with open(tmp_path / "eval_as_math.csv", newline="") as f:
        assert len(list(csv.DictReader(f))) == 200


BIAS = "transformer.h.0.attn.c_attn.bias"
DATASET = "--dataset=as_math"
REFUSED = {
    "no dataset": ({}, "--temperature=1", "holds no vocabulary.*--dataset=as_math"),
    "another dataset": ({}, "--dataset=facts_char", "vocab_size = 17 is not that of data/facts_char"),
    "an unknown dataset": ({}, "--dataset=as_mth", "did you mean as_math"),
    "a bias": ({"more": {BIAS: torch.zeros(42)}}, DATASET, f"{BIAS}: .* without biases"),
    "bias=True": ({"bias": True}, DATASET, "bias = True will not do; expected one of False"),
    "GPT-2's vocabulary": ({"vocab_size": 50304}, DATASET, "vocab_size = 50304"),
    "another width of the MLP": ({"mlp_expansion": 2}, DATASET, "mlp.c_fc.weight, .* not what"),
    "untied": ({"more": {"lm_head.weight": torch.ones(17, 14)}}, DATASET, "not tied"),
    "an extra weight": ({"more": {"transformer.x": torch.zeros(1)}}, DATASET, "transformer.x: not what"),
    "heads that do not divide": ({"n_head": 3}, DATASET, "n_embd = 14 is not divisible by n_head = 3"),
    "a layer less": ({"n_layer": 3}, DATASET, "transformer.h.2"),
    "no model": ({"without": ("model",)}, DATASET, "no dicts model"),
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


def test_the_dataset_of_one_s_own_checkpoint_may_be_said(math_run, capsys):
    argv = [f"--out_dir={math_run}", *ASK]
    sample.main(argv)
    sample.main([*argv, "--dataset=as_math"])
    out = texts(capsys.readouterr().out)
    assert out[:3] == out[3:]


@pytest.fixture
def wandb(monkeypatch):
    """A wandb that keeps what it is given: `runs`, and `logged` (step, values)."""
    module = types.ModuleType("wandb")
    module.runs, module.logged, module.Error = [], [], type("Error", (Exception,), {})
    module.init = lambda **how: module.runs.append(how)
    module.log = lambda values, step: module.logged.append((step, values))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_every_evaluation(wandb, tmp_path):
    """The mean over seeds under the log's own names, and each seed's; nothing for what the data has not."""
    folder = train(tmp_path / "run", "--num_seeds=2", "--wandb_log", "--wandb_project=p")
    how, = wandb.runs
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


def test_wandb_may_be_taken_up_or_left_on_resume(wandb, tmp_path):
    folder = train(tmp_path / "run")
    assert not wandb.runs
    resume(folder, "--max_iters=30", "--wandb_log=True", "--wandb_run_name=again")
    assert [how["name"] for how in wandb.runs] == ["again"]
    assert wandb.logged[-1][0] == 30 and not any("/" in name for name in wandb.logged[-1][1])
    resume(folder, "--max_iters=40", "--wandb_log=False")
    assert len(wandb.runs) == 1 and wandb.logged[-1][0] == 30


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


def test_the_log_is_a_table_of_numbers(both_run, math_run):
    """For csv readers of any kind: a header, and of each row every cell a number or empty."""
    for folder in (both_run, math_run):
        with open(folder / "results.csv", newline="", encoding="ascii") as f:
            header, *rows = csv.reader(f)
        assert tuple(header) == train_with_eval.COLUMNS and rows
        assert all(len(row) == len(header) for row in rows)
        assert all(float(cell) >= -1 for row in rows for cell in row if cell)
