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
from helpers import ROOT, contents, run_script, train
from runs import ADD, FACTS, HELDOUT, ITERS, SEEDS, change_info, write_run


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
    runs = plot_all_models.find_runs(root, end)
    return plot_all_models.tables(runs, plot_all_models.find_digits(runs["math"]), wd=bool(end))


def rows_of(text: str) -> dict[str, list[list[str]]]:
    """The rows of each table, below its header, by the table's heading."""
    tables: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            rows = tables[line[3:]] = []
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[2:] for heading, rows in tables.items()}


def test_tables_by_hand(root):
    rows = rows_of(tables_of(root))
    # best by math_acc, the first of equals: seed 7 at 20, seed 8 at 30, seed 9 at 10
    assert rows["Table 2: arithmetic"] == [
        ["n14", "3", "100 · 100 · 99.3 (98 to 100)", "100 · 100 · 99 (97 to 100)", "40/40 · 11/12 · 8/12",
         "- · 2 · 1 of 3 (6.15% to 79.2%)"],
        ["n28 (from results/)", "1", "98 · 100 · 100", "98 · 100 · 100", "0/40 · 4/4 · 4/4",
         "- · 1 · 1 of 1 (20.7% to 100%)"],
        ["n56, not run", "-", "98 · - · -", "98 · - · -", "0/40 · - · -", "-"],
        ["MLT, not run: takes a day or two on a CPU", "-", "98 · - · -", "98 · - · -", "0/40 · - · -", "-"]]
    # seed 7 at 10, seed 8 at 10, seed 9 at 20
    assert rows["Table 3: capitals"][0] == ["n14", "3", "8.2 · 100 · 73.3 (20 to 100)"]
    # by combined_acc: seed 7 at 20 (250 of 250), seed 8 at 20 (239), seed 9 at 20 (249)
    assert rows["Table 4: both at once"][0][2:6] == [
        "31.2 · 96.7 · 99.3 (98 to 100)", "39.4 · 99.7 · 99 (97 to 100)",
        "2.0 · 99.3 · 73.3 (20 to 100)", "28.6 · 98.4 · 94 (84 to 100)"]
    # (0.767 - 0.8) / (0.767 - 0.531) = -14.0%, for 0.75 7.2%, for 0.6 70.8%; the mean loss is 0.71667
    assert rows["What the loss says"][0] == ["arithmetic", "n14", "3", "0.7167 (0.6000 to 0.8000)", "0.7670",
                                             "0.5310", "21.3 (-14 to 70.8)"]
    # seed 7: 100% at 20 and 30; seed 8: best is last; seed 9: 100% at 10, 97.5% at 30
    assert rows["What choosing the best checkpoint flatters"][0][3:] == [
        "0.833", "2.5", "1 of 3", "20 (10 to 30)", *["3 of 3 (43.9% to 100%)"] * 2]
    assert rows["What the runs took"][0][3:] == ["30", "2.5", "an abacus"]


def test_the_regularised_stand_beside_what_was_published(root):
    write_run(root / "math_mini_14_wd", seeds=range(1))
    rows = rows_of(tables_of(root, "_wd"))
    assert rows["Table 2: arithmetic, regularised"][0] == [
        "n14", "1", "100 · 100 · 100", "100 · 100 · 100", "- · 4/4 · 4/4", "- · 1 · 1 of 1 (20.7% to 100%)"]
    assert rows["Table 3: capitals, regularised"][0][2] == "12.4 · - · -"


def test_panels_and_rows_of_runs_that_are_not_finished(root):
    write_run(root / "math_mini_56", evaluations=0)
    write_run(root / "math_mini_mlt", config={"max_iters": 30_000})
    runs = plot_all_models.find_runs(root, "")
    assert [row[0] for row in rows_of(plot_all_models.tables(runs, [], False))["Table 2: arithmetic"]] == [
        "n14", "n28 (from results/)", "n56, not run", "MLT, 30 of 30,000 iterations"]
    fig = plot_all_models.draw_grid("math", runs["math"], "_wd")
    panels = {ax.get_title(): ax for ax in fig.axes if ax.get_title()}
    assert list(panels) == ["n14: 1,456 parameters, 3 seeds", "n28: 1,456 parameters, 1 seed (from results/)",
                            "n56, not run", "MLT: 1,456 parameters, 3 seeds\n30 of 30,000 iterations"]
    command = "to train it:\npython train_with_eval.py\nconfig/train_math_mini_56_wd.py"
    assert panels["n56, not run"].texts[0].get_text() == command
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
    assert (root / "tables.md").read_text() == tables_of(root)
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
    assert tables_of(ROOT / "results", end) == (ROOT / "results" / f"tables{end}.md").read_text()


# --- the digits

def test_digits_on_a_line_lie_in_order():
    line = np.arange(10)[:, None] * np.array([[3.0, -1, 2, 0.5]]) + 7
    assert plot_all_models.digit_order(line) == pytest.approx(1)
    points, share = plot_all_models.two_components(line[::-1])
    assert share == pytest.approx(1) and (np.diff(points[:, 0]) > 0).all()
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-9)
    # rows 0, 2, 1: |i - j| of the pairs 01, 02, 12 is 1, 2, 1 and the distances are 2, 1, 1
    assert plot_all_models.digit_order(np.array([[0.0], [2], [1]])) == pytest.approx(-0.5)


def test_digits_of_a_run_and_its_groups(root):
    model = pytest.importorskip("model")
    cfg = model.GPTConfig(block_size=9, vocab_size=17, n_layer=1, n_head=1, n_embd=14, mlp_expansion=1)
    ckpt = model.checkpoint(model.init_weights(cfg, SEEDS), cfg, vocab="\n +-0123456789<=>", seeds=SEEDS,
                            iter_num=30, config={}, tasks=["math"], held_out=[[5, 7]])
    for name in ("transformer.wte.weight", "lm_head.weight"):  # the digits' rows: on a line, in order
        ckpt["model"][name][:, 4:14] = ckpt["model"][name].new_tensor(range(10))[:, None]
    model.save_checkpoint(root / "math_mini_14" / "ckpt.pt", ckpt)
    plot_all_models.main([f"--root_dir={root}"])
    assert (root / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert rows_of((root / "tables.md").read_text())["The order of the digits"] == [
        ["n14", "3", "1.000 (1.000 to 1.000)", "100 (100 to 100)", "1.0000"],
        ["n14, all held-out right", "1", "1.000", "100", "-"],
        ["n14, others", "2", "1.000 (1.000 to 1.000)", "100 (100 to 100)", "-"]]
    np.savez(root / "math_mini_14" / "wte.npz", wte=ckpt["model"]["lm_head.weight"], vocab=ckpt["vocab"])
    with_ckpt = tables_of(root)
    (root / "math_mini_14" / "ckpt.pt").unlink()
    assert tables_of(root) == with_ckpt, "published embeddings stand for weights too large to publish"
    ckpt["seeds"] = [7, 8, 1]
    model.save_checkpoint(root / "math_mini_14" / "ckpt.pt", ckpt)
    with pytest.raises(UserError, match="ckpt.pt: damaged, 1 is not in list"):
        tables_of(root)


# --- a look inside

HEADER = "seed,iter,parameters,test,asked,right,off_1,off_2,off_more,none,answers\n"
LINES = [  # of two seeds, of which the first copies the nearest, the second a diagonal, once
    "7,{it},1456,held-out,4,0,1,0,0,0,5+7=11 7+5=13 5-7=-3 7-5=1", "8,{it},1456,held-out,4,0.5,0,0.25,0,0.25,"
    "5+7=12 7+5=14 5-7=nan 7-5=2", *(f"{seed},{{it}},1456,{test},280,0.{seed},0.1,0.1,0,0," for seed in (7, 8)
                                    for test in ("seen", "line", "control"))]


def write_answers(folder: Path) -> Path:
    """Answers of n14 and the MLT at the end, and of n14 through training."""
    folder.mkdir()
    for name, iters in (("n14", [30]), ("mlt", [30]), ("training_n14", [0, 10, 20])):
        rows = [line.format(it=it) for it in iters for line in LINES]
        (folder / f"{name}.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return folder


def test_what_is_answered_instead(root):
    fig, text = plot_all_models.inside(plot_all_models.read_answers(write_answers(root / "answers")))
    rows = rows_of(text)
    assert rows["What is answered"] == [
        *([name, "2", "held-out", "4", "25 (0 to 50)", "50 (0 to 100)", "12.5 (0 to 25)", "0 (0 to 0)",
           "12.5 (0 to 25)", "75 (50 to 100)", "50 (0 to 100)", "12.5 (0 to 25)"] for name in ("n14", "MLT")),
        ["copies the nearest", "1", "held-out", "4", "0", "100", "0", "0", "0", "100", "-", "-"],
        ["copies the diagonal", "1", "held-out", "4", "0", "0", "100", "0", "0", "0", "-", "-"]]
    assert rows["Is the number line used?"][1][:5] == ["n14", "2", "line", "280", "75 (70 to 80)"]
    assert [row[0] for row in rows["Through training"]] == ["n14, iteration 20"] * 4
    bars = [bar.get_width() for bar in fig.axes[0].patches]
    assert bars == [25, 50, 12.5, 0, 12.5] * 2 + [0, 100, 0, 0, 0] + [0, 0, 100, 0, 0]
    curves = lines_of(fig.axes[2])
    assert curves["held-out"] == [25] * 2 and curves["line, off by 1 at most"] == pytest.approx([85] * 2)
    plot_all_models.main([f"--root_dir={root}"])
    assert (root / "inside.png").exists() and (root / "inside.md").read_text() == text
    (root / "answers" / "n14.csv").write_text(HEADER + LINES[0].format(it=30) + "\n")
    with pytest.raises(UserError, match="n14.csv: damaged"):
        plot_all_models.main([f"--root_dir={root}"])


def test_the_published_look_inside_is_that_of_the_committed_answers():
    text = plot_all_models.inside(plot_all_models.read_answers(ROOT / "results" / "answers"))[1]
    assert text == (ROOT / "results" / "inside.md").read_text()


def test_a_film_has_a_frame_for_each_kept_checkpoint(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    folders = [train(tmp_path / f"math_mini_{size}", "--keep_every=10", run=f"math_mini_{size}")
               for size in ("14", "28")]
    plot_all_models.film(folders, tmp_path / "learning.gif")
    with Image.open(tmp_path / "learning.gif") as film:
        assert film.n_frames >= 3 and film.size == (640, 448)
