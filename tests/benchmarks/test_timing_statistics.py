import numpy as np
import pytest

from crowdrt.benchmarks.timing.statistics import (
    is_estimate,
    median_interval,
    resampled_medians,
    tail,
    uncertainty,
    variation,
)

RNG = np.random.default_rng(5)
NORMAL = tuple(RNG.normal(100, 4, 400))


def test_the_interval_of_independent_samples_is_that_of_theory():
    low, high = median_interval(NORMAL)
    theory = 1.96 * 1.2533 * 4 / np.sqrt(400)  # standard error of a normal sample's median
    assert low < np.median(NORMAL) < high
    assert (high - low) / 2 == pytest.approx(theory, rel=0.35)
    assert uncertainty(NORMAL) == pytest.approx((high - low) / 2 / np.median(NORMAL))


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        samples = np.random.default_rng(seed).normal(50, 3, 60)
        low, high = median_interval(tuple(samples), block=1, resamples=300)
        inside += low <= 50 <= high
    assert 180 <= inside <= 199


def test_runs_of_one_visit_are_disturbed_together():
    levels = np.repeat(RNG.normal(100, 4, 20), 20)  # 20 visits of 20 runs
    samples = tuple(levels + RNG.normal(0, 0.1, 400))
    known = uncertainty(samples, block=20)
    assert known > 3 * uncertainty(samples, block=1)
    assert known == pytest.approx(1.96 * 1.2533 * 0.04 / np.sqrt(20), rel=0.6)


def test_whole_visits_are_drawn():
    samples = (1.0, 1.0, 1.0, 9.0, 9.0, 9.0)
    medians = resampled_medians(samples, np.random.default_rng(0), block=3)
    assert set(medians) == {1.0, 5.0, 9.0}  # never half a visit


def test_of_three_runs_the_whole_range_is_the_interval():
    assert median_interval((10.0, 12.0, 11.0)) == (10.0, 12.0)
    assert median_interval(()) == (0.0, float("inf"))
    assert uncertainty(()) == float("inf")


def test_a_last_visit_that_was_cut_short_counts():
    low, high = median_interval((10.0, 10.0, 10.0, 30.0), block=3)
    assert (low, high) == (10.0, 20.0)  # it is drawn twice at most, and ends with the first


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
