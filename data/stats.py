"""Statistics of seeds, and how a table writes them. Arrays in, numbers or text out."""
import math
from collections.abc import Callable, Sequence

import numpy as np

from data import rng

RESAMPLES = 10_000  # permutations, and draws of a bootstrap


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for a share of which k of n >= 1 were seen:

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with p = k / n and z = 1.96.
    """
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 1 for the lowest; equal ones share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def digit_order(rows: np.ndarray) -> float:
    """Spearman's rank correlation between |i - j| and the distance of rows i and j of (10, n), i < j."""
    i, j = np.triu_indices(len(rows), 1)
    distance = np.linalg.norm(rows[i] - rows[j], axis=1)
    return float(np.corrcoef(ranks(j - i), ranks(distance))[0, 1])


def two_components(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal axes of rows (10, n), (n, 2), and their share of the variance; along them the
    last row lies right of the first, the middle ones above the ends."""
    rows = rows - rows.mean(0)
    _, s, axes = np.linalg.svd(rows, full_matrices=False)
    x, y = axes[:2] @ rows.T
    flip = x[-1] < x[0], y[4:6].sum() < y[[0, -1]].sum()
    return axes[:2].T * np.where(flip, -1, 1), float((s[:2] ** 2).sum() / (s ** 2).sum())


def permutation_test(values: np.ndarray, group: np.ndarray) -> float:
    """Two-sided p of the difference of means of values (S,) in a group, bool (S,), and outside it."""
    orders = rng(0, "permutation test").permuted(np.tile(values, (RESAMPLES, 1)), axis=1)
    gap, by_chance = (abs(v[..., group].mean(-1) - v[..., ~group].mean(-1)) for v in (values, orders))
    return float((1 + (by_chance >= gap - 1e-12).sum()) / (1 + RESAMPLES))


def place_of(i: int, scores: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The place, from 1 for the highest, of item i by its mean among those of `scores`, arrays (S,); equal
    ones share the mean of theirs. And its 95% interval: seeds drawn with replacement, again and again."""
    gen = rng(0, "bootstrap")
    means = np.stack([np.append(s.mean(), gen.choice(s, (RESAMPLES, len(s))).mean(1)) for s in scores])
    places = (means > means[i]).sum(0) + ((means == means[i]).sum(0) + 1) / 2
    return float(places[0]), *map(float, np.quantile(places[1:], [0.025, 0.975]))


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95% interval for the mean of values (S,): seeds drawn with replacement, again and again."""
    means = rng(0, "bootstrap").choice(values, (RESAMPLES, len(values))).mean(1)
    return tuple(np.quantile(means, [0.025, 0.975]))


def percent(x: float) -> str:
    """A share in percent to a tenth, and finer where that would read 0 or 100 though it is not."""
    if math.isnan(x):
        return "-"  # of nothing that was asked
    for digits in range(1, 7):
        shown = f"{100 * x:.{digits}f}"
        if float(shown) not in (0, 100):
            break
    return f"{float(shown):g}"


def mean_and_range(values: np.ndarray, form: Callable = percent) -> str:
    """Mean (lowest to highest) over the seeds, of shares or, in another `form`, of other values (S,)."""
    mean, low, high = (form(x) for x in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def mean_and_interval(values: np.ndarray) -> str:
    """Mean, in percent, and of several seeds its 95% `bootstrap` interval, of shares (S,)."""
    low, high = map(percent, bootstrap(values))
    return f"{percent(values.mean())} ({low} to {high})" if len(values) > 1 else percent(values.mean())


def share_of(k: int, n: int) -> str:
    """Of how many of n seeds, or such, something is true, with Wilson's 95% interval of their share."""
    low, high = wilson(int(k), n)
    return f"{k} of {n} ({100 * low:.3g}% to {100 * high:.3g}%)"
