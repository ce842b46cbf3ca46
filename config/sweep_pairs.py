"""Is 5-7 a lucky pair to hold out?"""
import numpy as np

import eval_as_math
from config import UserError
from data.stats import percent, place_of
from plot_results import accuracy, draw_cells
from sample import open_model

num_seeds = 4
eval_interval = 1000

runs = [dict(held_out=f"{a}-{b}") for a in range(10) for b in range(a + 1, 10)]


def pair_scores(run) -> tuple[float, float]:
    """Right held-out additions and subtractions (%), which the log has but together: ckpt.pt is asked as it
    was in the last evaluation. Raises UserError if there is none."""
    model, sampling = open_model(str(run.folder)), ("num_samples", "temperature", "top_k")
    texts = eval_as_math.ask(model, model, model.seeds, model.iters,
                             **{key: run.notes["config"][key] for key in sampling})
    correct = eval_as_math.is_correct(texts)  # (S, 200, num_samples)
    held_out, is_add = eval_as_math.masks(correct.shape[1], model.held_out)
    return 100 * correct[:, held_out & is_add].mean(), 100 * correct[:, held_out & ~is_add].mean()


def draw(fig, logs):
    """The held-out score of each pair, one a run: of addition above the diagonal, of subtraction below."""
    scores, ax = np.full((10, 10), np.nan), fig.subplots()
    for run in logs:
        (a, b), *others = run.notes["held_out"]
        if others or a == b:
            raise UserError(f"{run.folder}: this study's runs hold out one pair each, of two digits")
        scores[a, b], scores[b, a] = pair_scores(run)
    fig.set_size_inches(7, 7)
    draw_cells(ax, scores)
    ax.set(xticks=range(10), yticks=range(10), xlabel="above the diagonal: addition, a+b and b+a",
           ylabel="below the diagonal: subtraction, a-b and b-a",
           title=f"Each pair held out in turn: {np.nanmean(scores):.0f}% of its answers are right on average")
    ax.invert_yaxis()
    return rank(logs, [5, 7])


def rank(logs, pair) -> str:
    """Where a held-out pair stands among the others by its mean score over seeds, if it is there."""
    pairs, scores = [run.notes["held_out"] for run in logs], [accuracy(run, "heldout")[-1] for run in logs]
    if [pair] not in pairs:
        return ""
    place, low, high = place_of(i := pairs.index([pair]), scores)
    return (f"{pair[0]}-{pair[1]} has rank {place:g} of {len(logs)} (95% bootstrap interval over seeds "
            f"{low:g} to {high:g}) by its mean held-out score, {percent(scores[i].mean())}%.\n")
