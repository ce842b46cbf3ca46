"""Statistics of seeds, each against its definition or a case worked out by hand."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import stats


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_limits_solve_its_equation(kn):
    k, n = kn
    low, high = stats.wilson(k, n)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1
    for p in (low, high):  # at a limit the share is 1.96 standard errors away
        assert math.isclose((k / n - p) ** 2, 1.959964 ** 2 * p * (1 - p) / n, rel_tol=1e-6, abs_tol=1e-9)


def test_ranks_by_hand():
    assert stats.ranks(np.array([3, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


def test_digits_on_a_line_lie_in_order():
    line = np.arange(10)[:, None] * np.array([[3.0, -1, 2, 0.5]]) + 7
    assert stats.digit_order(line) == pytest.approx(1)
    # rows 0, 2, 1: |i - j| of the pairs 01, 02, 12 is 1, 2, 1 and the distances are 2, 1, 1
    assert stats.digit_order(np.array([[0.0], [2], [1]])) == pytest.approx(-0.5)


@pytest.mark.parametrize("turn", [1, -1])
def test_two_components_are_turned_alike(turn):
    """Of an arch in five dimensions, whichever way it lies: its ends below, the last one at the right."""
    x, y = np.arange(10) - 4.5, np.sin(np.arange(10) / 9 * np.pi)
    plane = np.linalg.qr(np.arange(10.0).reshape(5, 2) ** 2)[0]
    rows = turn * np.stack([x, y], axis=1) @ plane.T
    axes, share = stats.two_components(rows)
    np.testing.assert_allclose((rows - rows.mean(0)) @ axes, np.stack([x, y - y.mean()], axis=1), atol=1e-9)
    assert share == pytest.approx(1)
    # squared, the four components below are as 9 : 4 : 2 : 1
    assert stats.two_components(np.diag([3, 2, 2 ** 0.5, 1])[[0, 0, 1, 1, 2, 2, 3, 3]] * np.array(
        [1, -1] * 4)[:, None])[1] == pytest.approx(13 / 16)


def test_permutation_test():
    values = np.arange(8.0)
    assert stats.permutation_test(values, values > 3) == pytest.approx(2 / 70, abs=0.005)
    assert stats.permutation_test(values, values % 4 == 0) > 0.3
    assert stats.permutation_test(np.ones(4), np.arange(4) < 2) == 1


def test_place_of_by_hand():
    scores = [np.full(2, right / 4) for right in (4, 3, 3, 2, 4)]
    assert stats.place_of(1, scores) == (3.5, 3.5, 3.5) and stats.place_of(3, scores)[0] == 5
    # the mean of 0 and 1 drawn twice: 0 in a quarter of draws, half, 1 in a quarter; 3 of 4 draws beat 0.25
    assert stats.place_of(0, [np.array([0, 1]), np.full(2, 0.25)]) == (1, 1, 2)


@pytest.mark.parametrize("share, shown", [(1, "100"), (0, "0"), (0.5, "50"), (0.99996, "99.996"),
                                          (2 / 3, "66.7"), (1.2e-4, "0.01"), (0.9996, "99.96")])
def test_a_share_that_is_not_all_does_not_read_so(share, shown):
    assert stats.percent(share) == shown
