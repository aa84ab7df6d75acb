import numpy as np
import pytest

from crowdrt.benchmarks.timing import statistics
from crowdrt.benchmarks.timing.statistics import (
    RESAMPLES,
    is_estimate,
    median_interval,
    rank,
    resampled_medians,
    tail,
    uncertainty,
    variation,
    visits_of,
)


def test_the_interval_lies_between_order_statistics():
    """Conover's table for n = 10: the second and the ninth, which hold the median in 97.9 %."""
    assert rank(10) == 1
    assert median_interval([7, 3, 9, 1, 10, 5, 2, 8, 4, 6], block=1) == (2.0, 9.0)
    assert [rank(n) for n in (1, 5, 6, 8, 9, 20, 100)] == [None, None, 0, 0, 1, 5, 39]


@pytest.mark.parametrize("visits", [6, 7, 10, 25])
def test_the_interval_holds_the_true_median_at_least_as_often_as_it_says(visits):
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(600):
        low, high = median_interval(rng.exponential(1.0, visits).tolist(), block=1)
        held += low <= np.log(2) <= high
    assert held / 600 > 0.94


def test_the_interval_narrows_as_theory_has_it():
    """1.96 standard errors of a normal sample's median, 1.2533 sigma / sqrt(n)."""
    samples = np.random.default_rng(5).normal(100, 4, 400).tolist()
    low, high = median_interval(samples, block=1)
    assert (high - low) / 2 == pytest.approx(1.96 * 1.2533 * 4 / np.sqrt(400), rel=0.35)
    assert uncertainty(samples, block=1) == pytest.approx((high - low) / 2 / np.median(samples))


def test_runs_of_one_visit_are_disturbed_together():
    rng = np.random.default_rng(6)
    levels = np.repeat(rng.normal(100, 4, 20), 20)  # 20 visits of 20 runs
    samples = (levels + rng.normal(0, 0.1, 400)).tolist()
    assert uncertainty(samples, block=20) > 2 * uncertainty(samples, block=1)


def test_few_visits_know_nothing():
    """Three hold the median between them in 75 % of cases only, however many runs they are."""
    assert median_interval([10.0, 12.0, 11.0] * 5, block=3) is None
    assert uncertainty([10.0] * 30, block=10) is None
    assert median_interval(()) is None


def test_where_visits_are_not_known_neighbours_are_taken():
    assert [len(visit) for visit in visits_of(list(range(31)), 0)] == [6, 6, 6, 6, 6, 1]
    assert visits_of([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_whole_visits_are_drawn():
    samples = (1.0, 1.0, 1.0, 9.0, 9.0, 9.0)
    medians = resampled_medians(samples, np.random.default_rng(0), block=3)
    assert set(medians) == {1.0, 5.0, 9.0}  # never half a visit
    assert len(medians) == RESAMPLES


def test_a_long_series_is_drawn_in_parts(monkeypatch):
    samples = np.random.default_rng(1).normal(10, 1, 500)
    whole = resampled_medians(samples, np.random.default_rng(0), block=5)
    monkeypatch.setattr(statistics, "CHUNK", 5000)
    parts = resampled_medians(samples, np.random.default_rng(0), block=5)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(
    ("q", "nothing", "estimate", "known"),
    [(90, 9, 10, 100), (95, 19, 20, 200), (99, 99, 100, 1000)],
)
def test_a_tail_needs_samples_beyond_it(q, nothing, estimate, known):
    assert tail([1.0] * nothing, q) is None
    assert tail([1.0] * estimate, q) == 1.0
    assert is_estimate(estimate, q)
    assert is_estimate(known - 1, q)
    assert not is_estimate(known, q)


def test_variation_is_the_coefficient_of_variation():
    assert variation([8.0, 12.0]) == 0.2
