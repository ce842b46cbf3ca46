"""sweep.py: what a study trains, skips, resumes and shares out; what it draws; what it says of mistakes."""
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import config
import data
import eval_as_math
import helpers
import model
from config import sweep_digits, sweep_inside, sweep_learning
from data import log
from data.files import Lock
from data.stats import digit_order, permutation_test, two_components
from helpers import ROOT, train
from helpers import log as rows_of
from runs import SEEDS, info_of, write_run
from sample import open_model
from sweep import draw, main, read_log, read_study, table, time_left

TINY = ["--max_iters=4", "--eval_interval=2", "--num_samples=1", "--device=cpu", "--batch_size=16"]
CURVES = {  # right answers of 196 seen and 4 held-out prompts at iterations 0, 10, 20, 30, and their phase
    "confusion": ([0, 100, 150, 180], [0, 0, 0, 4]), "memorisation": ([0, 196, 196, 196], [0, 4, 4, 3]),
    "comprehension": ([0, 196, 196, 196], [0, 0, 4, 4]), "grokking": ([0, 196, 196, 196], [0, 0, 3, 4])}


@pytest.fixture
def study(tmp_path) -> Path:
    """A study of two runs."""
    path = tmp_path / "sweep_two.py"
    path.write_text('"""Two?"""\nn_head = 2\nruns = [dict(n_embd=4, num_seeds=2), dict(n_embd=6)]\n')
    return path


def run(study: Path, *args: str, folder: str = "two") -> int:
    """Run a study, shortened, into a folder beside it."""
    return main([str(study), *TINY, f"--out_dir={study.parent / folder}", *args])


def study_of(name: str) -> dict:
    """The names in a study's file."""
    return config.execute(str(ROOT / f"config/sweep_{name}.py"))


def write_log(folder: Path, seen: list, unseen: list, pair: tuple = (5, 7), n_embd: int = 14,
              seed: int = 1337) -> dict:
    """A run of two seeds by hand: right answers at iterations 0, 10, ..., the same for both or, of what is
    held out, one number for each; 6 s for 10 iterations. Its config is returned."""
    c = {key: config.KEYS[key].default for key in config.KEYS}
    c |= {"out_dir": str(folder), "n_embd": n_embd, "num_seeds": 2, "max_iters": 10 * len(seen) - 10}
    both = [np.broadcast_to(n, 2).tolist() for n in unseen]
    rows = [dict.fromkeys(log.COLUMNS, "") | {
        "iter": 10 * i, "seed": seed + s, "train_loss": 0.649, "val_loss": 0.649, "elapsed_s": 6.0 * i,
        "add_correct": (seen[i] + both[i][s]) // 2, "add_total": 100, "math_acc": 0.5, "combined_acc": 0.5,
        "sub_correct": (seen[i] + both[i][s] + 1) // 2, "sub_total": 100,
        "heldout_correct": both[i][s], "heldout_total": 4} for i in range(len(seen)) for s in range(2)]
    folder.mkdir(parents=True)
    info = info_of(["math"], [seed, seed + 1], config=c, held_out=[pair], parameters=100 * n_embd,
                     data_sha256=data.load("as_math").sha256)
    log.start(folder, info, rows)
    return c


def test_a_study_is_trained_drawn_and_then_skipped(study, capsys):
    assert run(study) == 0
    said = capsys.readouterr().out
    assert "unknown until the first run is under way" in said and said.count("to do") == 2
    folders = sorted((study.parent / "two").iterdir())
    assert [path.name for path in folders] == ["n_embd_4", "n_embd_6"]
    wide, written = rows_of(folders[1]), (folders[0] / "results.csv").stat().st_mtime_ns
    assert len(wide) == 3 and "| n_embd_4 |" in (study.parent / "two.md").read_text()
    header, *lines = (folders[1] / "results.csv").read_text().splitlines(keepends=True)
    (folders[1] / "results.csv").write_text(header + "".join(lines[:2]))
    (folders[1] / "ckpt.pt").rename(study.parent / "ckpt.pt")
    with pytest.raises(config.UserError, match="n_embd_6 already holds a run"):
        run(study)
    assert "1 seed(s)  begun, at 2" in capsys.readouterr().out
    (study.parent / "ckpt.pt").rename(folders[1] / "ckpt.pt")
    assert run(study) == 0 and "2 seed(s)  done" in capsys.readouterr().out
    (folders[1] / "ckpt.pt").unlink()
    (folders[1] / "results.csv").write_text(header)  # killed as it began
    assert run(study) == 0 and rows_of(folders[1]) == wide
    assert (folders[0] / "results.csv").stat().st_mtime_ns == written
    for asked, says in (("num_seeds=3", "n_embd_4 has num_seeds = 2, the study asks for 3"),
                        ("max_iters=2", "n_embd_4 has done 4 iterations, the study asks for max_iters = 2")):
        with pytest.raises(config.UserError, match=says):
            run(study, f"--{asked}")


def test_ctrl_c_stops_the_study_and_the_next_call_goes_on(study, capsys, monkeypatch, signals):
    with monkeypatch.context() as patch:
        append = log.append
        patch.setattr(log, "append", lambda *args: (append(*args), os.kill(os.getpid(), signal.SIGINT)))
        assert run(study) == 130
    assert f"go on with:\npython sweep.py {study}" in capsys.readouterr().err
    assert not (study.parent / "two" / "n_embd_6").exists() and not (study.parent / "two.md").exists()
    assert run(study) == 0 and run(study, folder="again") == 0
    for name in ("n_embd_4", "n_embd_6"):
        assert rows_of(study.parent / "two" / name) == rows_of(study.parent / "again" / name)


def test_processes_that_start_together_train_each_run_once(study, capfd):
    """Under torchrun too, where each run is an ordinary one; and a run that another process trains is left
    alone, until that one ends without finishing it."""
    with Lock(study.parent / "two" / "n_embd_6"):
        assert run(study) == 0
    said = capfd.readouterr().out
    assert f"left alone: process {os.getpid()} is training in" in said and "1 of 2 runs are not done" in said
    assert not (study.parent / "two.md").exists()
    command = ["sweep.py", str(study), *TINY, f"--out_dir={study.parent}/many"]
    started = [subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={
        **os.environ, "TORCHELASTIC_RUN_ID": "x", "RANK": str(i), "WORLD_SIZE": "2"}) for i in range(2)]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "".join(said).count("parameters, ") == 2 and "| n_embd_6 |" in "".join(said)
    assert run(study) == 0 and "2 of 2" in capfd.readouterr().out
    for name in ("n_embd_4", "n_embd_6"):
        assert rows_of(study.parent / "two" / name) == rows_of(study.parent / "many" / name)


def test_a_run_that_was_left_alone_is_come_back_to(study, monkeypatch, capfd):
    """The other process, which ends while this one trains the next run, has not finished its own."""
    (other := Lock(study.parent / "two" / "n_embd_4")).__enter__()
    other.begun, append = True, log.append
    monkeypatch.setattr(log, "append", lambda *args: (append(*args), other.file.closed or other.__exit__()))
    assert run(study) == 0 and "left alone" in capfd.readouterr().out
    assert "| n_embd_4 |" in (study.parent / "two.md").read_text()


def test_held_out_pairs_are_trained_on_their_data(tmp_path):
    (tmp_path / "p.py").write_text('runs = [dict(held_out="3-8"), dict(held_out="5-7")]')
    assert run(tmp_path / "p.py", folder="p") == 0
    other = log.read_run(tmp_path / "p" / "held_out_3-8")
    assert other.info["held_out"] == [[3, 8]] and other.info["config"]["dataset"] == "as_math_3-8"
    right = 100 * other.columns["heldout_correct"][-1] / other.columns["heldout_total"][-1]
    assert np.mean(study_of("pairs")["pair_scores"](other)) == right.mean()


def test_table_by_hand(tmp_path):
    logs = [read_log(write_log(tmp_path / name, *curves)) for name, curves in CURVES.items()]
    # 3 of 4 answers; no seed of 2 has all, Wilson up to 65.8%; halfway from 0.767 to 0.531; 18 s
    row, = [row for row in table("t", logs).splitlines() if row.startswith("| memorisation")]
    assert [cell.strip() for cell in row.split("|")][1:-1] == [
        "memorisation", "1,400", "2", "0.3", "100 (100 to 100)", "75 (75 to 75)", "0 of 2 (0% to 65.8%)",
        "0.6490 (0.6490 to 0.6490)", "0.7670", "0.5310", "50 (50 to 50)"]
    for rank in range(3):  # of 18 s each
        write_log(tmp_path / "three" / f"rank_{rank}", *CURVES["grokking"], seed=10 * rank)
    logs[:] = logs[0], log.read_run(tmp_path / "three")
    logs[0].info["taken_from"] = "results/x: its first seeds"
    said = table("t", logs)
    assert "\nconfusion is taken from results/x: its first seeds, which says what it took.\n" in said
    assert [row.split("|")[4].strip() for row in said.splitlines()[-2:]] == ["-", "0.9"]


def test_time_left_by_hand(tmp_path):
    begun = write_log(tmp_path / "a", [0, 196, 196], [0, 0, 0])  # 12 s for 20 iterations of 2 seeds
    wide = begun | {"num_seeds": 1, "max_iters": 2000, "n_embd": 28}
    # 0.3 s per iteration and seed at width 14 with its 14 * (14 + 27) = 574; 28 * (28 + 27) = 1540 at 28
    expected = f"about {2000 * 0.3 * 1540 / 574 / 60:,.1f} min"
    assert time_left([begun, wide], [read_log(begun), None]) == expected
    assert time_left([wide], [None]) == "unknown until the first run is under way"


def test_what_a_study_draws_and_says(tmp_path, capsys):
    """On a figure of its own, of the runs that are done; what is wrong there is one line."""
    write_log(tmp_path / "s" / "n_embd_6", *CURVES["grokking"], n_embd=6)
    text = ("max_iters, num_seeds, runs = 30, 2, [dict(n_embd=6), dict(n_embd=8)]\n"
            "def draw(fig, logs):\n    fig.text(0, 0, 'x')\n    return f'{len(logs)} drawn'\n")
    (tmp_path / "s.py").write_text(text)
    command = [str(tmp_path / "s.py"), "--plot", f"--out_dir={tmp_path}/s"]
    assert main(command) == 0 and "1 of 2 runs are not done\n" in capsys.readouterr().out
    assert (tmp_path / "s.md").read_text().endswith("|\n\n1 drawn")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "s.py").write_text("table = False\n" + text.replace("return", "return 1 / 0 #"))
    with pytest.raises(config.UserError, match="s.py, line 5: ZeroDivisionError"):
        main(command)


def test_a_study_that_yields_is_a_film(tmp_path, capsys):
    """Written at once or not at all; without a table there is no text."""
    Image = pytest.importorskip("PIL.Image")
    write_log(tmp_path / "s" / "n_embd_6", *CURVES["grokking"], n_embd=6)
    text = ("max_iters, num_seeds, runs, table = 30, 2, [dict(n_embd=6)], False\n"
            "def draw(fig, logs):\n    for i in range(3):\n        fig.set_facecolor((i / 2, 0, 0))\n"
            "        yield\n")
    (tmp_path / "s.py").write_text(text)
    command = [str(tmp_path / "s.py"), "--plot", f"--out_dir={tmp_path}/s"]
    assert main(command) == 0 and capsys.readouterr().out == f"wrote {tmp_path}/s.gif\n"
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s.gif", "s.py"}
    with Image.open(tmp_path / "s.gif") as film:
        seen = []
        for i in range(film.n_frames):
            film.seek(i)
            seen.append((film.convert("RGB").getpixel((0, 0))[0], film.info["duration"]))
    assert [red for red, _ in seen] == pytest.approx([0, 127, 255], abs=2)
    assert seen[0][1] == 200 and sum(ms for _, ms in seen) >= 3 * 200 + 3000
    before = (tmp_path / "s.gif").read_bytes()
    (tmp_path / "s.py").write_text(text.replace("i / 2", "i / (1 - i)"))
    with pytest.raises(config.UserError, match="s.py, line 4: ZeroDivisionError"):
        main(command)
    assert (tmp_path / "s.gif").read_bytes() == before


def drawn(name: str, logs: list) -> tuple[Figure, str]:
    """What a published study draws of these logs, and says."""
    fig = Figure()
    return fig, study_of(name)["draw"](fig, logs)


def cells_of(ax) -> dict:
    """The numbers that stand in a plane, by column and row; they are those of the colours."""
    mesh, = ax.collections
    shown = {text.get_position(): float(text.get_text().split()[0]) for text in ax.texts}
    values = np.ma.filled(mesh.get_array(), np.nan)
    assert {at: round(values[at[::-1]]) for at in shown} == shown and len(shown) == np.isfinite(values).sum()
    return shown


def test_capacity_draws_seen_and_held_out_answers_with_their_intervals(tmp_path):
    unequal = [([0, 196], [[0, 0], [4, 2]]), ([0, 98], [[0, 0], [1, 1]])]
    logs = [read_log(write_log(tmp_path / f"{n}", *curves, n_embd=n)) for n, curves in zip((28, 6), unequal)]
    fig, _ = drawn("capacity", logs)
    top, bottom = fig.axes
    seen, mean, every = top.lines[:3]
    assert [seen.get_label(), mean.get_label()[:8]] == ["seen answers right", "held-out"]
    np.testing.assert_allclose(top.lines[0].get_xydata(), [[600, 50], [2800, 100]])
    np.testing.assert_allclose(top.lines[1].get_xydata(), [[600, 25], [2800, 75]])
    np.testing.assert_allclose(every.get_xydata(), [[600, 0], [2800, 50]])
    bars = [line[:, 1] for line in top.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[0, 65.76], [9.45, 90.55]], atol=0.01)  # Wilson of 0 and of 1 of 2
    assert top.get_title().endswith("most, 75%, at 2,800 parameters; 75% in the largest model")
    np.testing.assert_allclose(bottom.lines[1].get_ydata(), [0.649, 0.649])
    assert bottom.get_title().endswith("from 600 parameters on")


def test_pairs_draws_additions_above_the_diagonal(tmp_path, monkeypatch):
    study = study_of("pairs")
    logs = [read_log(write_log(tmp_path / f"{a}", [0, 196], [0, right], (a, 7)))
            for a, right in enumerate([4, 3, 3, 2, 4, 3])]
    monkeypatch.setitem(study, "pair_scores", lambda run: (run.info["held_out"][0][0], 50))
    said = study["draw"](fig := Figure(), logs)
    ax, = fig.axes  # the columns and rows are 0 to 5 and 7
    assert cells_of(ax) == {(6, a): a for a in range(6)} | {(a, 6): 50 for a in range(6)}
    assert ax.yaxis_inverted() and "above the diagonal: addition" in ax.get_xlabel()
    assert "rank 4 of 6 (95% bootstrap interval over seeds 4 to 4) by its mean held-out score, 75%." in said
    logs[0].info["held_out"] = [[3, 8], [2, 6]]
    with pytest.raises(config.UserError, match="hold out one pair each"):
        study["draw"](fig, logs)


def test_phase_draws_both_accuracies_and_names_the_phases(tmp_path):
    logs = [read_log(write_log(tmp_path / name, *curves, n_embd=n))
            for n, (name, curves) in enumerate(CURVES.items(), start=4)]
    fig, said = drawn("phase", logs)
    assert [ax.get_title() for ax in fig.axes] == ["seen answers right (%)", "held-out answers right (%)"]
    assert cells_of(fig.axes[0]) == {(0, 0): 92, (0, 1): 100, (0, 2): 100, (0, 3): 100}
    assert cells_of(fig.axes[1]) == {(0, 0): 100, (0, 1): 75, (0, 2): 100, (0, 3): 100}
    assert [row.split("|")[2].strip() for row in said.splitlines()[-4:]] == [*CURVES]


def test_numbers_draws_the_plane_its_line_and_one_width(tmp_path, monkeypatch):
    """Of made-up runs with 1 / (1 + (parameters / equations / 7)^3) of the held-out answers right."""
    study, logs = study_of("numbers"), []
    for n, width, end in [*itertools.product((10, 14, 20, 28), (14, 28, 56), [""]), (14, 28, "_exposure")]:
        parameters, folder = 6 * width ** 2, Path(f"numbers_{n}_n_embd_{width}{end}")
        right = np.round(400 / (1 + (parameters / study["TRAINED"][n] / 7) ** 3) + bool(end))
        columns = {"add_correct": 700 + right, "sub_correct": 100, "add_total": 1000, "sub_total": 400,
                   "heldout_correct": right, "heldout_total": 400}
        logs.append(log.RunLog(folder, {"numbers": n, "parameters": parameters, "config": {"n_embd": width}},
                               np.array([30]), {k: np.full((1, 2), v) for k, v in columns.items()}))
    monkeypatch.setitem(study, "within_1", lambda run: np.array([0.5, 1]))
    said = study["draw"](fig := Figure(), logs)
    left, right = fig.axes
    assert cells_of(left) == {(x, y): round(100 * logs[3 * x + y].columns["heldout_correct"][0, 0] / 400)
                              for x in range(4) for y in range(3)}
    assert {text.get_text().split()[1] for text in left.texts} == {"(80)"}
    assert "R^2 = 1.00 of x = parameters / equations" in said
    rows, columns = ([6 * n ** 2 for n in (14, 28, 56)], [*study["TRAINED"].values()][:4])
    x, y = (np.interp(along, range(len(values)), np.log(values))
            for along, values in zip(left.lines[0].get_data(), (columns, rows)))
    np.testing.assert_allclose(np.exp(y - x), 7, rtol=0.02)
    drawn = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata()) for line in right.lines}
    assert drawn["held-out"][0] == [10, 14, 20, 28] and drawn["seen, equal exposure"][0] == [10, 14]
    of = [100 * logs[i].columns["heldout_correct"][0, 0] / 400 for i in (1, 4, 7, 10, 12)]
    np.testing.assert_allclose(drawn["held-out"][1], of[:4])
    np.testing.assert_allclose(drawn["held-out, equal exposure"][1], [of[0], of[4]])
    assert set(drawn["seen"][1]) == {80} and set(drawn["held-out within 1"][1]) == {75}
    assert "cells are too few" in study["draw"](Figure(), logs[:1])  # an unfinished plane is drawn


def test_held_out_answers_within_1(monkeypatch):
    study, texts = study_of("numbers"), eval_as_math.answers_of(200)[None, :, None] + np.array([0, 1, -2])
    texts[0, 0] = 99  # is not held out
    held_out = np.arange(200) % 50 == 1
    monkeypatch.setattr(eval_as_math, "ask_again", lambda run: (texts.astype(str), held_out, ~held_out))
    assert study["within_1"](None) == pytest.approx([2 / 3])


def spots_of(ax) -> np.ndarray:
    """Where the digits 0 to 9 stand in a picture of them: (10, 2)."""
    assert [text.get_text() for text in ax.texts] == [*"0123456789"]
    return np.array([text.get_position() for text in ax.texts])


def test_digits_draws_some_models_and_the_order_in_all(tmp_path):
    """By their ckpt.pt or wte.npz; seed 7 alone has all held-out answers right."""
    rows, vocab = np.random.default_rng(0).normal(size=(3, 10, 14)).astype("f"), "\n +-0123456789<=>"
    folder = write_run(tmp_path / "math_mini_14")
    cfg = model.GPTConfig(block_size=9, vocab_size=17, n_layer=1, n_head=1, n_embd=14, mlp_expansion=1)
    ckpt = model.checkpoint(model.init_weights(cfg, SEEDS), cfg, vocab=vocab, seeds=SEEDS, iter_num=30,
                            config={}, tasks=["math"], held_out=[[5, 7]])
    for name in ("transformer.wte.weight", "lm_head.weight"):
        ckpt["model"][name][:, 4:14] = ckpt["model"][name].new_tensor(rows)
    model.save_checkpoint(folder / "ckpt.pt", ckpt)
    names = ["math_mini_14", *(f"math_mini_{size}_wd" for size in ("14", "28", "56", "mlt"))]
    for i, name in enumerate(names[1:]):
        wte = np.concatenate([np.zeros((1, 4, 14)), rows[:1] ** (i + 2), np.zeros((1, 3, 14))], axis=1)
        np.savez(write_run(tmp_path / name, seeds=range(1)) / "wte.npz", wte=wte, vocab=vocab)
    logs = [log.read_run(tmp_path / name) for name in names]
    cells, = helpers.rows_of(sweep_digits.draw(fig := Figure(), logs)).values()
    order, (n14, n14_wd) = [digit_order(one) for one in rows], [two_components(rows[0] ** k) for k in (1, 2)]
    p = permutation_test(np.array(order), np.array([True, False, False]))
    groups = {"n14": order, "n14, all held-out right": order[:1], f"n14, others: p = {p:.2g}": order[1:],
              **{f"{name}, regularised": [digit_order(rows[0] ** k)]
                 for k, name in enumerate(("n14", "n28", "n56", "MLT"), start=2)}}
    assert [(name, n) for name, n, *_ in cells] == [(name, str(len(x))) for name, x in groups.items()]
    assert [float(cell[2].split()[0]) for cell in cells] == pytest.approx(
        [np.mean(x) for x in groups.values()], abs=6e-4)
    assert float(cells[4][3]) == pytest.approx(100 * two_components(rows[0] ** 3)[1], abs=0.06)
    pictures, (orders,) = (part.axes for part in fig.subfigs)
    assert len(pictures) == 4 + 2  # of n14 two seeds more
    np.testing.assert_allclose(spots_of(pictures[0]), (rows[0] - rows[0].mean(0)) @ n14[0], atol=1e-5)
    np.testing.assert_allclose(spots_of(pictures[2]), (rows[2] - rows[2].mean(0))
                               @ two_components(rows[2])[0], atol=1e-5)
    assert pictures[3].get_title() == f"n14, regularised, seed 7: {n14_wd[1]:.0%} of variance"
    assert [text.get_text() for text in orders.get_yticklabels()] == [
        f"{name} ({len(x)})" for name, x in groups.items()]
    for i, seeds in enumerate(groups.values()):
        dots, mean = orders.lines[2 * i:2 * i + 2]
        np.testing.assert_allclose(dots.get_xdata(), seeds, atol=1e-5)
        np.testing.assert_allclose(mean.get_xdata(), np.mean(seeds), atol=1e-5)
        assert {round(y) for y in dots.get_ydata()} == {i}
    ckpt["seeds"] = [7, 8, 1]
    model.save_checkpoint(folder / "ckpt.pt", ckpt)
    with pytest.raises(config.UserError, match="ckpt.pt is of other seeds"):
        sweep_digits.draw(Figure(), logs)


HEADER = "seed,iter,parameters,test,asked,right,off_1,off_2,off_more,none,answers\n"
ANSWERS = [  # of two seeds, of which the first says what is beside, the second the diagonal's, once
    "7,{it},{size},held-out,4,0,1,0,0,0,5+7=11 7+5=13 5-7=-3 7-5=1",
    "8,{it},{size},held-out,4,0.5,0,0.25,0,0.25,5+7=12 7+5=14 5-7=nan 7-5=2",
    *(f"{seed},{{it}},{{size}},{test},280,0.{seed},0.1,0.05,0.0{seed},0," for seed in (7, 8)
      for test in ("seen", "line", "control"))]


def test_inside_draws_how_far_answers_are_off_and_the_line(tmp_path):
    """Of n14 and the MLT at the end, of two sizes, and of n14 through training."""
    (folder := tmp_path / "answers").mkdir()
    for name, size, iters in (("n14", 1456, [30]), ("mlt", 9999, [30]), ("n_embd_6", 336, [30]),
                              ("training_n14", 1456, [0, 10, 20])):
        rows = [line.format(it=it, size=size) for it in iters for line in ANSWERS]
        (folder / f"{name}.csv").write_text(HEADER + "\n".join(rows) + "\n")
    logs = [log.RunLog(tmp_path / f"math_mini_{size}", {}, None, {}) for size in ("14", "28", "mlt", "14_wd")]
    models, sizes, training = helpers.rows_of(sweep_inside.draw(fig := Figure(), logs)).values()
    held_out = ["2", "held-out", "4", "25 (0 to 50)", "50 (0 to 100)", "12.5 (0 to 25)", "0 (0 to 0)",
                "12.5 (0 to 25)", "75 (50 to 100)", "12.5 (0 to 25)"]
    line = ["2", "line", "280", "75 (70 to 80)", "10 (10 to 10)", "5 (5 to 5)", "7.5 (7 to 8)", "0 (0 to 0)",
            "85 (80 to 90)", "-"]
    assert [row for row in models if row[2] in ("held-out", "line")] == [
        [name, *cells] for name in ("n14", "MLT") for cells in (held_out, line)]
    assert [row[0] for row in sizes] == ["336 parameters"] * 4 + ["1,456 parameters"] * 4
    assert [row[0] for row in training] == ["n14, iteration 20"] * 4
    ladder, uses, through, empty, over, legend = fig.axes
    for ax, widths in ((ladder, [25, 50, 12.5, 0, 12.5]), (uses, [75, 10, 5, 7.5, 0])):
        bars = [[(bar.get_x(), bar.get_width()) for bar in bars] for bars in ax.containers]
        edges = np.cumsum([0, *widths])
        np.testing.assert_allclose(bars, [[each] * (2 if ax is ladder else 4) for each in zip(edges, widths)])
    assert [text.get_text() for text in uses.get_yticklabels()] == [
        "n14, line", "n14, control", "MLT, line", "MLT, control"]
    shown = ("25", "50", "12", "", "12")
    assert [text.get_text() for text in ladder.texts] == [number for number in shown for _ in models[::4]]
    for ax, x in ((through, [10, 20]), (over, [336, 1456])):
        curves = {line.get_label().split(":")[0]: line.get_xydata() for line in ax.lines}
        for name, y in (("seen", 75), ("held-out", 25), ("line", 75), ("line, off by 1 at most", 85)):
            np.testing.assert_allclose(curves[name], [(at, y) for at in x])
        bands = [band.get_paths()[0].vertices[:, 1] for band in ax.collections]
        np.testing.assert_allclose([(min(y), max(y)) for y in bands],
                                   [(70, 80), (0, 50), (70, 80), (80, 90), (70, 80)])
    assert not empty.lines and len(legend.get_legend().get_texts()) == 10
    (folder / "n14.csv").write_text(HEADER + ANSWERS[0].format(it=30, size=1456) + "\n")
    with pytest.raises(config.UserError, match="n14.csv: damaged"):
        sweep_inside.draw(Figure(), logs)


def test_learning_has_a_frame_for_each_kept_checkpoint(tmp_path, monkeypatch):
    """Of answers right, off by 1, 2, 3, and no number, three equations each."""
    answers = eval_as_math.answers_of(200)
    kinds = np.arange(200) // 3 % 5
    texts = np.array([f"{answer + kind}>" if kind < 4 else "?" for answer, kind in zip(answers, kinds)])
    monkeypatch.setattr(eval_as_math, "ask", lambda *args, **sampling: texts[None, :, None])
    logs = [log.read_run(train(tmp_path / f"n{n}", "--keep_every=10", f"--n_embd={n}")) for n in (4, 6)]
    fig, iters = Figure(), []
    for _ in sweep_learning.draw(fig, logs):
        iters.append(fig.get_suptitle())
        name = f"ckpt_{int(iters[-1].split()[1]):06}.pt"
        small, *tables, large, _, _ = fig.axes
        assert small.get_title().startswith("n4:") and large.get_title().startswith("n6:")
        now, end = (open_model(str(tmp_path / "n6"), ckpt).embedding()[0, 4:14] for ckpt in (name, "ckpt.pt"))
        np.testing.assert_allclose(spots_of(large), (now - now.mean(0)) @ two_components(end)[0], atol=1e-5)
        np.testing.assert_array_equal([ax.images[0].get_array() for ax in tables], kinds.reshape(2, 10, 10))
        assert {frame.get_xy() for frame in tables[0].patches} == {(4.5, 6.5), (6.5, 4.5)}
    assert iters == ["iteration 0", "iteration 10", "iteration 20"]
    (tmp_path / "n4" / "ckpt_000000.pt").unlink()
    assert len([*sweep_learning.draw(fig, logs)]) == 2
    for path in (tmp_path / "n4").glob("ckpt_0*.pt"):
        path.unlink()
    with pytest.raises(config.UserError, match="no kept checkpoints"):
        next(sweep_learning.draw(fig, logs))


@pytest.mark.parametrize("name", ["capacity", "numbers", "pairs", "phase", "digits", "inside"])
def test_published_studies_are_those_of_the_committed_logs(tmp_path, name):
    """Every run of the study, as its file asks for it; of numbers those that came to an end."""
    study, runs = read_study(f"config/sweep_{name}.py", {"out_dir": str(ROOT / "results" / name)})
    logs = [run for c in runs if (run := read_log(c)) or name != "numbers"]
    draw(study | {"out_dir": str(tmp_path / name)}, logs)
    published = ROOT / "results" / f"{name}.md"
    assert (tmp_path / f"{name}.md").read_text() == published.read_text()


@pytest.mark.parametrize("text, args, says", [
    ("", [], "expected runs ="), ("runs = [6]", [], "expected runs ="), ("runs = 6", [], "runs = 6 will"),
    ("runs = [dict(n_embed=6)]", [], "unknown key n_embed (did you mean n_embd?)"),
    ("runs = [dict(n_embd='6')]", [], "n_embd = '6' will not do"),
    ("runs = [dict(base='config/no.py')]", [], "config/no.py"),
    ("runs = [dict(held_out='5')]", [], "held_out"), ("runs = [{}]\ndraw = 'pie'", [], "expected a function"),
    ("runs = [dict(name='a'), dict(name='a')]", [], "run 2 is a as one before"),
    ("runs = [{}]", ["--name=a"], "unknown argument"),
    ("runs = [{}]", ["--wd"], "sweep_bad_wd.py"),
    ("runs = [{}]", ["--overwrite=True"], "unknown argument"), ("runs = [{}]", ["b.py"], "2 studies")])
def test_mistakes_are_one_line(tmp_path, text, args, says):
    path = tmp_path / "sweep_bad.py"
    path.write_text(text)
    with pytest.raises(config.UserError) as e:
        main([str(path), f"--out_dir={tmp_path}/bad", *args])
    assert says in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "bad").exists()


def test_the_studies_of_the_repository():
    runs = {name: read_study(f"config/sweep_{name}.py", {})[1]
            for name in ("paper", "paper_wd", "capacity", "pairs", "phase", "long", "digits", "learning")}
    assert [*map(len, runs.values())] == [12, 12, 14, 45, 25, 4, 8, 2]
    assert runs["digits"][0]["out_dir"] == "results/math_mini_14"
    assert {(one["out_dir"], one["keep_every"], one["num_seeds"]) for one in runs["learning"]} == {
        ("results/learning/n14", 50, 1), ("results/learning/n28", 50, 1)}
    assert {(one["out_dir"], one["num_seeds"]) for one in runs["paper"]} >= {
        ("paper/math_mini_14", 64), ("paper/both_mini_28", 32), ("paper/math_mini_mlt", 1)}
    assert {one["eval_interval"] for one in runs["capacity"] + runs["pairs"] + runs["phase"]} == {1000}
    assert runs["pairs"][0]["out_dir"] == "results/pairs/held_out_0-1"
    few, many = (one["dataset"] for one in runs["phase"][1:3])
    assert many.startswith(few) and many.count("-") == 5
