"""AP, MR^-2, JI and Recall: worked by hand, against pycocotools, and what must always hold."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdrt.benchmarks.accuracy.detection import (
    COCO_IOUS,
    detection_quality,
    jaccard_index,
    log_average_miss_rate,
)
from crowdrt.contracts import BoxSample, Detections
from crowdrt.data.boxes.matching import (
    average_precision,
    box_iou,
    duplicates_per_person,
    match,
    recall,
    share_inside,
    suppressed,
)


def found(boxes, scores) -> Detections:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Detections(
        boxes=boxes,
        scores=np.asarray(scores, np.float32),
        labels=np.zeros(len(boxes), np.int64),
    )


def annotated(people, regions=()) -> BoxSample:
    boxes = np.asarray([*people, *regions], np.float32).reshape(-1, 4)
    ignore = np.arange(len(boxes)) >= len(people)
    return BoxSample(
        image=Path("a.jpg"), boxes=boxes, ignore=ignore, labels=np.zeros(len(boxes), np.int64)
    )


def person(k: int, *, shift: float = 0.0) -> list[float]:
    """The k-th of people who stand apart, 10 x 10 px; shifted by 5 px the IoU is a third."""
    return [40 * k + shift, 0, 40 * k + 10 + shift, 10]


NOWHERE = [9000, 9000, 9010, 9010]


def test_overlaps():
    one = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 0, 30, 10], [3, 3, 3, 9]], np.float32)
    np.testing.assert_allclose(box_iou(one, others), [[1 / 3, 1, 0, 0]])
    np.testing.assert_allclose(share_inside(others, one), [0.5, 1, 0, 0])
    assert box_iou(one[:0], others).shape == (0, 4)


# Two photographs, four people. By score: right, wrong, right, wrong, right; one is never found.
HAND = [
    (
        found([person(0), NOWHERE, person(1), person(2, shift=5)], [0.95, 0.85, 0.75, 0.65]),
        annotated([person(0), person(1), person(2)]),
    ),
    (found([person(0, shift=2)], [0.55]), annotated([person(0)])),
]


def test_average_precision_by_hand():
    # precision 1 up to recall 1/4 (26 of the 101 points), 2/3 up to 1/2 (25), 3/5 up to 3/4 (25)
    expected = (26 * 1 + 25 * 2 / 3 + 25 * 3 / 5) / 101
    assert average_precision(HAND) == pytest.approx(expected)
    # the shifted box has IoU 2/3: beyond, it is wrong
    assert average_precision(HAND, 0.7) == pytest.approx((26 + 25 * 2 / 3) / 101)


def test_miss_rate_by_hand():
    # false positives per image are 0, 0.5, 0.5, 1, 1 and the miss rates 3/4, 3/4, 2/4, 2/4, 1/4;
    # of the nine points, seven lie below 0.5, one (0.562) between and one at 1
    expected = np.exp((7 * np.log(3 / 4) + np.log(2 / 4) + np.log(1 / 4)) / 9)
    assert log_average_miss_rate(HAND) == pytest.approx(expected)


def test_a_first_detection_that_is_wrong_misses_everybody():
    pair = (found([NOWHERE, person(0)], [0.9, 0.8]), annotated([person(0)]))
    # one image, so the first mistake is 1 per image: only the last point allows it
    assert log_average_miss_rate([pair]) == pytest.approx((1**8 * 1e-10) ** (1 / 9))
    assert log_average_miss_rate([pair] * 50) == pytest.approx(1.0**8 * 1e-10 ** (1 / 9))


def test_recall_by_hand():
    assert recall(HAND) == 3 / 4
    assert recall(HAND, 0.7) == 2 / 4


def test_duplicates_by_hand():
    # the first is found three times, the second once; a miss and a region are no duplicates
    region = [200, 0, 220, 20]
    boxes = [person(0), person(0, shift=1), person(0, shift=2), person(1), NOWHERE, region]
    pair = (
        found(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5]),
        annotated([person(0), person(1)], [region]),
    )
    assert duplicates_per_person([pair], 0.3) == 2 / 2
    assert duplicates_per_person([pair], 0.75) == 1 / 1
    assert np.isnan(duplicates_per_person([pair], 0.95))


def test_two_who_overlap_are_no_duplicates_of_each_other():
    one, other = [0, 0, 10, 10], [2, 0, 12, 10]  # IoU 2/3
    pair = (found([one, other], [0.9, 0.8]), annotated([one, other]))
    assert duplicates_per_person([pair], 0.3) == 0


def test_jaccard_index_by_hand():
    # up to 0.5 all are kept: 2 right, 2 wrong, 1 missed on the first photograph, 1 right on the
    # second; above, nobody is found on the second
    assert jaccard_index(HAND) == pytest.approx((2 / 5 + 1) / 2)
    # alone, the first is best at 0.7, where one mistake is gone
    assert jaccard_index(HAND[:1]) == pytest.approx(2 / 4)


def test_people_are_matched_so_that_the_most_overlap():
    # the first detection overlaps both people; taking the better one would leave the other alone
    wide, left, right = [0, 0, 20, 10], [2, 0, 22, 10], [-6, 0, 14, 10]
    pair = (found([wide, left], [0.9, 0.8]), annotated([[1, 0, 21, 10], right]))
    assert box_iou(pair[0].boxes, pair[1].boxes)[1, 1] < 0.5
    assert match(*pair, [0.5]).tolist() == [
        [1, 0]
    ]  # greedy, as the protocols of AP and MR^-2 have it
    assert jaccard_index([pair]) == 1


def test_ignored_regions_are_neither_right_nor_wrong():
    region = [200, 0, 300, 100]
    inside = [[210, 10, 220, 20], [290, 0, 310, 10], [240, 40, 260, 60]]
    mostly_outside = [295, 0, 315, 10]
    pair = (
        found([person(0), *inside, mostly_outside], [0.9, 0.8, 0.7, 0.6, 0.5]),
        annotated([person(0)], [region]),
    )
    assert match(*pair, [0.5]).tolist() == [[1, -1, -1, -1, 0]]
    assert average_precision([pair]) == 1
    assert jaccard_index([pair]) == 1  # at 0.5 the last one is gone


def test_a_person_in_an_ignored_region_is_found_first():
    pair = (found([person(0)] * 2, [0.9, 0.8]), annotated([person(0)], [[0, 0, 500, 500]]))
    assert match(*pair, [0.5]).tolist() == [[1, -1]]
    # and whoever is not found there is not missed by JI, though by the others
    nobody = (found([], []), pair[1])
    assert np.isnan(jaccard_index([nobody]))
    assert log_average_miss_rate([nobody]) == 1


def test_a_person_is_found_once():
    pair = (found([person(0)] * 3, [0.7, 0.9, 0.8]), annotated([person(0)]))
    assert match(*pair, [0.5]).tolist() == [[0, 1, 0]]


def test_nobody_to_be_found():
    nobody = (found([NOWHERE], [0.9]), annotated([], [person(0)]))
    assert detection_quality([nobody]) is None
    assert detection_quality([]) is None
    for measure in (average_precision, log_average_miss_rate, recall):
        assert np.isnan(measure([nobody]))


def test_nothing_found():
    quality = detection_quality([(found([], []), annotated([person(0)]))] * 3)
    assert (quality.num_images, quality.num_people) == (3, 3)
    assert (quality.ap50, quality.ap, quality.ji, quality.recall) == (0, 0, 0, 0)
    assert quality.mr2 == 1
    assert (quality.ap50_nms, quality.duplicates) == (0, None)


def test_suppression_removes_who_overlaps_a_better_one():
    boxes = [(0, 0, 10, 10), (1, 0, 11, 10), (4, 0, 14, 10), (40, 0, 50, 10)]
    left = suppressed(found(boxes, [0.5, 0.9, 0.4, 0.3]))  # IoU 9/11, 7/13 and 6/14
    assert left.scores.tolist() == np.float32([0.9, 0.3]).tolist()
    assert left.boxes.tolist() == [[1, 0, 11, 10], [40, 0, 50, 10]]
    assert len(suppressed(found([], [])).scores) == 0


def test_suppression_finds_what_duplicates_cost():
    """One person found twice, another once, below the second box of the first."""
    truth = annotated([person(0), person(1)])
    pair = found([person(0), person(0), person(1)], [0.9, 0.8, 0.2]), truth
    quality = detection_quality([pair])
    assert (quality.duplicates, quality.min_score) == (1.0, 0.3)
    assert quality.ap50 < quality.ap50_nms == 1
    assert detection_quality([pair], min_score=0.85).duplicates == 0
    assert detection_quality([pair], min_score=0.1).duplicates == 0.5


def test_all_measures_at_once():
    quality = detection_quality(HAND)
    assert quality.ap50 == average_precision(HAND)
    assert quality.ap == pytest.approx(np.mean([average_precision(HAND, t) for t in COCO_IOUS]))
    assert quality.ap < quality.ap50
    assert quality.mr2 == log_average_miss_rate(HAND)
    assert (quality.ji, quality.recall) == (jaccard_index(HAND), recall(HAND))


def crowd(seed: int, *, num_images: int = 6) -> list[tuple[Detections, BoxSample]]:
    """People who overlap, ignored regions, and detections near and far from them."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_images):
        corner, size = rng.uniform(0, 200, (25, 2)), rng.uniform(20, 80, (25, 2))
        boxes = np.concatenate([corner, corner + size], axis=1).round()
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 6, (50, 4))
        far = np.concatenate([corner + 30, corner + 30 + size], axis=1)
        detected = np.concatenate([near, far]).round()
        detected[:, 2:] = np.maximum(detected[:, 2:], detected[:, :2] + 1)
        scores = rng.permutation(len(detected)) / len(detected)  # some shared by the images
        pairs.append((found(detected, scores), annotated(boxes[:20], boxes[20:])))
    return pairs


def by_pycocotools(pairs) -> np.ndarray:
    """AP per IoU threshold, from pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    images, boxes, results = [], [], []
    for k, (detections, truth) in enumerate(pairs, start=1):
        images.append({"id": k})
        for box, ignored in zip(truth.boxes, truth.ignore, strict=True):
            x, y, w, h = xywh(box)
            boxes.append(
                {"id": len(boxes) + 1, "image_id": k, "category_id": 1, "bbox": [x, y, w, h],
                 "area": w * h, "iscrowd": int(ignored)}
            )  # fmt: skip
        for box, score in zip(detections.boxes, detections.scores, strict=True):
            results.append(
                {"image_id": k, "category_id": 1, "bbox": xywh(box), "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": boxes, "categories": [{"id": 1}]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = [1000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(seed):
    pairs = crowd(seed)
    expected = by_pycocotools(pairs)
    assert 0.05 < expected[0] < 0.95
    assert expected.std() > 0.05
    ours = [average_precision(pairs, iou) for iou in COCO_IOUS]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_of_equal_overlaps_pycocotools_takes_the_last():
    between, right = [10, 0, 30, 10], [16, 0, 36, 10]
    people = annotated([[5, 0, 25, 10], [15, 0, 35, 10]])
    pairs = [(found([between, right], [0.9, 0.8]), people)]
    assert match(*pairs[0], [0.5]).tolist() == [[1, 0]]
    assert average_precision(pairs) == pytest.approx(by_pycocotools(pairs)[0])


def people_apart() -> st.SearchStrategy[list[tuple[Detections, BoxSample]]]:
    """Photographs of a few people, each found well, badly or not at all, and some mistakes."""
    score = st.integers(1, 99).map(lambda k: k / 100)
    finding = st.tuples(st.sampled_from([0.0, 2.0, 5.0, None]), score)

    def photograph(drawn):
        findings, wrong = drawn
        shifts = [(k, *each) for k, each in enumerate(findings) if each[0] is not None]
        boxes = [person(k, shift=shift) for k, shift, _ in shifts] + [NOWHERE] * len(wrong)
        people = annotated([person(k) for k in range(len(findings))])
        return found(boxes, [s for *_, s in shifts] + wrong), people

    one = st.tuples(st.lists(finding, min_size=1, max_size=4), st.lists(score, max_size=3))
    return st.lists(one.map(photograph), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(people_apart())
def test_measures_are_fractions_and_a_mistake_never_helps(pairs):
    before = detection_quality(pairs)
    assert before is not None
    for value in (before.ap50, before.ap, before.mr2, before.ji, before.recall):
        assert 0 <= value <= 1
    assert before.ap <= before.ap50 + 1e-12
    (first, truth), *others = pairs
    worse = found([*first.boxes, NOWHERE], [*first.scores, 0.001])
    after = detection_quality([(worse, truth), *others])
    assert after.ap50 <= before.ap50 + 1e-12
    assert after.mr2 >= before.mr2 - 1e-12
    assert after.ji <= before.ji + 1e-12
    assert after.recall == before.recall


@settings(max_examples=40, deadline=None)
@given(people_apart(), st.randoms(use_true_random=False))
def test_what_is_annotated_is_perfect(pairs, random):
    def perfect(truth):
        return found(truth.boxes, [random.uniform(0.91, 1) for _ in truth.boxes])

    quality = detection_quality([(perfect(truth), truth) for _, truth in pairs])
    assert (quality.ap50, quality.ap, quality.ji, quality.recall) == (1, 1, 1, 1)
    assert quality.mr2 == pytest.approx(0, abs=1e-9)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_boxes_does_not_matter(seed):
    pairs = crowd(seed, num_images=2)
    order = np.random.default_rng(seed).permutation(len(pairs[0][0].scores))
    mixed = [(found(d.boxes[order], d.scores[order]), truth) for d, truth in pairs]
    assert detection_quality(mixed) == detection_quality(pairs)
