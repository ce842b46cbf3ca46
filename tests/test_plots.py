"""The figures and tables, from logs written here: what they show, and that bad logs change nothing."""
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

import config
import plot_all_models
import plot_results
import train_with_eval
from config import UserError
from helpers import ROOT, contents, run_script

COLUMNS = list(train_with_eval.COLUMNS)
SEEDS = [7, 8, 9]
ITERS = [0, 10, 20, 30]
# right answers of 100 at each iteration (rows) and seed (columns)
ADD = [[0, 10, 20], [50, 60, 100], [100, 90, 100], [100, 100, 98]]
SUB = [[0, 5, 1], [40, 70, 100], [100, 100, 99], [100, 100, 97]]
HELDOUT = [[0, 0, 1], [2, 3, 4], [4, 4, 4], [4, 3, 1]]  # of 4
FACTS = [[0, 0, 0], [50, 50, 20], [50, 49, 50], [50, 10, 50]]  # of 50
LOSS = [[3.0, 2.9, 2.8], [1.5, 1.2, 0.8], [0.9, 0.8, 0.7], [0.8, 0.75, 0.6]]
TASKS = {"math": ["math"], "facts": ["facts"], "both": ["math", "facts"]}


def row(i: int, s: int, tasks: list[str]) -> dict:
    """The row of results.csv at iteration i of seed s, as the trainer would write it."""
    right, asked = 0, 0
    cells = dict.fromkeys(COLUMNS, "") | {"iter": ITERS[i], "seed": SEEDS[s], "train_loss": LOSS[i][s],
                                          "val_loss": LOSS[i][s], "elapsed_s": 50 * i}
    if "math" in tasks:
        cells |= {"add_correct": ADD[i][s], "add_total": 100, "sub_correct": SUB[i][s], "sub_total": 100,
                  "math_acc": (ADD[i][s] + SUB[i][s]) / 200,
                  "heldout_correct": HELDOUT[i][s], "heldout_total": 4}
        right, asked = right + ADD[i][s] + SUB[i][s], asked + 200
    if "facts" in tasks:
        cells |= {"facts_correct": FACTS[i][s], "facts_total": 50, "facts_acc": FACTS[i][s] / 50}
        right, asked = right + FACTS[i][s], asked + 50
    return cells | {"combined_acc": right / asked}


def write_run(folder: Path, operation: str = "math", seeds: int = 3) -> Path:
    """A run's folder with its log and config.json."""
    folder.mkdir(parents=True)
    tasks = TASKS[operation]
    rows = [row(i, s, tasks) for i in range(len(ITERS)) for s in range(seeds)]
    lines = [",".join(COLUMNS), *(",".join(str(r[k]) for k in COLUMNS) for r in rows)]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    notes = {"config": {}, "parameters": 1456, "seeds": SEEDS[:seeds], "tasks": tasks, "loss_floor": 0.531,
             "rule_loss": 0.767, "device": "an abacus"}
    (folder / "config.json").write_text(json.dumps(notes))
    return folder


def rewrite(folder: Path, change) -> None:
    """Put `change(cells)` in the place of every row of a run's log."""
    with open(folder / "results.csv", newline="") as f:
        rows = [change(cells) for cells in csv.DictReader(f)]
    lines = [",".join(COLUMNS), *(",".join(str(cells[k]) for k in COLUMNS) for cells in rows)]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")


def drawn(folder: Path, operation: str):
    """A run's picture: its strips, the lines of the top one by label, and those of the loss's by label."""
    run = plot_results.read_run(folder)
    strips = plot_results.figure(run, plot_results.tasks_of(run, operation)).axes
    return strips, *({line.get_label(): line for line in ax.lines} for ax in (strips[0], strips[-1]))


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """A dict that takes the figures that the scripts save, by file name; they are still written."""
    figures, save = {}, plot_results.save

    def keep(fig, path):
        figures[path.name] = fig
        save(fig, path)

    for script in (plot_results, plot_all_models):
        monkeypatch.setattr(script, "save", keep)
    return figures


def test_columns_are_those_of_the_trainer():
    assert set(plot_results.COLUMNS) <= set(COLUMNS)


def test_read_run_gives_iterations_by_seeds(tmp_path):
    run = plot_results.read_run(write_run(tmp_path / "run"))
    assert run.iters.tolist() == ITERS
    assert run.columns["add_correct"].tolist() == ADD
    assert run.columns["train_loss"].tolist() == LOSS
    assert np.isnan(run.columns["facts_acc"]).all() and run.columns["facts_acc"].shape == (4, 3)


def test_math_curves_are_medians_in_the_papers_colours(tmp_path):
    _, left, right = drawn(write_run(tmp_path / "run"), "math")
    for label, counts, asked, color, style in (("addition", ADD, 100, "#009e73", "-"),
                                               ("subtraction", SUB, 100, "#0072b2", ":")):
        line = left[label]
        assert line.get_xdata().tolist() == ITERS
        np.testing.assert_allclose(line.get_ydata(), np.median(counts, axis=1) / asked * 100)
        assert (to_hex(line.get_color()), line.get_linestyle()) == (color, style)
    np.testing.assert_allclose(right["loss"].get_ydata(), [2.9, 1.2, 0.8, 0.75])
    assert "capitals" not in left


def test_facts_curve(tmp_path):
    _, left, _ = drawn(write_run(tmp_path / "run", "both"), "facts")
    assert set(left) == {"capitals", "everything right, % of seeds"}
    np.testing.assert_allclose(left["capitals"].get_ydata(), [0, 100, 100, 100])
    assert to_hex(left["capitals"].get_color()) == "#e69f00"


def test_bands_go_from_10_to_90_percent(tmp_path):
    strips, _, _ = drawn(write_run(tmp_path / "run"), "math")
    bands = {to_hex(b.get_facecolor()[0]): b.get_paths()[0].vertices for b in strips[0].collections}
    assert len(bands) == 2
    for color, counts in (("#009e73", ADD), ("#0072b2", SUB)):
        for x, values in zip(ITERS, counts, strict=True):
            there = [y for at, y in bands[color] if at == x]
            np.testing.assert_allclose([min(there), max(there)], np.quantile(values, [0.1, 0.9]))


def test_one_seed_has_no_band(tmp_path):
    strips, left, right = drawn(write_run(tmp_path / "run", seeds=1), "math")
    assert not any(ax.collections for ax in strips)
    assert left["addition"].get_ydata().tolist() == [0, 50, 100, 100]
    assert right["loss"].get_ydata().tolist() == [3.0, 1.5, 0.9, 0.8]


@pytest.mark.parametrize("seeds, shares", [
    (3, [[1 / 3, 1, 1, 1], [0, 1, 1, 2 / 3], [0, 2 / 3, 1, 2 / 3], [0, 1 / 3, 1, 1 / 3]]),
    (1, [[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])])
def test_held_out_strip_stacks_shares_of_seeds(tmp_path, seeds, shares):
    """From pale to dark: the seeds with some, half, three quarters, all of the held-out answers right."""
    strips, _, _ = drawn(write_run(tmp_path / "run", "both", seeds), "both")
    assert len(strips) == 3 and not strips[1].texts
    steps = strips[1].patches
    assert [step.get_label().split(": ")[1] for step in steps] == list(plot_results.HELDOUT)
    for step, values in zip(steps, shares, strict=True):
        np.testing.assert_allclose(step.get_data().values, 100 * np.array(values))
        assert step.get_data().edges.tolist() == [-0.5, 5, 15, 25, 30.5]
    greys = [np.mean(step.get_facecolor()[:3]) for step in steps]
    assert (np.diff(greys) < -0.1).all()


def test_held_out_that_no_seed_ever_answers_is_said(tmp_path):
    folder = write_run(tmp_path / "run", seeds=1)
    rewrite(folder, lambda cells: cells | {"heldout_correct": 0})
    strips, _, _ = drawn(folder, "math")
    assert strips[1].texts[0].get_text() == "none right at any evaluation"


def test_a_single_evaluation_is_seen(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = (folder / "results.csv").read_text().splitlines(keepends=True)
    (folder / "results.csv").write_text("".join(lines[:4]))
    strips, left, _ = drawn(folder, "math")
    assert left["addition"].get_marker() == "."
    assert strips[1].patches[0].get_data().edges.tolist() == [-0.5, 0.5]


def test_reference_losses_are_named_and_at_their_heights(tmp_path):
    _, _, right = drawn(write_run(tmp_path / "run"), "math")
    for label, height in (("rule-follower's loss: 0.767", 0.767), ("memoriser's loss: 0.531", 0.531)):
        assert set(right[label].get_ydata()) == {height}
        assert right[label].is_dashed() and right[label].get_linewidth() < 1


@pytest.mark.parametrize("operation, seeds, dots", [
    ("math", 3, {10: 100 / 3, 20: 100 / 3, 30: 200 / 3}),
    ("math", 1, {20: 100, 30: 100}),
    ("facts", 3, {10: 200 / 3, 20: 200 / 3, 30: 200 / 3}),
    ("both", 3, {20: 100 / 3, 30: 100 / 3}),
])
def test_red_dots_exactly_where_everything_is_right(tmp_path, operation, seeds, dots):
    _, left, _ = drawn(write_run(tmp_path / "run", "both", seeds), operation)
    line = left["everything right, % of seeds"]
    assert line.get_xdata().tolist() == list(dots)
    np.testing.assert_allclose(line.get_ydata(), list(dots.values()))
    assert (to_hex(line.get_color()), line.get_marker(), line.get_linestyle()) == ("#cc0000", "o", "None")


def test_plot_results_writes_the_picture_with_one_legend(tmp_path, monkeypatch):
    saved = keep_figures(monkeypatch)
    folder = write_run(tmp_path / "both_mini_14", "both")
    plot_results.main([f"--model_folder={folder}"])
    plot_results.main([f"--model_folder={folder}", "--operation=facts", "--format", "pdf"])
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "plot.pdf").read_bytes().startswith(b"%PDF")
    labels = [[text.get_text() for text in saved[f"plot.{k}"].legends[0].get_texts()] for k in ("png", "pdf")]
    loss = {plot_results.BAND, "loss", "rule-follower's loss: 0.767", "memoriser's loss: 0.531"}
    assert len(labels[0]) == len(set(labels[0])) == 12 and set(labels[0][8:]) == loss
    heldout = {f"held-out (5,7): {name}" for name in plot_results.HELDOUT}
    assert {x for x in labels[0] if x.strip()} - set(labels[1]) == {"addition", "subtraction"} | heldout
    assert saved["plot.png"].axes[0].get_title() == "both_mini_14: 1,456 parameters, 3 seeds"


def test_same_log_same_bytes(tmp_path):
    folder = write_run(tmp_path / "run")
    for kind in ("png", "pdf"):
        plot_results.main([f"--model_folder={folder}", f"--format={kind}"])
    before = contents(folder)
    for kind in ("png", "pdf"):
        plot_results.main([f"--model_folder={folder}", f"--format={kind}"])
    assert contents(folder) == before


def test_plots_do_not_load_torch():
    code = "import sys, plot_all_models; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert run_script("-c", code).returncode == 0


@pytest.mark.parametrize("k, n, low, high", [(8, 8, 0.6756, 1), (0, 8, 0, 0.3244), (7, 8, 0.5291, 0.9776),
                                             (50, 100, 0.4038, 0.5962), (0, 1, 0, 0.7935)])
def test_wilson(k, n, low, high):
    np.testing.assert_allclose(plot_all_models.wilson(k, n), (low, high), atol=1e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_limits_solve_its_equation(kn):
    k, n = kn
    low, high = plot_all_models.wilson(k, n)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1
    for p in (low, high):  # at a limit the share is 1.96 standard errors away
        assert math.isclose((k / n - p) ** 2, 1.959964 ** 2 * p * (1 - p) / n, rel_tol=1e-6, abs_tol=1e-9)


def table_rows(folder: Path, name: str = "tables.md") -> dict[str, list[list[str]]]:
    """The rows of each table in tables.md, by the table's heading."""
    tables: dict[str, list[list[str]]] = {}
    for line in (folder / name).read_text().splitlines():
        if line.startswith("## "):
            rows = tables[line[3:]] = []
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def write_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three runs; results/ is a folder beside it, with one run more."""
    monkeypatch.setattr(plot_all_models, "RESULTS", folder / "results")
    write_run(folder / "results" / "math_mini_28", seeds=1)
    write_run(folder / "results" / "math_mini_14", seeds=1)  # hidden by the one under root
    for operation in TASKS:
        write_run(folder / "root" / f"{operation}_mini_14", operation)
    return folder / "root"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """`write_root` for a test that changes it."""
    return write_root(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict[str, Figure], str]:
    """A root after plot_all_models: the folder, the three grids by file name, what was printed."""
    with (pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(io.StringIO()) as printed,
          warnings.catch_warnings(action="error")):
        root, saved = write_root(tmp_path_factory.mktemp("all"), monkeypatch), keep_figures(monkeypatch)
        plot_all_models.main([f"--root_dir={root}"])
    return root, {name: fig for name, fig in saved.items() if name != "plot.png"}, printed.getvalue()


def test_tables_best_last_and_the_papers(published):
    root, _, printed = published
    math_table, facts, both = list(table_rows(root).values())[:3]
    # best by math_acc, the first of equals: seed 7 at 20, seed 8 at 30, seed 9 at 10
    assert math_table[2:5] == [
        ["n14", "paper", "100%", "100%", "40/40", "-", "1", "-", "-", "-"],
        ["n14", "best", "100% (100% to 100%)", "100% (100% to 100%)", "11/12",
         "2 of 3: 66.67% (20.8% to 93.9%)", "3", "10 to 30", "2.5", "an abacus"],
        ["n14", "last", "99.33% (98% to 100%)", "99% (97% to 100%)", "8/12",
         "1 of 3: 33.33% (6.15% to 79.2%)", "3", "30", "2.5", "an abacus"]]
    # seed 7 at 10, seed 8 at 10, seed 9 at 20
    assert facts[2:5] == [["n14", "paper", "8.2%", "1", "-", "-", "-"],
                          ["n14", "best", "100% (100% to 100%)", "3", "10 to 20", "2.5", "an abacus"],
                          ["n14", "last", "73.33% (20% to 100%)", "3", "30", "2.5", "an abacus"]]
    assert both[2][2:7] == ["31.2%", "39.4%", "2.0%", "28.6%", "0/40"]
    # by combined_acc: seed 7 at 20 (250 of 250), seed 8 at 20 (239), seed 9 at 20 (249)
    assert both[3][2:7] == ["96.67% (90% to 100%)", "99.67% (99% to 100%)", "99.33% (98% to 100%)",
                            "98.4% (95.6% to 100%)", "12/12"]
    assert (root / "tables.md").read_text() in printed


def test_runs_that_are_nowhere(published):
    root, saved, _ = published
    assert table_rows(root)["Table 2: arithmetic"][-1] == ["MLT", "not run: needs a GPU", *["-"] * 8]
    panel = saved["grid_facts.png"].axes[1]
    assert not panel.lines and panel.get_title() == "n28, not run"
    assert saved["grid_math.png"].axes[7].get_title() == "MLT, not run: needs a GPU"
    assert "python train_with_eval.py\nconfig/train_facts_mini_28.py" in panel.texts[0].get_text()


def test_a_run_from_results_is_said_to_be(published):
    root, saved, _ = published
    panels = saved["grid_math.png"].axes
    assert panels[0].get_title() == "n14: 1,456 parameters, 3 seeds"
    assert panels[1].get_title() == "n28: 1,456 parameters, 1 seed (from results/)"
    assert {"addition", "subtraction"} <= {line.get_label() for line in panels[1].lines}
    models = [row[0] for row in table_rows(root)["Table 2: arithmetic"]]
    assert models[5:8] == ["n28", "n28 (from results/)", "n28 (from results/)"]


def test_grids_have_one_scale_and_one_legend(published):
    root, saved, _ = published
    assert all((root / name).read_bytes().startswith(b"\x89PNG") for name in saved)
    assert sorted(saved) == ["grid_combined.png", "grid_facts.png", "grid_math.png"]
    for fig in saved.values():
        assert len(fig.legends) == 1 and not any(ax.get_legend() for ax in fig.axes)
        kinds = len(fig.axes) // 4  # of strips
        for kind in range(kinds):
            strips = [ax for row in (0, kinds) for ax in fig.axes[2 * (row + kind):][:2]]
            assert len({(ax.get_xlim(), ax.get_ylim(), ax.get_yscale()) for ax in strips}) == 1
            assert strips[0].get_ylabel() == strips[2].get_ylabel() != ""
    labels = {line.get_label() for line in saved["grid_combined.png"].axes[0].lines}
    assert {"addition", "subtraction", "capitals"} <= labels


def texts_on(fig: Figure) -> list[Text]:
    """Every text that is seen on a figure: titles, labels, the axes' numbers, the legend."""
    texts = list(fig.legends[0].get_texts())
    for ax in fig.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for i, labels, (low, high) in ((0, ax.get_xticklabels(), ax.get_xlim()),
                                       (1, ax.get_yticklabels(), ax.get_ylim())):
            texts += [label for label in labels if low <= label.get_position()[i] <= high]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def test_no_text_of_a_grid_overlaps_another(published):
    for name, fig in published[1].items():
        fig.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts_on(fig)]
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            assert not a.overlaps(b), (name, one, other)
        for text, box in boxes:
            inside = fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and fig.bbox.y0 <= box.y0
            assert inside and box.y1 <= fig.bbox.y1, (name, text)


def test_each_run_s_plot_is_drawn_with_the_grids(published):
    root, saved, _ = published
    for operation in TASKS:
        assert (root / f"{operation}_mini_14" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not list((root.parent / "results").rglob("*.png")), "a run from results/ is left as it is"


def test_what_the_loss_says(published):
    rows = table_rows(published[0])["What the loss says"]
    # (0.767 - 0.8) / (0.767 - 0.531) = -14.0%, for 0.75 7.2%, for 0.6 70.8%; the mean loss is 0.71667
    assert rows[2] == ["arithmetic", "n14", "0.7167 (0.6000 to 0.8000)", "0.7670", "0.5310",
                       "21.33% (-13.98% to 70.76%)", "3"]
    assert rows[5] == ["arithmetic", "MLT", "not run: needs a GPU", "-", "-", "-", "-"] and len(rows) == 14


def test_what_choosing_the_best_checkpoint_flatters(published):
    rows = table_rows(published[0])["What choosing the best checkpoint flatters"]
    assert rows[0][2:] == ["best less last, mean", "largest", "seeds that gain", "held-out, best",
                           "held-out, last", "all held-out right, best", "all held-out right, last"]
    # seed 7: 100% at 20 and 30; seed 8: best is last; seed 9: 100% at 10, 97.5% at 30
    assert rows[2][1:] == ["n14", "0.833", "2.5", "1 of 3", "11/12", "8/12", "2 of 3", "1 of 3"]
    assert rows[6][1:] == ["n14", "26.7", "80", "1 of 3", "-", "-", "-", "-"]


def write_evaluation(folder: Path, last: int = ITERS[-1], seeds: tuple = tuple(SEEDS)) -> None:
    """The eval_as_math.csv of a run: 5-7 fails for all seeds, 5+7 for the first, in one sample."""
    failing = {"5-7": {seed: 0 for seed in seeds}, "5+7": {seeds[0]: 9}}
    rows = [f"{seed},{last},{a},{op},{b},0,1,{failing.get(f'{a}{op}{b}', {}).get(seed, 10)},10,-1>"
            for seed in seeds for a, op, b in ("0+0", "5+7", "7+5", "5-7", "7-5")]
    header = "seed,iter,a,op,b,answer,held_out,correct,total,answers"
    (folder / "eval_as_math.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize("last, seeds, fails", [
    (30, (7, 8, 9), ["1 of 3", "0 of 3", "3 of 3", "0 of 3"]),
    (20, (7, 8, 9), ["-"] * 4), (30, (8,), ["-"] * 4)])
def test_which_held_out_equations_fail(tmp_path, last, seeds, fails):
    """They count only if every seed was asked at the last evaluation."""
    folder = write_run(tmp_path / "run")
    write_evaluation(folder, last, seeds)
    assert (plot_all_models.failures(plot_results.read_run(folder)) or ["-"] * 4) == fails


def test_an_evaluation_that_lacks_an_equation_says_nothing(tmp_path):
    folder = write_run(tmp_path / "run")
    write_evaluation(folder)
    path = folder / "eval_as_math.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert plot_all_models.failures(plot_results.read_run(folder)) == []


def test_held_out_in_detail(published):
    rows = table_rows(published[0])["The held-out cases in detail"]
    assert rows[0][5:] == ["5+7 fails", "7+5 fails", "5-7 fails", "7-5 fails"] and len(rows) == 10
    assert rows[2] == ["arithmetic", "n14", "1 of 3: 33.33% (6.15% to 79.2%)", "3 of 3: 100% (43.9% to 100%)",
                       "3 of 3: 100% (43.9% to 100%)", *["-"] * 4]


def test_an_answer_at_any_evaluation_is_counted(tmp_path):
    folder = write_run(tmp_path / "run")
    rewrite(folder, lambda cells: cells | {"heldout_correct": int(cells["seed"] + cells["iter"] == "710")})
    write_evaluation(folder)
    assert plot_all_models.heldout_cells(plot_results.read_run(folder), "math") == [
        "0 of 3: 0% (0% to 56.1%)", "0 of 3: 0% (0% to 56.1%)", "1 of 3: 33.33% (6.15% to 79.2%)",
        "1 of 3", "0 of 3", "3 of 3", "0 of 3"]


@pytest.mark.parametrize("spoil", [
    lambda text: text.replace("7,30", "x,30", 1), lambda text: text[:-9],
    lambda text: text.replace("correct", "c"), lambda text: text + '"' + "x" * 200_000])
def test_a_damaged_evaluation_is_named(root, spoil):
    write_evaluation(root / "math_mini_14")
    path = root / "math_mini_14" / "eval_as_math.csv"
    path.write_text(spoil(path.read_text()))
    before = contents_below(root)
    with pytest.raises(UserError, match="eval_as_math.csv"):
        plot_all_models.main([f"--root_dir={root}"])
    assert contents_below(root) == before


def other_pixels(one: Path, other: Path) -> float:
    """The share of pixels that differ between two pictures."""
    a, b = imread(one), imread(other)
    return 1 if a.shape != b.shape else (np.abs(a - b).max(2) > 0.1).mean()


SAME = 0.001  # fewer other pixels than this: another machine's rounding


def test_published_results_are_those_of_the_committed_logs(tmp_path, monkeypatch):
    """The one command, with and without --wd, makes of the logs every figure and table in results/."""
    results, again = ROOT / "results", tmp_path / "results"
    shutil.copytree(results, again, ignore=shutil.ignore_patterns("*.png", "tables*.md"))
    monkeypatch.setattr(plot_all_models, "RESULTS", again)
    for wd in ([], ["--wd"]):
        plot_all_models.main([f"--root_dir={again}", *wd])
    assert contents_below(again).keys() == contents_below(results).keys()
    for name, data in contents_below(again).items():
        if name.endswith(".png"):
            assert other_pixels(results / name, again / name) < SAME, name
        else:
            assert data == (results / name).read_bytes(), name


def test_a_picture_of_other_data_has_other_pixels(tmp_path):
    """So that the test above can fail: one seed less, and a curve lower by one point at one evaluation."""
    run = plot_results.read_run(write_run(tmp_path / "run"))
    fewer = dataclasses.replace(run, columns={k: v[:, :2] for k, v in run.columns.items()})
    lower = dataclasses.replace(run, columns=run.columns | {"add_correct": run.columns["add_correct"] - 1})
    for name, other in (("run", run), ("same", run), ("fewer", fewer), ("lower", lower)):
        plot_results.save(plot_results.figure(other, ["math"]), tmp_path / f"{name}.png")
    assert other_pixels(tmp_path / "run.png", tmp_path / "same.png") == 0
    for name in ("fewer", "lower"):
        assert other_pixels(tmp_path / "run.png", tmp_path / f"{name}.png") > SAME


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/results.csv")), ids=str)
def test_a_published_run_is_whole(path):
    """30,000 iterations, 121 evaluations, seeds 1337 and on, a log under 5 MB; evaluation and log agree."""
    run = plot_results.read_run(path.parent)
    assert run.iters.tolist() == list(range(0, 30_001, 250))
    assert run.notes["seeds"] == list(range(1337, 1337 + len(run.notes["seeds"])))
    assert path.stat().st_size < 5e6
    evaluation = path.parent / "eval_as_math.csv"
    if evaluation.exists():
        assert evaluation.stat().st_size < 1e6
        with open(evaluation, newline="") as f:
            rows = [r for r in csv.DictReader(f) if r["held_out"] == "1"]
        right = [sum(int(r["correct"]) for r in rows if r["seed"] == str(s)) for s in run.notes["seeds"]]
        assert right == run.columns["heldout_correct"][-1].tolist()


@pytest.mark.parametrize("argv, wd", [
    (["--wd"], True), (["--wd", "--format=pdf"], True), (["--wd=True"], True), (["--wd", "True"], True),
    (["--wd=False"], False)])
def test_wd_with_and_without_a_value(argv, wd):
    assert config.parse(argv, plot_all_models.KEYS, "")[0]["wd"] is wd


def test_regularised_set(root):
    write_run(root / "math_mini_14_wd", seeds=1)
    before = set(contents_below(root))
    plot_all_models.main(["--wd", f"--root_dir={root}", "--format=pdf"])
    assert set(contents_below(root)) - before == {
        "grid_math_wd.pdf", "grid_facts_wd.pdf", "grid_combined_wd.pdf", "tables_wd.md",
        "math_mini_14_wd/plot.pdf"}
    tables = table_rows(root, "tables_wd.md")
    assert "paper" not in {cell for rows in tables.values() for r in rows for cell in r}
    assert tables["Table 2: arithmetic, regularised"][3] == \
        ["n14", "last", "100%", "100%", "4/4", "1 of 1: 100% (20.7% to 100%)", "1", "30",
         "2.5", "an abacus"]


def contents_below(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and of the folders in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_still_being_written_loses_its_last_iteration(tmp_path):
    folder = write_run(tmp_path / "run")
    log = folder / "results.csv"
    whole = log.read_text()
    for text in (whole[:-1], whole[:-30], whole[:whole.rindex("\n30,9") + 1]):
        log.write_text(text)
        assert plot_results.read_run(folder).iters.tolist() == ITERS[:-1]


BAD_LOGS = {  # how the log is spoilt: what the error must name
    "no number": (lambda lines: lines[:2] + [lines[2].replace("2.9", "x")] + lines[3:], "line 3: train_loss"),
    "nan": (lambda lines: lines[:2] + [lines[2].replace("2.9", "nan")] + lines[3:], "line 3: train_loss"),
    "negative": (lambda lines: lines[:4] + ["-" + lines[4]] + lines[5:], "line 5: iter"),
    "half a line": (lambda lines: lines[:4] + [lines[4][:20]] + lines[5:], "line 5: "),
    "an empty cell": (lambda lines: lines[:4] + [lines[4].replace(",50,", ",,")] + lines[5:],
                      "line 5: add_correct"),
    "a row less": (lambda lines: lines[:4] + lines[5:], "iteration 10 lacks seed 7"),
    "a row twice": (lambda lines: lines[:4] + lines[3:], "line 5: iteration 0 of seed 9"),
    "a foreign seed": (lambda lines: lines + ["40,1" + lines[-1][4:]], "line 14: seed 1"),
    "no rows": (lambda lines: lines[:1], "no complete evaluation"),
    "no header": (lambda lines: lines[1:], "no column iter"),
    "a column less": (lambda lines: [line.rsplit(",", 2)[0] for line in lines], "no column combined_acc"),
    "nothing": (lambda lines: [], "no column iter"),
}


@pytest.mark.parametrize("kind", BAD_LOGS)
def test_a_damaged_log_is_named_and_nothing_changes(root, kind):
    folder = root / "math_mini_14"
    spoil, message = BAD_LOGS[kind]
    lines = (folder / "results.csv").read_text().splitlines()
    (folder / "results.csv").write_text("".join(line + "\n" for line in spoil(lines)))
    before = contents_below(root)
    for script, argv in ((plot_results, f"--model_folder={folder}"), (plot_all_models, f"--root_dir={root}")):
        with pytest.raises(UserError) as e:
            script.main([argv])
        assert "results.csv" in str(e.value) and message in str(e.value) and "\n" not in str(e.value)
    assert contents_below(root) == before


@pytest.mark.parametrize("name, value", [
    ("parameters", None), ("parameters", "many"), ("seeds", []), ("seeds", [7, 7]), ("seeds", 7),
    ("tasks", []), ("tasks", ["latin"]), ("loss_floor", -1), ("loss_floor", math.nan), ("rule_loss", "low"),
    ("device", 3)])
def test_a_damaged_config_json_is_named(tmp_path, name, value):
    folder = write_run(tmp_path / "run")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    before = contents(folder)
    with pytest.raises(UserError, match=f"config.json: {name} = .* expected"):
        plot_results.main([f"--model_folder={folder}"])
    assert contents(folder) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\udcff"])
def test_config_json_that_is_none(tmp_path, text):
    folder = write_run(tmp_path / "run")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.json"):
        plot_results.main([f"--model_folder={folder}"])


@pytest.mark.parametrize("file", ["results.csv", "config.json"])
def test_a_missing_file_is_named(root, file):
    (root / "math_mini_14" / file).unlink()
    before = contents_below(root)
    with pytest.raises(UserError, match=file):
        plot_results.main([f"--model_folder={root / 'math_mini_14'}"])
    with pytest.raises(UserError, match=file):
        plot_all_models.main([f"--root_dir={root}"])
    assert contents_below(root) == before


@pytest.mark.parametrize("argv, message", [
    (["--operation=facts"], "no data for operation facts; expected math"), (["--operation=both"], "no data"),
    (["--operation=latin"], "expected one of math, facts, both"),
    (["--format=gif"], "expected one of png, pdf"),
    (["--formt=pdf"], "did you mean format")])
def test_bad_command_lines(tmp_path, argv, message):
    folder = write_run(tmp_path / "run")
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        plot_results.main([f"--model_folder={folder}", *argv])
    assert contents(folder) == before


def test_a_run_of_other_tasks_than_its_name_says(root):
    write_run(root / "math_mini_56", "facts")
    before = contents_below(root)
    with pytest.raises(UserError, match="math_mini_56: no data for operation math"):
        plot_all_models.main([f"--root_dir={root}"])
    assert contents_below(root) == before


@pytest.mark.parametrize("argv", [["plot_results.py", "--model_folder=nowhere"],
                                  ["plot_all_models.py", "--root_dir=nowhere"]])
def test_a_missing_folder_is_one_line_and_exit_code_2(argv):
    done = run_script(*argv)
    assert done.returncode == 2 and not done.stdout
    assert "nowhere" in done.stderr and done.stderr.count("\n") == 1


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), cut=st.integers(0, 40),
       put=st.text("0123456789.,-eEnaif\n\r\"\0x ", max_size=12))
def test_any_damage_reads_or_is_a_user_error(tmp_path, where, cut, put):
    folder = tmp_path / "run"
    if not folder.exists():
        write_run(folder)
        (tmp_path / "whole").write_bytes((folder / "results.csv").read_bytes())
    whole = (tmp_path / "whole").read_text()
    at = int(where * len(whole))
    (folder / "results.csv").write_text(whole[:at] + put + whole[at + cut:])
    try:
        run = plot_results.read_run(folder)
    except UserError as e:
        assert str(folder) in str(e)
    else:
        assert set(run.iters) and all(c.shape == (len(run.iters), 3) for c in run.columns.values())
