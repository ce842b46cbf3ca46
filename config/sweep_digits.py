"""Do the digits lie in order in a model's embedding, and does that tell which seeds find the rule?

The paper's runs, which lie beside this study; of your own ones in paper/: --out_dir=paper/digits.
"""
import numpy as np

from config import UserError
from config.sweep_paper import SEEDS
from config.sweep_paper_wd import SEEDS as SEEDS_WD
from data import rng
from data.log import reading
from data.stats import RESAMPLES, digit_order, mean_and_range, permutation_test, two_components
from plot_results import GREY, MODELS, accuracy, draw_digits, markdown_table
from sample import open_model

table = False

runs = [dict(base=f"config/train_math_mini_{size}{end}.py", name=f"../math_mini_{size}{end}", num_seeds=seeds)
        for end, seeds_of in (("", SEEDS), ("_wd", SEEDS_WD)) for size, seeds in seeds_of.items()]
runs[-1]["max_iters"] = 29_250  # as far as it came
NOTES = f"""\
Spearman's rank correlation between |i - j| and the distance of digits i and j in the embedding (1: they lie
in order), and the share of variance in the digits' first two principal components; mean (lowest to highest)
over the seeds. p: those that answer all held-out equations at the last evaluation and the others are alike in
mean correlation ({RESAMPLES:,} permutations, two-sided).
"""


def model_name(run) -> str:
    """What a run of the paper is called here: n14, or MLT, regularised."""
    size, *end = run.folder.name.split("_")[2:]
    return MODELS[size] + ", regularised" * bool(end)


def digit_rows(wte, vocab) -> np.ndarray:
    """The digits' rows (S, 10, n) of embeddings (S, vocab_size, n)."""
    return wte[:, [vocab.index(digit) for digit in "0123456789"]]


def read_digits(run) -> np.ndarray:
    """The digits' rows (S, 10, n) of a run: of ckpt.pt or, where that is too large to publish, wte.npz."""
    if (path := run.folder / "wte.npz").is_file():
        with reading(path), np.load(path) as saved:
            return digit_rows(saved["wte"], str(saved["vocab"]))
    model = open_model(str(run.folder))
    if model.seeds != run.info["seeds"]:
        raise UserError(f"{run.folder}: ckpt.pt is of other seeds than its log; put back what was trained")
    return digit_rows(model.embedding(), model.vocab)


def draw(fig, logs):
    """The digits of the first four models, one seed large and some more small; below, their order in every
    seed of all, and apart in those that have all held-out answers right and in the others."""
    fig.set_size_inches(12.8, 9.5)
    top, bottom = fig.subfigures(2, height_ratios=(6, 3.5))
    grid, digits = top.add_gridspec(2, 4, height_ratios=(3.4, 2.4)), [*map(read_digits, logs)]
    for column, (run, seeds) in enumerate(zip(logs[:4], digits)):
        ax = top.add_subplot(grid[0, column])
        ax.set_title(f"{model_name(run)}, seed {run.info['seeds'][0]}: "
                     f"{two_components(seeds[0])[1]:.0%} of variance", fontsize=10)
        draw_digits(ax, seeds[0], 10)
        for place, rows in zip(grid[1, column].subgridspec(3, 4), seeds[1:]):
            draw_digits(top.add_subplot(place), rows, 4)
    cells, orders = [["model", "seeds", "rank correlation", "variance in two components, %"]], {}
    for run, seeds in zip(logs, digits):
        order, variance = np.array([(digit_order(rows), two_components(rows)[1]) for rows in seeds]).T
        right, name = accuracy(run, "heldout")[-1] == 1, model_name(run)
        groups = {name: np.full(len(right), True)}
        if right.any() and not right.all():
            p = permutation_test(order, right)
            groups |= {f"{name}, all held-out right": right,
                       f"{name}, others (difference: p = {p:.2g})": ~right}
        for group, chosen in groups.items():
            orders[f"{group} ({chosen.sum()})"] = order[chosen]
            cells.append([group, str(chosen.sum()), mean_and_range(order[chosen], "{:.3f}".format),
                          mean_and_range(variance[chosen])])
    draw_orders(bottom.subplots(), orders)
    return markdown_table("The order of the digits", NOTES, cells)


def draw_orders(ax, orders):
    """For each group of seeds a row of dots, their rank correlations (S,), and a line at the mean."""
    for y, order in enumerate(orders.values()):
        ax.plot(order, y + rng(y, "spread").uniform(-0.25, 0.25, len(order)), ".", color=GREY, alpha=0.6)
        ax.plot([order.mean()] * 2, [y - 0.35, y + 0.35], color="black")
    ax.set_yticks(range(len(orders)), orders, fontsize=9)
    ax.set(ylim=(len(orders) - 0.5, -0.5), title="Do the digits lie in order? Every seed, and the mean",
           xlabel="rank correlation of |i - j| and the digits' distance")
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
