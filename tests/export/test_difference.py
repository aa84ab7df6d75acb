"""Comparing answers: value by value, counts by the people on their map, detections as a set."""

import math
import os

import numpy as np
import pytest

from crowdrt.export.difference import differences
from crowdrt.export.quiet import quiet

RTOL = 1e-4


def detections(scores=(0.9, 0.6, 0.3, 0.1), labels=(0, 1, 0, 0)) -> dict[str, np.ndarray]:
    """Four detections on one image; no two boxes are alike, and the largest corner is at 400."""
    boxes = np.arange(1, 5)[:, None] * np.array([10, 20, 60, 100])
    return {
        "boxes": boxes[None].astype(np.float32),
        "scores": np.array([scores], np.float32),
        "labels": np.array([labels], np.int64),
    }


def swapped(answer: dict[str, np.ndarray], one: int, other: int) -> dict[str, np.ndarray]:
    """Exchange two detections; the scores keep their places, as in a list that is sorted."""
    order = list(range(4))
    order[one], order[other] = other, one
    return {**answer, **{name: answer[name][:, order] for name in ("boxes", "labels")}}


def test_an_answer_is_no_way_from_itself():
    for difference in differences(detections(), detections(), RTOL).values():
        assert difference == (0, 0)


def test_detections_that_score_alike_may_change_places():
    tied = detections(scores=(0.9, 0.6, 0.6 + 1e-6, 0.1), labels=(0, 0, 0, 0))
    assert differences(tied, swapped(tied, 1, 2), RTOL)["boxes"] == (0, 0)


def test_detections_that_score_apart_may_not():
    apart = detections(labels=(0, 0, 0, 0))
    assert differences(apart, swapped(apart, 1, 2), RTOL)["boxes"].absolute == 100


def test_which_of_several_last_ones_is_listed_does_not_matter():
    tied = detections(scores=(0.9, 0.6, 0.1, 0.1))
    other = {**tied, "boxes": tied["boxes"].copy()}
    other["boxes"][0, 2:] += 50
    assert differences(tied, other, RTOL)["boxes"] == (0, 0)
    other["boxes"][0, 1] += 50
    assert differences(tied, other, RTOL)["boxes"] == (50, 50 / 400)


def test_another_label_is_no_counterpart():
    other = detections(labels=(0, 0, 0, 0))
    assert math.isinf(differences(detections(), other, RTOL)["boxes"].relative)


def test_other_scores_are_seen():
    other = detections(scores=(0.9, 0.6, 0.2, 0.1))
    found = differences(detections(), other, RTOL)
    assert found["scores"].absolute == pytest.approx(0.1)
    assert math.isinf(found["boxes"].relative)


def test_scores_that_are_all_alike_prove_nothing():
    flat = detections(scores=(0.5, 0.5, 0.5, 0.5))
    assert math.isinf(differences(flat, flat, RTOL)["boxes"].relative)


def test_every_image_of_a_batch_is_compared():
    one, other = detections(), swapped(detections(), 0, 2)
    pair = {name: np.concatenate([one[name], one[name]]) for name in one}
    off = {name: np.concatenate([one[name], other[name]]) for name in one}
    assert differences(pair, pair, RTOL)["boxes"] == (0, 0)
    assert differences(pair, off, RTOL)["boxes"].absolute == 200


def test_a_count_is_held_against_the_people_on_its_map():
    density = np.array([[[[4.0, -4.0, 1.0, 1.0]]]])
    count = density.sum(axis=(1, 2, 3))
    beside = differences(
        {"density": density, "count": count}, {"density": density, "count": count + 1}, RTOL
    )
    alone = differences({"count": count}, {"count": count + 1}, RTOL)
    assert beside["count"] == (1, 1 / 10)
    assert alone["count"] == (1, 1 / 2)


def test_a_value_that_is_no_number_is_a_difference():
    found = differences({"count": np.ones(2)}, {"count": np.array([1, np.nan])}, RTOL)
    assert not found["count"].relative <= RTOL
    one = detections()
    pair = {name: np.concatenate([one[name], one[name]]) for name in one}
    broken = {**pair, "boxes": pair["boxes"].copy()}
    broken["boxes"][1, 0, 0] = np.nan
    assert not differences(pair, broken, RTOL)["boxes"].relative <= RTOL


def test_quiet_also_means_libraries_that_are_no_python(capfd):
    with quiet():
        os.write(2, b"WARNING: from C++\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
