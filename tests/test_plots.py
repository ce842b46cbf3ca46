"""The figures and tables, from logs written here: what they show, and that bad input changes nothing."""
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

import plot_all_models
import plot_results
from config import UserError
from data.log import read_run
from helpers import ROOT, contents, rows_of, run_script
from runs import ADD, FACTS, HELDOUT, ITERS, change_info, write_run


def drawn(folder: Path, tasks: list[str]) -> dict[str, Axes]:
    """A run's picture: its strips by the first word of what they show."""
    fig = plot_results.run_figure(read_run(folder), tasks)
    return {ax.get_ylabel().split()[0]: ax for ax in fig.axes}


def lines_of(ax: Axes) -> dict[str, list]:
    """The lines of a strip: the heights by label."""
    return {line.get_label(): list(line.get_ydata()) for line in ax.lines}


# --- one run

def test_curves_are_medians_with_bands(tmp_path):
    strips = drawn(write_run(tmp_path / "run", "both"), ["math", "facts"])
    assert list(strips) == ["right", "held-out", "loss"]
    curves = lines_of(strips["right"])
    np.testing.assert_allclose(curves["addition"], np.median(ADD, axis=1))
    np.testing.assert_allclose(curves["capitals"], 2 * np.median(FACTS, axis=1))
    np.testing.assert_allclose(lines_of(strips["loss"])["loss"], [2.9, 1.2, 0.8, 0.75])
    bands = {to_hex(b.get_facecolor()[0]): b.get_paths()[0].vertices for b in strips["right"].collections}
    assert set(bands) == {"#009e73", "#0072b2", "#e69f00"}
    for x, values in zip(ITERS, ADD):
        there = [y for at, y in bands["#009e73"] if at == x]
        np.testing.assert_allclose([min(there), max(there)], np.quantile(values, [0.1, 0.9]))


def test_one_seed_is_drawn_as_it_is(tmp_path):
    strips = drawn(write_run(tmp_path / "run", seeds=range(1)), ["math"])
    assert not any(ax.collections for ax in strips.values())
    assert lines_of(strips["right"])["addition"] == [0, 50, 100, 100]


@pytest.mark.parametrize("pairs, label", [([[5, 7]], "held-out (5,7)"), ([[3, 8]], "held-out (3,8)"),
                                          ([[3, 8], [2, 6]], "held-out, 2 pairs")])
def test_held_out_strip_stacks_shares_of_seeds(tmp_path, pairs, label):
    """From pale to dark: the seeds with some, half, three quarters, all of the held-out answers right."""
    ax = drawn(write_run(tmp_path / "run", held_out=pairs), ["math"])["held-out"]
    assert not ax.texts
    for step, least in zip(ax.patches, (1, 2, 3, 4), strict=True):
        np.testing.assert_allclose(step.get_data().values, 100 * (np.array(HELDOUT) >= least).mean(1))
        assert step.get_data().edges.tolist() == [-0.5, 5, 15, 25, 30.5]
    assert [step.get_label() for step in ax.patches] == [
        f"{label}: {level}" for level in ("some right", "half or more", "3/4 or more", "all right")]


def test_nothing_right_or_nothing_held_out(tmp_path):
    none = write_run(tmp_path / "none", change=lambda row: row | {"heldout_correct": 0})
    assert drawn(none, ["math"])["held-out"].texts[0].get_text() == "none right at any evaluation"
    change_info(none, held_out=[])
    assert list(drawn(none, ["math"])) == ["right", "loss"]


@pytest.mark.parametrize("info, labels", [
    ({}, ["loss", "loss on val.bin", "rule-follower's loss: 0.767", "memoriser's loss: 0.531"]),
    ({"loss_floor": None, "rule_loss": None}, ["loss", "loss on val.bin"])])
def test_a_run_without_tasks_shows_its_losses(tmp_path, info, labels):
    folder = write_run(tmp_path / "run", "none", change=lambda row: row | {"val_loss": 4.0}, **info)
    strips = drawn(folder, [])
    assert list(strips) == ["loss"] and list(lines_of(strips["loss"])) == labels


def test_a_single_evaluation_is_seen(tmp_path):
    ax = drawn(write_run(tmp_path / "run", evaluations=1), ["math"])["loss"]
    assert ax.get_ylim()[1] > 2.9 and ax.lines[0].get_marker() == "."


def test_a_run_that_is_not_finished_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    assert drawn(folder, ["math"])["right"].get_title() == "run: 1,456 parameters, 3 seeds"
    change_info(folder, config={"max_iters": 30_000})
    title = drawn(folder, ["math"])["right"].get_title()
    assert title == "run: 1,456 parameters, 3 seeds\n30 of 30,000 iterations"


def test_any_name_and_any_backend_give_the_same_picture(tmp_path):
    folder = write_run(tmp_path / "cost$5_$x^", "both")
    done = run_script("plot_results.py", f"--model_folder={folder}", MPLBACKEND="none")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"wrote {folder / 'plot.png'}\n")
    before = contents(folder)
    assert before["plot.png"].startswith(b"\x89PNG")
    plot_results.main([f"--model_folder={folder}"])
    assert contents(folder) == before


# --- all runs

@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder with three runs; results/ is a folder beside it, with one run more."""
    monkeypatch.setattr(plot_all_models, "RESULTS", tmp_path / "results")
    write_run(tmp_path / "results" / "math_mini_28", seeds=range(1))
    write_run(tmp_path / "results" / "math_mini_14", seeds=range(1))  # hidden by the one under root
    for operation in ("math", "facts", "both"):
        write_run(tmp_path / "root" / f"{operation}_mini_14", operation)
    return tmp_path / "root"


def tables_of(root: Path, end: str = "") -> str:
    """The text of tables.md, or of tables_wd.md."""
    return plot_all_models.tables(plot_all_models.find_runs(root, end), end)


def test_tables_by_hand(root):
    scores, costs = rows_of(tables_of(root)).values()
    # best by math_acc, the first of equals: seed 7 at 20, seed 8 at 30, seed 9 at 10
    every = "3 of 3 (43.9% to 100%)"
    assert [row[1:] for row in scores[:3]] == [
        ["n14", "3", "100 · 100 · 100", "99.3 · 99 · 66.7", "98 · 97 · 25", "100 · 100 · 100",
         "100 · 100 · 91.7", "1 of 3 (6.15% to 79.2%)", "2 of 3 (20.8% to 93.9%)", every, every],
        ["n28 (from results/)", "1", "98 · 98 · 0", *["100 · 100 · 100"] * 4,
         *["1 of 1 (20.7% to 100%)"] * 4],
        ["n56, not run", "-", "98 · 98 · 0", *["-"] * 8]]
    # seed 7 at 10, seed 8 at 10, seed 9 at 20
    assert scores[4] == ["capitals", "n14", "3", "8.2", "73.3", "20", "100", "100", *["-"] * 4]
    # by combined_acc: seed 7 at 20 (250 of 250), seed 8 at 20 (239), seed 9 at 20 (249)
    assert scores[8][4] == "99.3 · 99 · 73.3 · 94 · 66.7"
    assert scores[8][7] == "96.7 · 99.7 · 99.3 · 98.4 · 100"
    assert scores[8][0] == "both at once: addition · subtraction · capitals · all · held-out"
    # (0.767 - 0.8) / (0.767 - 0.531) = -14.0%, for 0.75 7.2%, for 0.6 70.8%; the mean loss is 0.71667
    assert costs[0] == ["arithmetic", "n14", "3", "30", "2.5", "an abacus", "0.7167 (0.6000 to 0.8000)",
                        "0.7670", "0.5310", "21.3 (-14 to 70.8)"]
    assert [row[1] for row in costs] == ["n14", "n28 (from results/)", "n14", "n14"]


def test_held_out_answers_right_at_the_end_or_ever(root):
    """Seed 8 has all and loses them, seed 9 never has any."""
    right = {(30, 7): 4, (20, 8): 4}
    write_run(root / "math_mini_56", change=lambda row: row | {
        "heldout_correct": right.get((row["iter"], row["seed"]), 0)})
    row, = [row for row in rows_of(tables_of(root))["The paper's Tables 2 to 4"] if row[1] == "n56"]
    assert [cell.split(" (")[0] for cell in row[8:]] == ["1 of 3", "0 of 3", "1 of 3", "2 of 3"]


def test_the_regularised_stand_beside_what_was_published(root):
    write_run(root / "math_mini_14_wd", seeds=range(1))
    rows, _ = rows_of(tables_of(root, "_wd")).values()
    assert rows[0][1:5] == ["n14", "1", "100 · 100 · -", "100 · 100 · 100"]
    assert rows[4][1:5] == ["n14, not run", "-", "12.4", "-"]


def test_panels_and_rows_of_runs_that_are_not_finished(root):
    write_run(root / "math_mini_56", evaluations=0)
    write_run(root / "math_mini_mlt", config={"max_iters": 30_000})
    assert [row[1] for row in rows_of(tables_of(root))["The paper's Tables 2 to 4"][:4]] == [
        "n14", "n28 (from results/)", "n56, not run", "MLT, 30 of 30,000 iterations"]
    fig = plot_all_models.draw_grid("math", plot_all_models.find_runs(root, "")["math"])
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == ["n14: 1,456 parameters, 3 seeds", "n28 (from results/): 1,456 parameters, 1 seed",
                      "n56, not run", "MLT: 1,456 parameters, 3 seeds\n30 of 30,000 iterations"]
    labels = [text.get_text() for text in fig.legends[0].get_texts() if text.get_text().strip()]
    assert len(labels) == len(set(labels)) == 10
    assert len({ax.get_ylim() for ax in fig.axes if ax.get_yscale() == "log"}) == 1


def test_what_the_one_command_writes_without_torch(root):
    """And prints, after all files; a run from results/ is left as it is."""
    code = f"""import sys, pathlib, plot_all_models as plots
plots.RESULTS = pathlib.Path("{root}").parent / "results"
plots.main(["--root_dir={root}"]); sys.exit("torch" in sys.modules)"""
    done = run_script("-c", code)
    assert done.returncode == 0 and done.stdout.endswith(f"\n\n{tables_of(root)}\n")
    assert (root / "tables.md").read_text(encoding="utf-8") == tables_of(root)
    assert {str(path.relative_to(root.parent)) for path in root.parent.rglob("*.png")} == {
        *(f"root/{name}.png" for name in ("grid_math", "grid_facts", "grid_combined")),
        *(f"root/{operation}_mini_14/plot.png" for operation in ("math", "facts", "both"))}


def test_what_is_damaged_is_named_and_nothing_is_written(root):
    write_run(root / "math_mini_56", "facts")
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match="math_mini_56: no data for operation math"):
        plot_all_models.main([f"--root_dir={root}"])
    assert sorted(root.rglob("*")) == before
    (root / "math_mini_56" / "config.json").write_text("{")
    with pytest.raises(UserError, match="math_mini_56/config.json"):
        plot_all_models.main([f"--root_dir={root}"])


@pytest.mark.parametrize("end", ["", "_wd"])
def test_published_tables_are_those_of_the_committed_logs(end):
    published = (ROOT / "results" / f"tables{end}.md").read_text(encoding="utf-8")
    assert tables_of(ROOT / "results", end) == published
