"""Is 5-7 a lucky pair to hold out?"""
import numpy as np

import eval_as_math
from config import UserError
from data.stats import percent, place_of
from plot_results import accuracy, draw_cells

num_seeds = 4
eval_interval = 1000

runs = [dict(held_out=f"{a}-{b}") for a in range(10) for b in range(a + 1, 10)]


def pair_scores(run) -> tuple[float, float]:
    """Right held-out additions and subtractions (%), which the log has but together."""
    texts, held_out, add = eval_as_math.ask_again(run)
    correct = eval_as_math.is_correct(texts)  # (S, 200, num_samples)
    return 100 * correct[:, held_out & add].mean(), 100 * correct[:, held_out & ~add].mean()


def draw(fig, logs):
    """The held-out score of each pair, one a run: of addition above the diagonal, of subtraction below. Then
    where 5-7 stands among the others, if it is there."""
    if wrong := [run.folder for run in logs if len(run.info["held_out"]) != 1]:
        raise UserError(f"{wrong[0]}: this study's runs hold out one pair each")
    fig.set_size_inches(5, 5)
    cells, ax, pairs = {}, fig.subplots(), [tuple(run.info["held_out"][0]) for run in logs]
    for (a, b), run in zip(pairs, logs):
        cells[a, b], cells[b, a] = pair_scores(run)
    draw_cells(ax, cells)
    mean = np.mean([*cells.values()])
    ax.set(title=f"Each pair held out in turn: of its answers\n{mean:.0f}% are right on average",
           xlabel="above the diagonal: addition, a+b and b+a",
           ylabel="below the diagonal: subtraction, a-b and b-a")
    ax.invert_yaxis()
    if (5, 7) in pairs:
        scores, i = [accuracy(run, "heldout")[-1] for run in logs], pairs.index((5, 7))
        place, low, high = place_of(i, scores)
        return (f"5-7 has rank {place:g} of {len(logs)} (95% bootstrap interval over seeds {low:g} to "
                f"{high:g}) by its mean held-out score, {percent(scores[i].mean())}%.\n")
