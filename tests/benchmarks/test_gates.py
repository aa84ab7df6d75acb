"""A gate holds or fails, and a failure names the number seen and the number tolerated."""

import math
from dataclasses import replace

import pytest

from crowdrt.benchmarks.accuracy.comparison import compared, comparison
from crowdrt.benchmarks.accuracy.counts import CountRow
from crowdrt.benchmarks.accuracy.detection import DetectionQuality
from crowdrt.benchmarks.accuracy.gates import judge, judge_detections
from crowdrt.benchmarks.accuracy.maps import MapQuality
from crowdrt.contracts import Gate, default_gates
from crowdrt.errors import RecipeError

ANNOTATED = (10, 20, 100, 110, 500, 520)
REFERENCE = (20.0, 30.0, 90.0, 100.0, 510.0, 530.0)  # 10 people wrong everywhere: MAE 10
LOOSE = Gate(mae_increase=9, bias_shift=9, bias_shift_people=999, psnr_db=None)


def rows(counts, annotated=ANNOTATED):
    return [
        CountRow(image=f"{k}.jpg", count=count, annotated=number)
        for k, (count, number) in enumerate(zip(counts, annotated, strict=True))
    ]


def verdict(gate, counts=REFERENCE, annotated=ANNOTATED, psnr_db=None):
    maps = [MapQuality(psnr_db, None)] * len(counts)
    found = compared(rows(counts, annotated), rows(REFERENCE, annotated), maps)
    return judge(gate, comparison(found))


def moved(*by):
    return [count + each for count, each in zip(REFERENCE, by, strict=True)]


@pytest.mark.parametrize("gate", [*default_gates().values(), LOOSE])
def test_what_counts_as_before_holds(gate):
    found = verdict(gate, psnr_db=150.0)
    assert found.held
    assert (found.breaches, found.unjudged, found.reason) == ((), (), "")


@pytest.mark.parametrize(("extra", "held"), [(0.59, True), (0.61, False)])
def test_mae_may_grow_by_one_per_cent(extra, held):
    gate = replace(LOOSE, mae_increase=0.01)
    found = verdict(gate, moved(0, 0, 0, 0, 0, extra))  # of 60 people in all
    assert found.held is held
    if not held:
        [breach] = found.breaches
        assert breach.limit == "mae_increase"
        assert (breach.seen, breach.tolerated) == (pytest.approx(60.61 / 6), pytest.approx(10.1))
        assert found.reason == "MAE 10.10, at most 10.10 is tolerated (FP32 10.00, +1.0%)"


def test_a_smaller_mae_is_no_loss():
    assert verdict(replace(LOOSE, mae_increase=0), moved(-9, -9, 9, 9, -9, -9)).held


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("by", "held"), [(1.9, True), (2.2, False)])
def test_bias_may_move_by_two_per_cent_of_a_bin(by, sign, held):
    gate = replace(LOOSE, bias_shift=0.02, bias_shift_people=1)  # 2.1 of 105 people
    found = verdict(gate, moved(0, 0, sign * by, sign * by, 0, 0))
    assert found.held is held
    if not held:
        [breach] = found.breaches
        assert (breach.limit, breach.tolerated) == ("bias_shift", pytest.approx(2.1))
        assert breach.seen == pytest.approx(sign * 2.2)
        assert "on medium photographs (100 to 110 people), at most 2.10" in found.reason


@pytest.mark.parametrize(("by", "held"), [(0.99, True), (1.01, False)])
def test_where_few_people_are_a_number_of_people_is_tolerated(by, held):
    gate = replace(LOOSE, bias_shift=0.02, bias_shift_people=1)  # 2 % of 15 people are 0.3
    assert verdict(gate, moved(by, by, 0, 0, 0, 0)).held is held


def test_a_shift_is_refused_though_it_happens_to_lower_the_error():
    found = verdict(Gate(), moved(-5, -5, 0, 0, 0, 0))
    assert found.reason.startswith("bias moves by -5.00 people on sparse photographs (10 to 20")
    assert [breach.limit for breach in found.breaches] == ["bias_shift"]


def test_opposite_shifts_of_two_bins_do_not_cancel():
    found = verdict(replace(LOOSE, bias_shift=0, bias_shift_people=4), moved(5, 5, -5, -5, 0, 0))
    assert [breach.seen for breach in found.breaches] == [5, -5]


@pytest.mark.parametrize(("seen", "held"), [(20.5, True), (19.5, False)])
def test_maps_may_be_as_noisy_as_the_floor(seen, held):
    found = verdict(replace(LOOSE, psnr_db=20.0), psnr_db=seen)
    assert found.held is held
    if not held:
        assert found.reason == (
            "density maps at 19.5 dB PSNR in the median, at least 20.0 is tolerated"
        )


def test_every_limit_that_is_passed_is_named():
    found = verdict(Gate(), moved(9, 9, 9, 9, 90, 90), psnr_db=5.0)
    limits = [breach.limit for breach in found.breaches]
    assert limits == ["mae_increase", "psnr_db", *["bias_shift"] * 4]
    assert found.reason.count("; ") == 5
    document = found.as_dict()
    assert document["held"] is False
    assert document["breaches"][1] | {"text": ""} == {
        **{"limit": "psnr_db", "seen": 5.0, "tolerated": 30.0, "text": ""},
    }


def test_without_annotations_counts_are_judged_and_the_error_is_not():
    found = verdict(Gate(), annotated=[None] * 6)
    assert found.held
    assert found.unjudged == (
        "MAE: no photograph is annotated",
        "PSNR: there are no two density maps to compare",
    )
    assert not verdict(Gate(), moved(5, 5, 0, 0, 0, 0), annotated=[None] * 6).held


def test_a_count_that_is_no_number_does_not_hold():
    assert not verdict(LOOSE, moved(math.nan, 0, 0, 0, 0, 0)).held


def quality(ap50):
    return DetectionQuality(
        num_images=9,
        num_people=90,
        ap50=ap50,
        ap75=0.4,
        ap=0.4,
        mr2=0.5,
        ji=0.6,
        recall=0.7,
        ap50_nms=ap50,
        duplicates=0.0,
        min_score=0.3,
    )


@pytest.mark.parametrize(("after", "held"), [(0.8, True), (0.715, True), (0.705, False)])
def test_ap_may_fall_by_a_point(after, held):
    found = judge_detections(Gate(), quality(after), quality(0.72))
    assert found.held is held
    if not held:
        assert found.reason == "AP 70.50%, at least 71.00% is tolerated (FP32 72.00%)"
    assert judge_detections(Gate(), None, quality(0.7)).unjudged


@pytest.mark.parametrize("value", [-0.01, math.nan])
def test_a_gate_that_nothing_passes_is_refused(value):
    with pytest.raises(RecipeError, match=f"mae_increase={value}"):
        Gate(mae_increase=value)


def test_float16_is_held_to_a_tenth():
    gates = default_gates()
    assert gates["fp16"].mae_increase == 0.001
    assert gates["int8"].mae_increase == gates["int8+fp16"].mae_increase == 0.01
