"""Each method against a reference that works on the values themselves, as its authors state it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crowdrt.calibration.ranges.histogram import NUM_BINS, AbsHistogram
from crowdrt.calibration.ranges.methods import range_of
from crowdrt.contracts import RANGE_METHODS, CalibrationConfig


def histogram_of(*batches) -> AbsHistogram:
    histogram = AbsHistogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def found(values, method, **options) -> float:
    return range_of(histogram_of(values), CalibrationConfig(method=method, **options))


def draw(kind, seed=0, num=3000):
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.normal(0, 2, num),
        "relu": lambda: np.maximum(rng.normal(-0.5, 1, num), 0),
        "heavy": lambda: rng.standard_t(2, num),
        "exponential": lambda: rng.exponential(0.01, num),
        "outlier": lambda: np.append(rng.normal(0, 1, num), [40.0]),
        "two heaps": lambda: np.append(rng.normal(0, 0.1, num), rng.normal(7, 0.01, num // 10)),
        "pixels": lambda: (rng.integers(0, 256, num) - 120) / 60,
        "few": lambda: rng.normal(0, 1, 7),
    }[kind]()
    return np.asarray(values, np.float32)


KINDS = ("normal", "relu", "heavy", "exponential", "outlier", "two heaps", "pixels", "few")


def slides(values):
    """Range and KL(P || Q) of every candidate, by the pseudo-code of Migacz's slides."""
    magnitude = np.abs(values.astype(np.float64))
    magnitude = magnitude[magnitude > 0]
    power = 2.0 ** np.floor(np.log2(magnitude.max())) * 2
    width = 2 * power / NUM_BINS
    num_bins = int(magnitude.max() // width) + 1
    counts, _ = np.histogram(magnitude, np.arange(num_bins + 1) * width)
    assert counts.sum() == len(magnitude)
    answers = {}
    for i in range(128, num_bins + 1):
        p = counts[:i].astype(float)
        p[-1] += counts[i:].sum()
        level = np.arange(i) * 128 // i
        filled = np.bincount(level, p > 0)
        q = (np.bincount(level, counts[:i]) / np.maximum(filled, 1))[level]
        p, q = p[p > 0] / p.sum(), q[p > 0] / max(counts[:i].sum(), 1)
        kl = np.inf if (q == 0).any() else float((p * np.log(p / q)).sum())
        answers[min((i + 0.5) * width, magnitude.max())] = kl
    return answers


@pytest.mark.parametrize("kind", ["heavy", "outlier", "pixels", "few"])
def test_entropy_is_what_the_slides_say(kind):
    values = draw(kind, num=400)
    candidates = slides(values)
    got = found(values, "entropy")
    nearest = min(candidates, key=lambda t: abs(t - got))
    assert got == pytest.approx(nearest, rel=1e-12)
    assert candidates[nearest] == pytest.approx(min(candidates.values()), abs=1e-9)
    if kind == "outlier":
        assert got < 4, "the outlier is left out"


def rounding_error(values, limit):
    """Mean squared error of the values as INT8 numbers."""
    values = values.astype(np.float64)
    step = limit / 127
    return float(np.mean((np.clip(np.round(values / step), -127, 127) * step - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_no_other_range_has_a_smaller_squared_error(kind, seed):
    values = draw(kind, seed)
    largest = float(np.abs(values).max())
    bin_width = histogram_of(values).width
    tries = [largest * 0.99**k for k in range(400) if largest * 0.99**k > 127 * bin_width]
    best = min(rounding_error(values, t) for t in tries)
    got = rounding_error(values, found(values, "mse"))
    # a value is known to within its bin, so an error too
    assert np.sqrt(got) <= 1.005 * np.sqrt(best) + bin_width / 4


def test_clipping_pays_where_an_outlier_is_rare_enough():
    values = draw("outlier", num=300_000)
    got = found(values, "mse")
    # (40 - T)^2 / 300 000 for the outlier, (T / 127)^2 / 12 for all others: the least is at
    clip, rounding = 1 / 300_000, 1 / (12 * 127**2)
    assert got == pytest.approx(40 * clip / (clip + rounding), rel=0.03)
    assert rounding_error(values, got) < 0.5 * rounding_error(values, 40.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [99.0, 99.9])
def test_percentile_by_sorting(kind, q):
    values = draw(kind)
    ordered = np.sort(np.abs(values.astype(np.float64)))
    exact = ordered[int(np.ceil(q / 100 * len(ordered))) - 1]
    got = found(values, "percentile", percentile=q)
    assert exact <= got <= exact + histogram_of(values).width


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_by_looking(kind):
    values = draw(kind)
    assert found(values, "minmax") == np.abs(values).max()


@pytest.mark.parametrize("method", RANGE_METHODS)
class TestEdges:
    def test_all_zero(self, method):
        assert found(np.zeros(100), method) == 0
        assert range_of(AbsHistogram(), CalibrationConfig(method=method)) == 0

    @pytest.mark.parametrize("value", [3.0, -3.0, 1.0, 1e-30, 1e-42, 3e38])
    def test_a_constant_and_one_value_are_kept(self, method, value):
        for num in (1, 1000):
            exact = float(np.abs(np.float32(value)))
            assert found(np.full(num, value), method) == pytest.approx(exact, rel=1e-6)

    def test_one_value_among_zeros_is_kept(self, method):
        assert found(np.append(np.zeros(1_000_000), 3.0), method) == pytest.approx(3.0)

    def test_a_dead_channel_adds_zeros_only(self, method):
        alive = draw("normal").reshape(1, 3, 40, 25)
        both = np.concatenate([alive, np.zeros_like(alive)], axis=1)
        if method != "percentile":  # of which zeros are values
            assert found(both, method) == found(alive, method)
        assert 0 < found(both, method) <= found(alive, method)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_refused(self, method, bad):
        with pytest.raises(FloatingPointError):
            found([1.0, bad], method)

    def test_signs_do_not_matter(self, method):
        values = draw("heavy")
        assert found(values, method) == found(-values, method) == found(np.abs(values), method)

    @settings(max_examples=12, deadline=None)
    @given(
        values=hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32)),
        random=st.randoms(use_true_random=False),
        cuts=st.lists(st.integers(0, 300), max_size=4),
    )
    def test_order_and_split_do_not_matter(self, method, values, random, cuts):
        shuffled = values.copy()
        random.shuffle(shuffled)
        config = CalibrationConfig(method=method)
        parts = np.split(shuffled, sorted(cuts))
        got = range_of(histogram_of(*parts), config)
        assert got == range_of(histogram_of(values), config)
        assert 0 <= got <= np.abs(values).max()
        assert (got == 0) == (not values.any())

    @pytest.mark.parametrize("power", [-20, 7])
    def test_a_scaled_tensor_has_a_scaled_range(self, method, power):
        values = draw("heavy")
        assert found(values * np.float32(2.0**power), method) == pytest.approx(
            found(values, method) * 2.0**power, rel=1e-12
        )


def test_entropy_looks_at_nothing_below_128_bins():
    values = np.append(np.full(10_000, 1e-6), [1.0])
    got = found(values, "entropy")
    assert got >= 128 * 2 / NUM_BINS


def test_share_above():
    values = np.arange(1, 1001) / 1000
    histogram = histogram_of(values)
    for limit in (0.0, 0.1004, 0.5004, 0.9994):
        assert histogram.share_above(limit) == pytest.approx((values > limit).mean(), abs=0.001)
    assert histogram.share_above(1.0) == histogram.share_above(2.0) == 0
    assert AbsHistogram().share_above(0.0) == 0
