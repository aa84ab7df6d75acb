"""How well boxes find people: AP, MR^-2, JI and Recall, each by the protocol that papers use.

Boxes that are marked `ignore` are regions: a detection of which at least half lies in one is
neither right nor wrong, unless it finds a person. Everything is of one class, people. Every
detection counts, whatever its score: choosing a threshold is the measures' own business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from crowdrt.contracts import BoxSample, Detections
from crowdrt.data.boxes.matching import (
    IOU,
    SURE,
    Flags,
    Floats,
    Pair,
    average_precision,
    box_iou,
    count_people,
    duplicates_per_person,
    interpolated_precision,
    ranked,
    share_inside,
    split,
    suppressed,
)
from crowdrt.lazy import require

COCO_IOUS = np.linspace(0.5, 0.95, 10)
FPPI = np.logspace(-2, 0, 9)  # where MR^-2 reads the miss rate
MIN_MISS = 1e-10  # as in Dollár's toolbox: its logarithm is finite
JI_SCORES = (np.arange(10) / 10).astype(np.float32)  # the thresholds of CrowdHuman's tool


@dataclass(frozen=True, kw_only=True)
class DetectionQuality:
    """The measures over all annotated photographs, as fractions."""

    num_images: int
    num_people: int
    ap50: float
    ap75: float  # at IoU 0.75
    ap: float  # mean over IoU 0.5, 0.55 .. 0.95
    mr2: float  # lower is better
    ji: float
    recall: float
    ap50_nms: float  # AP at IoU 0.5 behind non-maximum suppression: what that would still gain
    duplicates: float | None  # more boxes per found person, from `min_score` on; None: nobody found
    min_score: float  # of which `duplicates` alone takes notice


def detection_quality(pairs: Sequence[Pair], *, min_score: float = SURE) -> DetectionQuality | None:
    """Return all measures, or None where nobody is to be found.

    Args:
        pairs: every detection of every photograph, beside what is there.
        min_score: from which on a detection counts as a person, for duplicates alone.
    """
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
        ap75=precisions[5],
        ap=float(np.mean(precisions)),
        mr2=miss_rate_of(loose, num_people, len(pairs)),
        ji=jaccard_index(pairs),
        recall=float(loose.sum()) / num_people,
        ap50_nms=average_precision([(suppressed(found), truth) for found, truth in pairs]),
        duplicates=None if isnan(again := duplicates_per_person(pairs, min_score)) else again,
        min_score=min_score,
    )


def log_average_miss_rate(pairs: Sequence[Pair]) -> float:
    """Return MR^-2 in 0..1: the geometric mean of nine miss rates.

    Dollár et al., "Pedestrian Detection: An Evaluation of the State of the Art", PAMI 2012: at
    nine counts of false positives per image, evenly spaced in the logarithm from 1e-2 to 1, the
    miss rate of the lowest score threshold that makes no more mistakes; 1 where even the first
    detection is one too many. IoU 0.5. NaN where nobody is to be found.
    """
    return miss_rate_of(ranked(pairs, [IOU])[0], count_people(pairs), len(pairs))


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


def miss_rate_of(right: Flags, num_people: int, num_images: int) -> float:
    """Return MR^-2 of ranked detections."""
    if not num_people:
        return float("nan")
    recalls = np.append(0, np.cumsum(right)) / num_people  # before the first, after each
    mistakes_per_image = np.cumsum(~right) / num_images
    at = np.searchsorted(mistakes_per_image, FPPI, side="right")
    return float(np.exp(np.log(np.maximum(1 - recalls[at], MIN_MISS)).mean()))
