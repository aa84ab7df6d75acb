"""An engine against its reference: errors in total, per bin and per photograph."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdrt.benchmarks.accuracy.comparison import (
    bin_of,
    compared,
    comparison,
    terciles,
)
from crowdrt.benchmarks.accuracy.counts import CountRow, accuracy
from crowdrt.benchmarks.accuracy.maps import MapQuality
from crowdrt.errors import BenchmarkError

ANNOTATED = (10, 20, 100, 110, 500, 520)
REFERENCE = (12.0, 18.0, 100.0, 100.0, 480.0, 520.0)


def rows(counts, annotated=ANNOTATED):
    return [
        CountRow(image=f"{k}.jpg", count=count, annotated=number)
        for k, (count, number) in enumerate(zip(counts, annotated, strict=True))
    ]


def found(counts, annotated=ANNOTATED, reference=REFERENCE, maps=None):
    return comparison(compared(rows(counts, annotated), rows(reference, annotated), maps))


def test_errors_in_total_and_per_bin_by_hand():
    result = found([14.0, 22.0, 101.0, 99.0, 470.0, 520.0])
    assert [each.name for each in result.bins] == ["sparse", "medium", "dense"]
    assert [(each.fewest, each.most) for each in result.bins] == [(10, 20), (100, 110), (500, 520)]
    assert [each.people for each in result.bins] == [15, 105, 510]
    assert [each.engine.mae for each in result.bins] == [3, 6, 15]
    assert [each.reference.mae for each in result.bins] == [2, 5, 10]
    assert [each.engine.bias for each in result.bins] == [3, -5, -15]
    assert [each.shift for each in result.bins] == [3, 0, -5]
    assert result.total.num_images == 6
    assert result.total.engine.mae == pytest.approx(8)
    assert result.total.engine.rmse == pytest.approx(((16 + 4 + 1 + 121 + 900 + 0) / 6) ** 0.5)
    assert result.total.reference.mae == pytest.approx(34 / 6)
    assert result.total.shift == pytest.approx(-4 / 6)
    assert (result.sums.largest, result.sums.where) == (-10, "4.jpg")
    assert (result.sums.count, result.sums.reference) == (470, 480)
    assert result.sums.mean == pytest.approx(18 / 6)
    assert result.annotated


def test_opposite_shifts_vanish_in_the_total_alone():
    result = found([22.0, 28.0, 100.0, 100.0, 470.0, 510.0])
    assert result.total.shift == 0
    assert [each.shift for each in result.bins] == [10, 0, -10]


def test_terciles_are_numbers_of_people_that_are_there():
    assert terciles([9, 1, 8, 2, 7, 3]) == (2, 7)
    assert terciles([5]) == (5, 5)
    assert terciles([5, 3]) == (3, 5)
    assert terciles([1, 2, 3, 4]) == (2, 3)
    assert [bin_of(people, (2, 7)) for people in (0, 2, 2.5, 7, 8)] == [0, 0, 1, 1, 2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_every_photograph_is_in_one_bin_and_fewer_people_never_in_a_denser(people):
    borders = terciles(people)
    bins = [bin_of(each, borders) for each in sorted(people)]
    assert bins == sorted(bins)
    assert bins[0] == 0
    if len(set(people)) == len(people):  # without equal numbers the bins are as even as can be
        sizes = [bins.count(k) for k in range(3)]
        assert max(sizes) - min(sizes) <= 1


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.floats(-50, 400), st.floats(-50, 400)),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_bins_add_up_to_the_total_in_any_order(people, random):
    annotated, counts, reference = zip(*people, strict=True)
    result = found(counts, annotated, reference)
    total = sum(each.num_images * each.shift for each in result.bins)
    assert total == pytest.approx(len(people) * result.total.shift, abs=1e-6)
    total = sum(each.num_images * each.engine.mae for each in result.bins)
    assert total == pytest.approx(len(people) * result.total.engine.mae, abs=1e-6)
    bias = result.total.engine.bias - result.total.reference.bias
    assert result.total.shift == pytest.approx(bias, abs=1e-6)
    mixed = random.sample(people, len(people))
    again = found(*(zip(*[(c, a, r) for a, c, r in mixed], strict=True)))
    assert [each.num_images for each in again.bins] == [each.num_images for each in result.bins]
    for one, other in zip(again.bins, result.bins, strict=True):
        assert one.shift == pytest.approx(other.shift, abs=1e-6)


def test_an_engine_held_against_itself_loses_nothing():
    result = found(REFERENCE)
    assert result.total.engine == result.total.reference == accuracy(rows(REFERENCE))
    assert result.sums.mean == 0
    assert all(each.shift == 0 for each in result.bins)


def test_without_annotations_the_reference_says_how_many_people():
    result = found([14.0, 20.0, 100.0, 90.0, 480.0, 530.0], annotated=[None] * 6)
    assert not result.annotated
    assert result.total.engine is result.total.reference is None
    assert [(each.fewest, each.most) for each in result.bins] == [(12, 18), (100, 100), (480, 520)]
    assert [each.shift for each in result.bins] == [2, -5, 5]


def test_of_a_mixed_set_the_annotated_ones_are_binned_and_all_counts_compared():
    annotated = [10, None, None, 110, 500, None]
    result = found([12.0, 18.0, 100.0, 100.0, 480.0, 620.0], annotated)
    assert result.total.num_images == 3
    assert result.total.shift == 0
    assert (result.sums.largest, result.sums.where) == (100, "5.jpg")


def test_maps_are_summed_up_where_there_are_any():
    maps = [MapQuality(30.0, 0.9), MapQuality(), MapQuality(20.0, None), MapQuality(40.0, 0.5)]
    result = found(REFERENCE, maps=[*maps, MapQuality(), MapQuality()])
    assert (result.psnr_db.num_images, result.psnr_db.median) == (3, 30)
    assert (result.psnr_db.lowest, result.psnr_db.where) == (20, "2.jpg")
    assert (result.ssim.num_images, result.ssim.median) == (2, pytest.approx(0.7))
    assert found(REFERENCE).psnr_db is None


def test_other_photographs_are_refused():
    with pytest.raises(BenchmarkError, match="not of the same ones"):
        compared(rows(REFERENCE), rows(REFERENCE)[::-1])
    with pytest.raises(BenchmarkError, match="no photograph"):
        comparison([])


def test_a_constant_bias_shows_where_few_people_are():
    counts = np.array(REFERENCE) + 5
    shares = [each.shift / each.people for each in found(counts.tolist()).bins]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.3 > 0.02 > shares[2]
