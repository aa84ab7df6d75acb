"""What got faster, on made samples whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from crowdrt.benchmarks.timing.difference import (
    DRIFT,
    change_of,
    compare,
    interval,
    resampled_medians,
)
from crowdrt.contracts import Measurement


def row(median=100.0, *, seed=0, noise=0.02, number=60, **changes) -> Measurement:
    """A row whose samples scatter around a median."""
    rng = np.random.default_rng(seed)
    samples = median * (1 + noise * rng.standard_normal(number))
    made = Measurement(
        name="student",
        network="csrnet",
        width="1/4",
        engine="onnxruntime",
        engine_version="1",
        precision="fp32",
        size=(576, 864),
        num_threads=2,
        samples_ms=tuple(samples),
        peak_mib=100.0,
        machine={"cpu": "one"},
        verdict="valid",
        sha256="a",
    )
    return replace(made, **changes)


def changes_of(before, after):
    return [each.change for each in compare(before, after).rows]


@pytest.mark.parametrize(
    ("median", "change"), [(80.0, "faster"), (99.0, "within noise"), (125.0, "slower")]
)
def test_another_file_is_faster_or_slower_beyond_the_assumed_drift(median, change):
    found = compare([row()], [row(median, seed=1, sha256="b")])
    assert (found.rows[0].change, found.drift, found.drift_known) == (change, DRIFT, False)
    assert found.rows[0].ratio == pytest.approx(median / 100, rel=0.02)


def test_what_is_the_same_on_both_sides_says_how_far_the_machine_drifts():
    """The student is 12 % faster on a machine where an untouched file became 15 % faster."""
    untouched = row(network="bl", sha256="c")
    before, after = [row(), untouched], [row(88, seed=1, sha256="b"), row(85, network="bl")]
    assert changes_of(before, after) == ["faster", "faster"]
    after[1] = row(85, network="bl", sha256="c")
    found = compare(before, after)
    assert [each.change for each in found.rows] == ["within noise", "within noise"]
    assert found.drift == pytest.approx(0.177, abs=0.02)
    assert found.drift_known
    quiet = [row(88, seed=1, sha256="b"), row(100.4, network="bl", sha256="c")]
    assert changes_of(before, quiet) == ["faster", "within noise"]


def test_another_version_of_the_library_is_not_the_same():
    found = compare([row()], [row(engine_version="2")])
    assert not found.rows[0].same
    assert not compare([row(sha256="")], [row(sha256="")]).rows[0].same


def test_few_or_no_samples_show_no_change():
    few = compare([row()], [row(50, number=4, sha256="b")]).rows[0]
    assert (few.change, few.high) == ("too few visits", float("inf"))
    failed = compare([row()], [row(samples_ms=(), sha256="b")]).rows[0]
    assert failed.change == "unmeasured"
    assert np.isnan(failed.ratio)
    assert compare([row(samples_ms=())], [row(samples_ms=())]).drift == DRIFT


def test_the_newest_row_of_a_kind_counts_and_the_rest_is_named():
    before = [row(300), row(), row(size=(1024, 2048))]
    found = compare(before, [row(101, seed=1, sha256="b"), row(num_threads=1)])
    assert [each.change for each in found.rows] == ["within noise"]
    assert [each.size for each in found.gone] == [(1024, 2048)]
    assert [each.num_threads for each in found.new] == [1]


def test_samples_that_hang_together_are_less_sure_than_as_many_that_do_not():
    """A machine that slows down and recovers: the same values, in that order or scattered."""
    values = 100 + 10 * np.sin(np.linspace(0, 4 * np.pi, 200))
    scattered = np.random.default_rng(4).permutation(values)
    rng = np.random.default_rng(5)
    spreads = [np.std(resampled_medians(each, rng)) for each in (values, scattered)]
    assert spreads[0] > 1.3 * spreads[1]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(100):
        before, after = (
            tuple(median * np.exp(0.1 * rng.standard_normal(40))) for median in (1, 0.9)
        )
        low, high = interval(row(samples_ms=before), row(samples_ms=after))
        covered += low <= 0.9 <= high
    assert 88 <= covered <= 100


@pytest.mark.parametrize(
    ("low", "high", "change"),
    [
        (0.5, 0.951, "faster"),
        (0.5, 0.953, "within noise"),
        (1.051, 1.3, "slower"),
        (1.049, 1.3, "within noise"),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_drift(low, high, change):
    assert change_of(low, high, 0.05) == change
