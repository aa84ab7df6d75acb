"""How well boxes find people: AP, MR^-2, JI and Recall, each by the protocol that papers use.

Boxes that are marked `ignore` are regions: a detection of which at least half lies in one is
neither right nor wrong, unless it finds a person. Everything is of one class, people. Every
detection counts, whatever its score: choosing a threshold is the measures' own business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import BoxSample, Detections
from crowdrt.lazy import require

Pair = tuple[Detections, BoxSample]  # what an engine finds on an annotated photograph
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Boxes = npt.NDArray[np.float32]  # (N, 4) x1, y1, x2, y2 in pixels

RIGHT, WRONG, LEFT_OUT = 1, 0, -1  # what a detection is
IOU = 0.5  # from which on a detection finds a person
COCO_IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision
FPPI = np.logspace(-2, 0, 9)  # where MR^-2 reads the miss rate
MIN_MISS = 1e-10  # as in Dollár's toolbox: its logarithm is finite
JI_SCORES = (np.arange(10) / 10).astype(np.float32)  # the thresholds of CrowdHuman's tool


@dataclass(frozen=True, kw_only=True)
class DetectionQuality:
    """The four measures over all annotated photographs, as fractions."""

    num_images: int
    num_people: int
    ap50: float
    ap: float  # mean over IoU 0.5, 0.55 .. 0.95
    mr2: float  # lower is better
    ji: float
    recall: float


def detection_quality(pairs: Sequence[Pair]) -> DetectionQuality | None:
    """Return all measures, or None where nobody is to be found."""
    num_people = count_people(pairs)
    if not num_people:
        return None
    curves = ranked(pairs, COCO_IOUS)
    loose = curves[0]  # at IoU 0.5
    precisions = [interpolated_precision(curve, num_people) for curve in curves]
    return DetectionQuality(
        num_images=len(pairs),
        num_people=num_people,
        ap50=precisions[0],
        ap=float(np.mean(precisions)),
        mr2=miss_rate_of(loose, num_people, len(pairs)),
        ji=jaccard_index(pairs),
        recall=float(loose.sum()) / num_people,
    )


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


def log_average_miss_rate(pairs: Sequence[Pair]) -> float:
    """Return MR^-2 in 0..1: the geometric mean of nine miss rates.

    Dollár et al., "Pedestrian Detection: An Evaluation of the State of the Art", PAMI 2012: at
    nine counts of false positives per image, evenly spaced in the logarithm from 1e-2 to 1, the
    miss rate of the lowest score threshold that makes no more mistakes; 1 where even the first
    detection is one too many. IoU 0.5. NaN where nobody is to be found.
    """
    return miss_rate_of(ranked(pairs, [IOU])[0], count_people(pairs), len(pairs))


def recall(pairs: Sequence[Pair], iou: float = IOU) -> float:
    """Return the share of people whom any detection finds, as CrowdHuman's results state it."""
    num_people = count_people(pairs)
    return float(ranked(pairs, [iou])[0].sum()) / num_people if num_people else float("nan")


def jaccard_index(pairs: Sequence[Pair]) -> float:
    """Return JI in 0..1: matched over matched, missed and wrong, at the best score threshold.

    As in CrowdHuman's tool (Chu et al., "Detection in Crowded Scenes: One Proposal, Multiple
    Predictions", CVPR 2020): per photograph the bipartite matching of the largest total IoU, over
    pairs above 0.5; the mean over photographs; the best of the thresholds 0, 0.1 .. 0.9. What
    stays unmatched and lies in an ignored region is left out, detections and people alike.
    """
    per_image = np.array([jaccard_ratios(found, truth) for found, truth in pairs])
    means = [column[np.isfinite(column)] for column in per_image.reshape(len(pairs), -1).T]
    return max((float(column.mean()) for column in means if len(column)), default=float("nan"))


def jaccard_ratios(found: Detections, truth: BoxSample) -> Floats:
    """Return one photograph's ratio per threshold; NaN where nobody is there nor found."""
    assignment = require("scipy.optimize", extra="cpu").linear_sum_assignment
    people, regions = split(truth)
    overlaps = box_iou(found.boxes, people)
    overlaps[overlaps <= IOU] = 0
    person_left_out = share_inside(people, regions) > IOU
    found_left_out = share_inside(found.boxes, regions) > IOU
    ratios = np.full(len(JI_SCORES), np.nan)
    for k, threshold in enumerate(JI_SCORES):
        kept = found.scores > threshold
        rows, columns = assignment(overlaps[kept], maximize=True)
        paired = overlaps[kept][rows, columns] > 0
        free_found, free_people = np.ones(kept.sum(), np.bool_), np.ones(len(people), np.bool_)
        free_found[rows[paired]] = free_people[columns[paired]] = False
        num_wrong = int((free_found & ~found_left_out[kept]).sum())
        num_missed = int((free_people & ~person_left_out).sum())
        if total := int(paired.sum()) + num_wrong + num_missed:
            ratios[k] = paired.sum() / total
    return ratios


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


def miss_rate_of(right: Flags, num_people: int, num_images: int) -> float:
    """Return MR^-2 of ranked detections."""
    if not num_people:
        return float("nan")
    recalls = np.append(0, np.cumsum(right)) / num_people  # before the first, after each
    mistakes_per_image = np.cumsum(~right) / num_images
    at = np.searchsorted(mistakes_per_image, FPPI, side="right")
    return float(np.exp(np.log(np.maximum(1 - recalls[at], MIN_MISS)).mean()))


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
