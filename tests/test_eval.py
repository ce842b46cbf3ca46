"""Sampling, and the evaluators: what counts as right, the totals, and the command lines."""
import csv
import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

import eval_as_math
import eval_capitals
import sample
from config import UserError
from data.as_math.prepare import equations
from data.facts_char.prepare import capitals
from data.log import COLUMNS
from helpers import SAMPLING, contents, log, train
from model import load_checkpoint, unflatten
from reference import SHAPES, continue_one, gpt_of, random_weights
from sample import Trained, complete, distinct_texts

CAPITAL_OF = dict(capitals())
EQUATIONS, PAIRS = [e[:3] for e in equations(10)], ((5, 7),)


def trained(name: str) -> Trained:
    """Two seeds of a shape, untrained, far from their initial weights, in float64."""
    cfg = SHAPES[name]
    return Trained(random_weights(cfg, 2), cfg, "abcdefghijk"[:cfg.vocab_size], [0, 1], [0, 0], 10, ())


@trials(max_examples=50)
@given(name=st.sampled_from(["deep", "heads"]), new=st.integers(1, 9), samples=st.integers(1, 12),
       prompts=st.lists(st.text("abcdefg", min_size=1, max_size=13), min_size=1, max_size=4),
       heat=st.sampled_from([0, 1e-60, 1e-42, 1e-30, 0.1, 1.0, 3.0]), top_k=st.integers(1, 20),
       stop=st.sampled_from(["a", "c", "e", ""]), rows=st.sampled_from([6, 4096]))
def test_samples_that_share_rows_equal_those_alone(name, new, samples, prompts, heat, top_k, stop, rows):
    """Prompts of any lengths side by side, texts that outgrow the block, samples that part and meet again, in
    one pass or several; the colder the closer to greedy.

    Whatever rows they share, each must be what a plain model says a character at a time, by its own uniforms.
    """
    model, gens = trained(name), [np.random.default_rng(s) for s in (1, 2)]
    with mock.patch.object(sample, "ROWS", rows):
        texts = complete(model, model.vocab, prompts, gens, new, samples, heat, top_k, stop)
    for s in range(2):
        u = np.random.default_rng(s + 1).random((len(prompts), samples, new), dtype=np.float32)
        gpt = gpt_of(model.params, s, model.cfg)
        for i, prompt in enumerate(prompts):
            for n in range(0, samples, 5):
                ids = continue_one(gpt, model.cfg, [model.vocab.index(ch) for ch in prompt], u[i, n], heat,
                                   top_k, model.vocab.index(stop) if stop else None)
                assert texts[s, i, n] == "".join(model.vocab[t] for t in ids)


def oracle(wrong_on_held_out: bool = False):
    """A hand-made `complete` that maps each prompt to its answer, as the text has it."""

    def answer(prompt: str) -> str:
        if prompt.startswith("Capital of "):
            return CAPITAL_OF[prompt.removeprefix("Capital of ").removesuffix(" is ")] + " \n"
        wrong = wrong_on_held_out and prompt[1:-1] in ("5+7", "7+5", "5-7", "7-5")
        return f"{eval(prompt[1:-1]) + wrong}>"

    def complete(model, vocab, prompts, gens, new, num_samples, temperature, top_k, stop=""):
        assert stop == ("\n" if prompts[0].startswith("Capital of ") else "")
        texts = [answer(prompt).ljust(new, stop or " ")[:new] for prompt in prompts]
        return np.tile(np.array(texts)[None, :, None], (len(gens), 1, num_samples))

    return complete


@pytest.fixture
def use_oracle(monkeypatch):
    """Puts an oracle in the place of the model, in both evaluators."""
    def use(**how):
        monkeypatch.setattr(eval_as_math, "complete", oracle(**how))
        monkeypatch.setattr(eval_capitals, "complete", oracle(**how))

    return use


@pytest.mark.parametrize("wrong, add, heldout, math_acc, combined", [
    (False, "1000", "40", 1.0, 1.0), (True, "980", "0", 0.98, 2460 / 2500)])
def test_training_logs_what_an_oracle_deserves(use_oracle, tmp_path, wrong, add, heldout, math_acc, combined):
    """All right is 100%; wrong on the held-out prompts alone is 98% of the arithmetic and 0 of 40."""
    use_oracle(wrong_on_held_out=wrong)
    row, = log(train(tmp_path / "run", "--max_iters=0", "--num_samples=10", run="both_mini_14"))
    for op in ("add", "sub"):
        assert (row[f"{op}_correct"], row[f"{op}_total"]) == (add, "1000")
    assert (row["heldout_correct"], row["heldout_total"]) == (heldout, "40")
    assert (row["facts_correct"], row["facts_total"], float(row["facts_acc"])) == ("500", "500", 1.0)
    assert float(row["math_acc"]) == pytest.approx(math_acc)
    assert float(row["combined_acc"]) == pytest.approx(combined)


def table(path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def right(path, **where: str) -> int:
    """Correct samples in an evaluator's CSV, over the rows that hold the values `where`."""
    return sum(int(row["correct"]) for row in table(path) if row | where == row)


def check_answers(rows: list[dict[str, str]]) -> None:
    """Every row of eval_as_math's table has its equation's answer."""
    assert all(int(row["answer"]) == eval(row["a"] + row["op"] + row["b"]) for row in rows)


@pytest.mark.parametrize("wrong, totals", [
    (False, ["100.00%"] * 4), (True, ["98.00%", "98.00%", "100.00%", "0.00%"])])
def test_math_command_prints_and_writes_what_an_oracle_deserves(use_oracle, math_run, capsys, tmp_path, wrong,
                                                                      totals):
    use_oracle(wrong_on_held_out=wrong)
    eval_as_math.main([f"--out_dir={math_run}", "--num_samples=3", f"--csv={tmp_path}/t.csv"])
    out, rows = capsys.readouterr().out, table(tmp_path / "t.csv")
    assert [line.split()[-1] for line in out.splitlines() if line.endswith("%")] == totals
    assert out.count("[0]" if wrong else "[3]") == 4, "the four held-out cases are marked"
    assert ("<" not in out) and ("5+7=12 [held-out]: '13>' x3" in out) == wrong
    assert len(rows) == 200 and {row["total"] for row in rows} == {"3"}
    held_out = [row["a"] + row["op"] + row["b"] for row in rows if row["held_out"] == "1"]
    assert held_out == ["5+7", "7+5", "5-7", "7-5"]
    assert {row["correct"] for row in rows if row["held_out"] == "1"} == {"0" if wrong else "3"}
    assert {row["correct"] for row in rows if row["held_out"] == "0"} == {"3"}
    check_answers(rows)


def test_a_larger_table_is_trained_and_evaluated(tmp_path, capsys, datasets):
    """Of what is wrong the first 200 are printed, and no grid; two samples a prompt in the log."""
    folder = train(tmp_path / "run", "--dataset=as_math_14_5pct", "--block_size=11", "--max_iters=2")
    assert (log(folder)[-1]["add_total"], log(folder)[-1]["heldout_total"]) == ("392", "40")
    eval_as_math.main([f"--out_dir={folder}", "--num_samples=1", f"--csv={tmp_path}/out.csv"])
    out, rows = capsys.readouterr().out, table(tmp_path / "out.csv")
    assert out.count(" x1\n") == 200 and " more\n" in out and " / 372 " in out and "a\\b" not in out
    assert [sum(row["held_out"] == out for row in rows) for out in "01"] == [372, 20]
    check_answers(rows)


@pytest.mark.parametrize("equation, yes, no", [
    ((5, "+", 7), ["12>\n", "12> ", "12", "12a", "012>", "12.5"],
     ["1", "123>", "+12", " 12>", "-12>", "", "x12>", ">12", "1 2>"]),
    ((1, "-", 5), ["-4>x", "-4", "-4a", "-4-4"], ["4>", "--4", "- 4>", "-", "", "−4>"]),
    ((0, "+", 1), ["1a", "1>"], ["+1", "+3", "a1"]), ((3, "-", 3), ["0>", "-0>", "00"], ["", "O"])], ids=str)
def test_the_integer_after_the_equals_sign_decides(equation, yes, no):
    """Whatever follows it, and nothing before it."""
    correct = eval_as_math.is_correct(np.tile(np.array(yes + no), (200, 1)))
    assert correct[EQUATIONS.index(equation)].tolist() == [True] * len(yes) + [False] * len(no)


def test_every_equation_is_compared_with_its_own_answer():
    texts = np.array([[f"{eval(f'{a}{op}{b}')}>", "5>"] for a, op, b in EQUATIONS])
    correct = eval_as_math.is_correct(texts)
    assert correct[:, 0].all()
    assert correct[:, 1].sum() == 6 + 5, "5 is the answer of six additions and five subtractions"
    shown = eval_as_math.report(texts[:, :1], correct[:, :1], ())
    assert "100 / 100" in shown and "held out" not in shown and "[1]" not in shown


def test_math_totals_count_each_slice():
    """Held-out cases are part of add and sub and of math_acc, and counted apart."""
    correct = np.zeros((200, 4), dtype=bool)
    for equation, right in (((5, "+", 7), 3), ((7, "-", 5), 2), ((0, "+", 0), 4), ((9, "-", 9), 1)):
        correct[EQUATIONS.index(equation), :right] = True
    assert eval_as_math.totals(correct, PAIRS) == {
        "add_correct": 7, "add_total": 400, "sub_correct": 3, "sub_total": 400, "math_acc": 10 / 800,
        "heldout_correct": 5, "heldout_total": 16}
    assert eval_as_math.totals(correct, ((0, 0), (5, 7), (3, 8)))["heldout_total"] == (2 + 4 + 4) * 4


def test_the_capital_s_line_decides_without_regard_to_case():
    """Surrounding spaces and what comes after the line do not matter; anything else on the line does."""
    texts = ["Paris \n", "paris", "PARIS \nCapital of", " Paris\n",
             "Pari \n", "Paris. \n", "Paris London \n", "\nParis", "", "P"]
    assert capitals()[0] == ("France", "Paris")
    correct = eval_capitals.is_correct(np.tile(np.array(texts), (50, 1)))
    assert correct[0].tolist() == [True] * 4 + [False] * 6
    assert not correct[1:].any()
    assert eval_capitals.totals(correct) == {"facts_correct": 4, "facts_total": 500, "facts_acc": 0.008}


@pytest.mark.parametrize("evaluator, run", [
    (eval_as_math, "math_run"), (eval_capitals, "facts_run"), (eval_as_math, "both_run"),
    (eval_capitals, "both_run")])
def test_a_command_counts_what_the_log_has_of_each_seed(evaluator, run, request, tmp_path):
    """The latest checkpoint, asked as the training asked it, gives the counts of the last row. The table of
    all seeds is the tables of each, one after the other; nothing is written into the run."""
    folder, path, alone = request.getfixturevalue(run), tmp_path / "t.csv", []
    seeds, before = load_checkpoint(folder / "ckpt.pt")[0]["seeds"], contents(folder)
    for seed, last in zip(seeds, log(folder)[-len(seeds):], strict=True):
        evaluator.main([f"--out_dir={folder}", f"--model_seed={seed}", f"--csv={path}", *SAMPLING])
        found = {"facts": right(path), "heldout": right(path, held_out="1"), "add": right(path, op="+"),
                 "sub": right(path, op="-")}
        for name in ("add", "sub", "heldout") if evaluator is eval_as_math else ("facts",):
            assert found[name] == int(last[f"{name}_correct"])
        assert {row["iter"] for row in table(path)} == {last["iter"]}
        assert len({answer for row in table(path) for answer in row["answers"].split("|")}) > 1
        alone += table(path)
    evaluator.main([f"--out_dir={folder}", "--all_seeds", f"--csv={path}", *SAMPLING])
    assert table(path) == alone and contents(folder) == before
    model, how = sample.open_model(str(folder)), dict(num_samples=1, temperature=1, top_k=9)
    texts = [evaluator.ask(model, model, seeds, [it] * len(seeds), **how) for it in (7, 7, 8)]
    assert (texts[0] == texts[1]).all() and (texts[0] != texts[2]).any(), "samples go by seed and iteration"


def test_best_checkpoint_gives_the_best_row(math_run, tmp_path, capsys):
    """Of each seed: the first of its rows with the highest accuracy, each at an iteration of its own."""
    eval_as_math.main([f"--out_dir={math_run}", "--ckpt=ckpt_best_math.pt", "--all_seeds",
                       f"--csv={tmp_path}/t.csv", *SAMPLING])
    assert "seed 1337 to 1338, iteration " in capsys.readouterr().out
    for seed in ("1337", "1338"):
        rows = [row for row in log(math_run) if row["seed"] == seed]
        best = max(rows, key=lambda row: float(row["math_acc"]))  # the first of equals
        found = right(tmp_path / "t.csv", seed=seed, iter=best["iter"])
        assert found == int(best["add_correct"]) + int(best["sub_correct"])


def all_but_one(place: int, text: str):
    """An oracle but for the second seed, which says `text` to the prompt at `place` in its second sample."""
    def complete(*how, **named):
        texts = oracle()(*how, **named)
        texts[1, place, 1] = text
        return texts

    return complete


def test_over_seeds_an_equation_is_right_if_all_samples_are(monkeypatch, math_run, tmp_path, capsys):
    monkeypatch.setattr(eval_as_math, "complete", all_but_one(EQUATIONS.index((5, "+", 7)), "13> "))
    eval_as_math.main([f"--out_dir={math_run}", "--all_seeds", "--num_samples=3", f"--csv={tmp_path}/t.csv"])
    out = capsys.readouterr().out
    assert "iteration 20; correct of 2 seeds\n" in out and out.count("[1]") == 1 and out.count("[2]") == 3
    assert "5+7=12 [held-out]: '12>|13>' x1\n" in out and "7 / 8" in out
    assert [row["correct"] for row in table(tmp_path / "t.csv") if row["held_out"] == "1"] == [
        "3", "3", "3", "3", "2", "3", "3", "3"]


def test_over_seeds_a_capital_is_right_if_all_samples_are(monkeypatch, facts_run, tmp_path, capsys):
    monkeypatch.setattr(eval_capitals, "complete", all_but_one(0, "Rome \n"))
    path = tmp_path / "t.csv"
    eval_capitals.main([f"--out_dir={facts_run}", "--all_seeds", "--num_samples=3", f"--csv={path}"])
    out = capsys.readouterr().out
    assert " 1 / 2  'Paris|Rome' x1\n" in out and " 99 / 100  99.00%" in out
    rows = [[*row.values()] for row in table(path)]
    assert rows.pop(50) == ["1338", "20", "France", "Paris", "2", "3", "Paris|Rome"]
    assert rows == [[seed, "20", *place, "3", "3", place[1]] for seed in ("1337", "1338")
                    for place in capitals()[seed == "1338":]]


# --- a look inside

def test_a_number_is_what_stands_before_its_end():
    texts = np.array([["12>x", "-3>", "07>9"], ["12", "-3x>", "->"]])
    np.testing.assert_array_equal(eval_as_math.numbers(texts, ">"), [[12, -3, 7], [np.nan] * 3])
    np.testing.assert_array_equal(eval_as_math.numbers(texts[1]), [12, -3, np.nan])


def test_a_mean_of_two_embeddings_is_read_and_never_said(math_run):
    """At its own place alone: of a digit with itself the mean is that digit, and means of others differ."""
    model = sample.open_model(str(math_run))
    reader, vocab = eval_as_math.with_means(model)
    k = [pair for _, _, pair in eval_as_math.substitutions()].index((2, 4))
    wte = unflatten(reader.params, reader.cfg)["transformer.wte.weight"]
    digit = dict(zip(model.vocab, wte.unbind(1)))
    assert vocab[:17] == model.vocab and torch.equal(wte[:, 17 + k], (digit["2"] + digit["4"]) / 2)
    wte[:, 17 + k] = digit["5"]
    texts = f"<{vocab[17 + k]}+3=", "<5+3="
    tokens = torch.tensor([[[vocab.index(c) for c in text] for text in texts]] * 2)
    last = torch.full((2, 2), 4)
    logits, plain = reader.logits(tokens, last), model.logits(tokens[:, [1, 1]], last)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--inside, which replaces digits, has .* lacks: '9'"):
        eval_as_math.with_means(dataclasses.replace(model, vocab=model.vocab.replace("9", "x")))


def test_the_rows_of_a_look_inside_by_an_oracle(monkeypatch, math_run):
    """It knows what it reads, is off by one where its neighbours' mean stands for a digit, by more in the
    control, and says nothing of what was held out."""
    def complete(model, vocab, prompts, gens, *greedy, stop):
        swaps = dict(zip(vocab[17:], eval_as_math.substitutions()))

        def answer(prompt):
            test, digit, pair = swaps.get(next((c for c in prompt if c in swaps), ""), ("", 0, ()))
            plain = "".join(str(digit) if c in swaps else c for c in prompt[1:-1])
            assert all(abs(digit - e) == 1 if test == "line" else abs(digit - e) > 1 for e in pair)
            off = {"": 0, "line": 1, "control": 7}[test]
            return "=" if {"5", "7"} <= {*plain} else f"{eval(plain) + off}>"

        assert greedy[1:] == (1, 0, 1), "one sample at temperature 0"
        return np.tile(np.array([answer(prompt) for prompt in prompts])[None, :, None], (len(gens), 1, 1))

    monkeypatch.setattr(eval_as_math, "complete", complete)
    rows = eval_as_math.look_inside(sample.open_model(str(math_run)))
    assert len(rows) == 8 and {row[3]: row[4:10] for row in rows if row[0] == 1338} == {
        "held-out": [4, 0, 0, 0, 0, 1], "seen": [196, 1, 0, 0, 0, 0],
        "line": [8 * 36 - 8, 0, 1, 0, 0, 0], "control": [21 * 280, 0, 0, 0, 1, 0]}
    assert [row[-1] for row in rows if row[3] == "held-out"] == ["5+7=nan 7+5=nan 5-7=nan 7-5=nan"] * 2


def test_distinct_texts_the_most_frequent_first():
    texts = np.array([[["1> ", "1>", "1>"], ["2>", "3> ", "3>"]], [["4>", "5>", "6>"], ["", "", "7>"]]])
    assert distinct_texts(texts).tolist() == [["1>", "3>|2>"], ["4>|5>|6>", "|7>"]]


SAMPLE = ["--num_samples=5", "--max_new_tokens=3", "--start=<7-5"]


def test_sample_prints_completions_of_the_prompt(math_run, capsys):
    """Five of three characters: the same for the same --seed, others for another, or another trained seed."""
    outs = []
    for extra in ([], [], ["--seed=1"], ["--model_seed=1338"], ["--ckpt=ckpt_best_math.pt"]):
        sample.main([f"--out_dir={math_run}", *SAMPLE, *extra])
        outs.append(capsys.readouterr().out)
    for out in outs:
        texts = out.split("\n---------------\n")
        assert len(texts) == 6 and texts.pop() == ""
        assert all(text.startswith("<7-5") and len(text) == 7 for text in texts)
    assert outs[0] == outs[1] and outs[0] not in (outs[2], outs[3])


def test_sample_reads_its_prompt_from_a_file(math_run, tmp_path, capsys, monkeypatch):
    """The newline with which an editor ends it is the file's; ~ is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    outs = []
    for text, path in (("<1+1=", tmp_path), ("<1+1=\n", "~"), ("<1+1=\n\n", tmp_path)):
        (tmp_path / "prompt.txt").write_text(text)
        sample.main([f"--out_dir={math_run}", "--num_samples=1", f"--start=FILE:{path}/prompt.txt"])
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] and outs[0][5] != "\n" and outs[2].startswith("<1+1=\n")


def test_the_log_s_columns_are_those_of_the_design():
    assert ",".join(COLUMNS) == (
        "iter,seed,train_loss,val_loss,add_correct,add_total,sub_correct,sub_total,math_acc,heldout_correct,"
        "heldout_total,facts_correct,facts_total,facts_acc,combined_acc,elapsed_s")
