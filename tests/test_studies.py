"""The studies: what each draws of made-up runs, and that what is published comes from the logs here."""
import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import config
import eval_as_math
import model
from config import (
    sweep_capacity,
    sweep_digits,
    sweep_inside,
    sweep_learning,
    sweep_numbers,
    sweep_pairs,
    sweep_phase,
)
from data import log
from data.stats import digit_order, permutation_test, two_components
from helpers import ROOT, rows_of, train
from runs import CURVES, SEEDS, write_log, write_run
from sample import open_model
from sweep import draw, read_log, read_study


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
    sweep_capacity.draw(fig := Figure(), logs)
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
    logs = [read_log(write_log(tmp_path / f"{a}", [0, 196], [0, right], (a, 7)))
            for a, right in enumerate([4, 3, 3, 2, 4, 3])]
    monkeypatch.setattr(sweep_pairs, "pair_scores", lambda run: (run.info["held_out"][0][0], 50))
    said = sweep_pairs.draw(fig := Figure(), logs)
    ax, = fig.axes  # the columns and rows are 0 to 5 and 7
    assert cells_of(ax) == {(6, a): a for a in range(6)} | {(a, 6): 50 for a in range(6)}
    assert ax.yaxis_inverted() and "above the diagonal: addition" in ax.get_xlabel()
    assert "rank 4 of 6 (95% bootstrap interval over seeds 4 to 4) by its mean held-out score, 75%." in said
    logs[0].info["held_out"] = [[3, 8], [2, 6]]
    with pytest.raises(config.UserError, match="hold out one pair each"):
        sweep_pairs.draw(fig, logs)


def test_phase_draws_both_accuracies_and_names_the_phases(tmp_path):
    logs = [read_log(write_log(tmp_path / name, *curves, n_embd=n))
            for n, (name, curves) in enumerate(CURVES.items(), start=4)]
    said = sweep_phase.draw(fig := Figure(), logs)
    assert [ax.get_title() for ax in fig.axes] == ["seen answers right (%)", "held-out answers right (%)"]
    assert cells_of(fig.axes[0]) == {(0, 0): 92, (0, 1): 100, (0, 2): 100, (0, 3): 100}
    assert cells_of(fig.axes[1]) == {(0, 0): 100, (0, 1): 75, (0, 2): 100, (0, 3): 100}
    assert [row.split("|")[2].strip() for row in said.splitlines()[-4:]] == [*CURVES]


def test_numbers_draws_the_plane_its_line_and_one_width(tmp_path, monkeypatch):
    """Of made-up runs, most of whose held-out answers are right at 7 parameters an equation."""
    logs = []
    for n, width, end in [*itertools.product((10, 14, 20, 28), (14, 28, 56), [""]), (14, 28, "_exposure")]:
        parameters, folder = 6 * width ** 2, Path(f"numbers_{n}_n_embd_{width}{end}")
        right = np.round(300 * np.exp(-np.log(parameters / sweep_numbers.TRAINED[n] / 7) ** 2) + bool(end))
        columns = {"add_correct": 700 + right, "sub_correct": 100, "add_total": 1000, "sub_total": 400,
                   "heldout_correct": right, "heldout_total": 400}
        logs.append(log.RunLog(folder, {"numbers": n, "parameters": parameters, "config": {"n_embd": width}},
                               np.array([30]), {k: np.full((1, 2), v) for k, v in columns.items()}))
    monkeypatch.setattr(sweep_numbers, "within_1", lambda run: np.array([0.5, 1]))
    said = sweep_numbers.draw(fig := Figure(), logs)
    left, right = fig.axes
    assert cells_of(left) == {(x, y): round(100 * logs[3 * x + y].columns["heldout_correct"][0, 0] / 400)
                              for x in range(4) for y in range(3)}
    assert {text.get_text().split()[1] for text in left.texts} == {"(80)"}
    assert "R^2 = 1.00 of x = parameters / equations" in said
    rows, columns = ([6 * n ** 2 for n in (14, 28, 56)], [*sweep_numbers.TRAINED.values()][:4])
    x, y = (np.interp(along, range(len(values)), np.log(values))
            for along, values in zip(left.lines[0].get_data(), (columns, rows)))
    np.testing.assert_allclose(np.exp(y - x), 7, rtol=0.02)
    drawn = [(line.get_xdata().tolist(), line.get_ydata()) for line in right.lines]
    assert [line.get_label() for line in right.lines][:3] == ["seen", "held-out", "held-out within 1"]
    assert [x for x, _ in drawn] == [[10, 14, 20, 28]] * 3 + [[10, 14]] * 3 + [[]]  # with equal exposure
    shares = [100 * logs[i].columns["heldout_correct"][0, 0] / 400 for i in (1, 4, 7, 10, 12)]
    np.testing.assert_allclose(drawn[1][1], shares[:4])
    np.testing.assert_allclose(drawn[4][1], [shares[0], shares[4]])
    assert {*drawn[0][1], *drawn[3][1]} == {80} and {*drawn[2][1], *drawn[5][1]} == {75}
    assert "cells are too few" in sweep_numbers.draw(Figure(), logs[:1])  # an unfinished plane is drawn
    for i, run in enumerate(logs):  # a plane that no line explains has none
        run.columns["heldout_correct"] = np.full((1, 2), 400.0 * (i % 2))
    assert "R^2 = 0" in sweep_numbers.draw(fig := Figure(), logs) and not fig.axes[0].lines


def test_held_out_answers_within_1(monkeypatch):
    texts = eval_as_math.answers_of(200)[None, :, None] + np.array([0, 1, -2])
    texts[0, 0] = 99  # is not held out
    held_out = np.arange(200) % 50 == 1
    monkeypatch.setattr(eval_as_math, "ask_again", lambda run: (texts.astype(str), held_out, ~held_out))
    assert sweep_numbers.within_1(None) == pytest.approx([2 / 3])


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
    cells, = rows_of(sweep_digits.draw(fig := Figure(), logs)).values()
    order, (n14, n14_wd) = [digit_order(one) for one in rows], [two_components(rows[0] ** k) for k in (1, 2)]
    p = permutation_test(np.array(order), np.array([True, False, False]))
    groups = {"n14": order, "n14, all held-out right": order[:1],
              f"n14, others (difference: p = {p:.2g})": order[1:]}
    for k, name in enumerate(("n14", "n28", "n56", "MLT"), start=2):
        groups[f"{name}, regularised"] = [digit_order(rows[0] ** k)]
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
    "8,{it},{size},held-out,4,0.5,0,0.25,0,0.25,5+7=14 7+5=12 5-7=nan 7-5=2",
    *(f"{seed},{{it}},{{size}},{test},280,0.{seed},0.1,0.05,0.0{seed},0," for seed in (7, 8)
      for test in ("seen", "line", "control"))]


def test_inside_draws_how_far_answers_are_off_and_the_line(tmp_path):
    """Of n14, which kept a checkpoint, and the MLT at the end, of two sizes, and of n14 through training."""
    (folder := tmp_path / "answers").mkdir()
    for name, size, iters in (("n14", 1456, [20, 30]), ("mlt", 9999, [30]), ("n_embd_6", 336, [30]),
                              ("training_n14", 1456, [0, 10, 20])):
        rows = [line.format(it=it, size=size) for it in iters for line in ANSWERS]
        rows = [row for row in rows if row[0] == "7" or name != "n_embd_6"]  # which has one seed
        (folder / f"{name}.csv").write_text(HEADER + "\n".join(rows) + "\n")
    logs = [log.RunLog(tmp_path / f"math_mini_{size}", {}, None, {}) for size in ("14", "28", "mlt", "14_wd")]
    models, sizes, training = rows_of(sweep_inside.draw(fig := Figure(), logs)).values()
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
    alone, both = (70, 70, 0), (70, 80, 25)  # interval of the line, held-out
    for ax, expected in ((through, {10: both, 20: both}), (over, {336: alone, 1456: both})):
        curves = {line.get_label().split(":")[0]: dict(line.get_xydata()) for line in ax.lines}
        band = ax.collections[2].get_paths()[0].vertices
        for x, (low, high, unseen) in expected.items():
            assert [curves[name][x] for name in ("seen", "held-out", "line")] == (
                pytest.approx([(low + high) / 2, unseen, (low + high) / 2]))
            assert {y for at, y in band.round(6) if at == x} == {low, high}
    assert not empty.lines and len(legend.get_legend().get_texts()) == 9
    (folder / "n14.csv").write_text(HEADER + ANSWERS[0].format(it=30, size=1456) + "\n")
    with pytest.raises(config.UserError, match="n14.csv: damaged"):
        sweep_inside.draw(Figure(), logs)
    (folder / "n14.csv").unlink()
    with pytest.raises(config.UserError, match="n14.csv is not there; python eval_as_math.py"):
        sweep_inside.draw(Figure(), logs)


def test_learning_has_a_frame_for_each_kept_checkpoint(tmp_path, monkeypatch):
    """Of answers right, off by 1, 2, 3, and no number, three equations each."""
    answers = eval_as_math.answers_of(200)
    kinds = np.arange(200) // 3 % 5
    texts = np.array([f"{answer + kind}>" if kind < 4 else "?" for answer, kind in zip(answers, kinds)])
    monkeypatch.setattr(eval_as_math, "ask", lambda *args, **sampling: texts[None, :, None])
    logs = [log.read_run(train(tmp_path / f"n{n}", "--keep_every=10", f"--n_embd={n}")) for n in (4, 6)]
    fig, iters, limits = Figure(), [], set()
    for _ in sweep_learning.draw(fig, logs):
        iters.append(fig.get_suptitle())
        name = f"ckpt_{int(iters[-1].split()[1]):06}.pt"
        small, *tables, large, _, _ = fig.axes
        assert small.get_title().startswith("n4:") and large.get_title().startswith("n6:")
        now, end = (open_model(str(tmp_path / "n6"), ckpt).embedding()[0, 4:14] for ckpt in (name, "ckpt.pt"))
        np.testing.assert_allclose(spots_of(large), (now - now.mean(0)) @ two_components(end)[0], atol=1e-5)
        limits = {*limits, large.get_xlim(), large.get_ylim()}
        np.testing.assert_array_equal([ax.images[0].get_array() for ax in tables], kinds.reshape(2, 10, 10))
        assert {frame.get_xy() for frame in tables[0].patches} == {(4.5, 6.5), (6.5, 4.5)}
    assert iters == ["iteration 0", "iteration 10", "iteration 20"] and len(limits) == 1
    (tmp_path / "n4" / "ckpt_000000.pt").unlink()
    assert len([*sweep_learning.draw(fig, logs)]) == 2
    for path in (tmp_path / "n4").glob("ckpt_0*.pt"):
        path.unlink()
    with pytest.raises(config.UserError, match="no kept checkpoints"):
        next(sweep_learning.draw(fig, logs))


@pytest.mark.parametrize("name", ["capacity", "numbers", "pairs", "phase", "digits", "inside", "long"])
def test_published_studies_are_those_of_the_committed_logs(tmp_path, name):
    """Every run of the study, as its file asks for it."""
    study, runs = read_study(f"config/sweep_{name}.py", {"out_dir": str(ROOT / "results" / name)})
    draw(study | {"out_dir": str(tmp_path / name)}, [read_log(c) for c in runs])
    published = ROOT / "results" / f"{name}.md"
    assert (tmp_path / f"{name}.md").read_text() == published.read_text()
