import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crowdrt.calibration.ranges import NUM_BINS, AbsHistogram, range_of
from crowdrt.contracts import CalibrationConfig

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(0, 200), elements=floats)


def histogram_of(*batches) -> AbsHistogram:
    histogram = AbsHistogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def content(histogram: AbsHistogram):
    return (
        histogram.exponent,
        histogram.num_zeros,
        histogram.largest,
        tuple(np.flatnonzero(histogram.counts)),
        tuple(histogram.counts[histogram.counts > 0]),
    )


@settings(max_examples=200, deadline=None)
@given(arrays, st.randoms(use_true_random=False), st.lists(st.integers(0, 200), max_size=6))
def test_order_and_split_do_not_matter(values, random, cuts):
    shuffled = values.copy()
    random.shuffle(shuffled)
    parts = np.split(shuffled, sorted(cuts))
    assert content(histogram_of(*parts)) == content(histogram_of(values))


@settings(max_examples=200, deadline=None)
@given(arrays.filter(len), st.floats(50.1, 100))
def test_percentile_covers_its_share_and_hardly_more(values, q):
    histogram = histogram_of(values)
    magnitude = np.abs(values.astype(np.float64))
    got = histogram.percentile(q)
    assert (magnitude <= got).mean() >= q / 100 - 1e-12
    exact = np.sort(magnitude)[int(np.ceil(q / 100 * len(magnitude))) - 1]
    assert exact <= got <= exact + histogram.width


@settings(max_examples=100, deadline=None)
@given(arrays.filter(len))
def test_nothing_is_lost_and_the_largest_is_exact(values):
    histogram = histogram_of(values)
    assert histogram.num_values == len(values)
    assert histogram.num_zeros == np.count_nonzero(values == 0)
    assert histogram.largest == histogram.percentile(100) == np.abs(values).max()
    if histogram.largest:
        assert NUM_BINS / 2 <= histogram.largest / histogram.width < NUM_BINS


def test_a_larger_value_doubles_the_bins():
    histogram = histogram_of(np.linspace(0.001, 1, 10_000))
    assert histogram.width == 2 / NUM_BINS  # the power of two above 1
    histogram.add(np.array([40.0], np.float32))
    assert histogram.width == 64 / NUM_BINS
    assert histogram.num_values == 10_001
    assert histogram.percentile(50) == pytest.approx(0.5, abs=2 * histogram.width)


def test_memory_does_not_grow_with_the_data():
    histogram = AbsHistogram()
    for i in range(50):
        histogram.add(np.random.default_rng(i).normal(0, 10.0 ** (i % 7), 1000))
    assert histogram.counts.nbytes == NUM_BINS * 8


def test_any_layout_counts_alike():
    values = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    assert content(histogram_of(values[:, :, ::2])) == content(
        histogram_of(np.ascontiguousarray(values[:, :, ::2]))
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_change_nothing(bad):
    histogram = histogram_of([1.0, 2.0])
    before = content(histogram)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        histogram.add(np.array([0.5, bad], np.float32))
    assert content(histogram) == before


def test_minmax_takes_all_and_percentile_leaves_outliers_out():
    histogram = histogram_of(np.linspace(0, 1, 100_001), [50.0])
    assert range_of(histogram, CalibrationConfig(method="minmax")) == 50
    clipped = range_of(histogram, CalibrationConfig(method="percentile", percentile=99.9))
    assert clipped == pytest.approx(0.999, abs=2 * histogram.width)


def test_a_nearly_silent_tensor_keeps_its_values():
    histogram = histogram_of(np.zeros(1_000_000), [3.0])
    assert range_of(histogram, CalibrationConfig(percentile=99.9)) == 3
    assert range_of(histogram_of(np.zeros(10)), CalibrationConfig()) == 0
    assert range_of(AbsHistogram(), CalibrationConfig(method="minmax")) == 0
