"""Which detections find which people, and what follows from it alone: AP, recall, duplicates.

Training chooses its best detector by these measures and `crowdrt detect` reports them. Boxes that
are marked `ignore` are regions: a detection of which at least half lies in one is neither right
nor wrong, unless it finds a person. Everything is of one class, people.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import BoxSample, Detections

Pair = tuple[Detections, BoxSample]  # what an engine finds on an annotated photograph
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Boxes = npt.NDArray[np.float32]  # (N, 4) x1, y1, x2, y2 in pixels

RIGHT, WRONG, LEFT_OUT = 1, 0, -1  # what a detection is
SURE = 0.3  # from which score on a detection counts as a person
IOU = 0.5  # from which on a detection finds a person
MOST = 1000  # detections of a photograph that suppression looks at
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision


def count_people(pairs: Sequence[Pair]) -> int:
    """Return how many people are to be found on all the photographs."""
    return sum(truth.annotated or 0 for _, truth in pairs)


def average_precision(pairs: Sequence[Pair], iou: float = IOU) -> float:
    """Return AP in 0..1 as COCO computes it: the mean precision at 101 recalls.

    Lin et al., "Microsoft COCO", ECCV 2014, and pycocotools, with no limit on detections per
    image. CrowdHuman's own tool integrates the curve without interpolation instead, as a
    rule slightly less. NaN where nobody is to be found.
    """
    return interpolated_precision(ranked(pairs, [iou])[0], count_people(pairs))


def recall(pairs: Sequence[Pair], iou: float = IOU) -> float:
    """Return the share of people whom any detection finds, as CrowdHuman's results state it."""
    num_people = count_people(pairs)
    return float(ranked(pairs, [iou])[0].sum()) / num_people if num_people else float("nan")


def duplicates_per_person(pairs: Sequence[Pair], min_score: float, iou: float = IOU) -> float:
    """Return how often a found person is found again, in the mean: 0 needs no suppression.

    Of the detections of at least `min_score`, those are counted that would find somebody, had not
    a better one done so before. NaN where nobody is found.
    """
    num_found = num_again = 0
    for found, truth in pairs:
        sure = found.scores >= min_score
        kept = Detections(
            boxes=found.boxes[sure], scores=found.scores[sure], labels=found.labels[sure]
        )
        verdicts = match(kept, truth, [iou])[0]
        meets = (box_iou(kept.boxes, split(truth)[0]) >= iou).any(axis=1)
        num_found += int((verdicts == RIGHT).sum())
        num_again += int((meets & (verdicts == WRONG)).sum())
    return num_again / num_found if num_found else float("nan")


def suppressed(found: Detections, iou: float = IOU) -> Detections:
    """Return what greedy non-maximum suppression leaves: nobody who overlaps a better one by more.

    Papers' detectors that need it are judged behind it; of those that do not, it shows how much
    they still would gain. Only the best `MOST` detections take part: every cell answers one.
    """
    order = np.argsort(-found.scores, kind="stable")[:MOST]
    overlaps = box_iou(found.boxes[order], found.boxes[order]) > iou
    kept = np.ones(len(order), np.bool_)
    for k in range(len(order)):
        if kept[k]:
            kept[k + 1 :] &= ~overlaps[k, k + 1 :]
    best = order[kept]
    return Detections(boxes=found.boxes[best], scores=found.scores[best], labels=found.labels[best])


def ranked(pairs: Sequence[Pair], ious: Sequence[float] | Floats) -> list[Flags]:
    """Return per threshold whether each detection is right: best first, of all photographs.

    What is left out is gone.
    """
    if not pairs:
        return [np.zeros(0, np.bool_) for _ in ious]
    verdicts = np.concatenate([match(found, truth, ious) for found, truth in pairs], axis=1)
    scores = np.concatenate([found.scores for found, _ in pairs])
    best_first = verdicts[:, np.argsort(-scores, kind="stable")]
    return [row[row != LEFT_OUT] == RIGHT for row in best_first]


def match(
    found: Detections, truth: BoxSample, ious: Sequence[float] | Floats
) -> npt.NDArray[np.int8]:
    """Return (T, N): whether a photograph's detections are right, wrong or left out.

    Greedy, as in Dollár's toolbox and in COCO: the best detection first, each takes the person
    nobody took before with whom it overlaps most, if by as much as the threshold or more.
    """
    people, regions = split(truth)
    overlaps, inside = box_iou(found.boxes, people), share_inside(found.boxes, regions)
    best_first = np.argsort(-found.scores, kind="stable")
    verdicts = np.full((len(ious), len(found.scores)), WRONG, np.int8)
    for verdict, iou in zip(verdicts, ious, strict=True):
        verdict[inside >= iou] = LEFT_OUT
        taken = np.zeros(len(people), np.bool_)
        for k in best_first[(overlaps[best_first] >= iou).any(axis=1)]:
            offered = np.where(taken, -1, overlaps[k])
            person = len(people) - 1 - int(offered[::-1].argmax())  # of equals the last, as COCO
            if offered[person] >= iou:
                taken[person], verdict[k] = True, RIGHT
    return verdicts


def interpolated_precision(right: Flags, num_people: int) -> float:
    """Return the mean of the precision at 101 recalls, each the best at this recall or beyond."""
    if not num_people:
        return float("nan")
    num_right = np.cumsum(right)
    precision = num_right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(num_right / num_people, RECALLS, side="left")
    return float(np.append(best, 0)[at].mean())


def split(truth: BoxSample) -> tuple[Boxes, Boxes]:
    """Return the people and the ignored regions of an annotated photograph."""
    assert truth.boxes is not None, f"{truth.image} is not annotated"
    return truth.boxes[~truth.ignore], truth.boxes[truth.ignore]


def box_iou(boxes: Boxes, others: Boxes) -> Floats:
    """Return (N, M) intersection over union; 0 where both are empty."""
    common = intersection(boxes, others)
    union = area(boxes)[:, None] + area(others)[None] - common
    return ratio(common, union)


def share_inside(boxes: Boxes, regions: Boxes) -> Floats:
    """Return (N,) the largest share of each box's area that lies in one of the regions."""
    if not len(regions):
        return np.zeros(len(boxes))
    return ratio(intersection(boxes, regions).max(axis=1), area(boxes))


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part over whole; 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def intersection(boxes: Boxes, others: Boxes) -> Floats:
    """Return (N, M) common area in square pixels."""
    first, second = boxes.astype(np.float64).T[:, :, None], others.astype(np.float64).T[:, None]
    width = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    common: Floats = np.maximum(width, 0) * np.maximum(height, 0)
    return common


def area(boxes: Boxes) -> Floats:
    """Return (N,) area in square pixels."""
    corners = boxes.astype(np.float64)
    covered: Floats = np.maximum(corners[:, 2:] - corners[:, :2], 0).prod(axis=1)
    return covered
