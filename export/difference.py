"""How far apart two answers of one network are, output by output."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import COUNT, DENSITY, Feeds

BOXES, SCORES, LABELS = "boxes", "scores", "labels"  # detections, best first
LEAST = 1e-12  # a scale that is smaller is taken for this


class Difference(NamedTuple):
    """Of one output, over a batch."""

    absolute: float
    relative: float  # to what the output's size is worth


def differences(expected: Feeds, got: Feeds, rtol: float) -> dict[str, Difference]:
    """Compare two answers to the same images.

    Values are compared one by one, relative to the output's largest. Two outputs are special:

    * A count beside its map is a sum in which values may cancel, so it is held against the sum of
      absolute densities.
    * Detections whose scores differ by no more than rounding may change places, so a box is held
      against every detection of the same label and score. Which of them still make the list at
      its end is chance too: those that score like the last are left out, and the scores alone,
      which are compared in order, speak for them.

    Args:
        expected: outputs by name.
        got: outputs of the same names and shapes.
        rtol: how far scores of the same detection may differ, relative to the largest.
    """
    found = {name: by_value(expected, got, name) for name in expected}
    if {BOXES, SCORES, LABELS} <= set(expected):
        apart = boxes_apart(expected, got, rtol)
        scale = max(float(np.abs(expected[BOXES]).max()), LEAST)
        found[BOXES] = Difference(apart, apart / scale)
        found[LABELS] = Difference(0.0, 0.0)  # a box is compared with those of its label alone
    return found


def by_value(expected: Feeds, got: Feeds, name: str) -> Difference:
    """Compare an output value by value."""
    values = expected[name].astype(np.float64)
    off = np.abs(got[name].astype(np.float64) - values)
    scale: Any = np.abs(values).max()
    if name == COUNT and DENSITY in expected:
        scale = np.abs(expected[DENSITY]).sum(axis=(1, 2, 3), dtype=np.float64)
    return Difference(float(off.max()), float((off / np.maximum(scale, LEAST)).max()))


def boxes_apart(expected: Feeds, got: Feeds, rtol: float) -> float:
    """Return how far the worst box is from the nearest with its label and score, in pixels.

    Infinite where a detection has no counterpart, or where all score alike, so that none could be
    compared.
    """
    tolerance = rtol * float(expected[SCORES].max())
    columns = [side[name] for side in (expected, got) for name in (BOXES, SCORES, LABELS)]
    apart = [_apart_on_one_image(one, tolerance) for one in zip(*columns, strict=True)]
    return float(np.max(apart))  # NaN, if there is one


def _apart_on_one_image(arrays: tuple[npt.NDArray[Any], ...], tolerance: float) -> float:
    boxes, scores, labels, other_boxes, other_scores, other_labels = arrays
    listed = scores > scores[-1] + tolerance
    if not listed.any():
        return float("inf")
    alike = np.abs(scores[listed, None] - other_scores) <= tolerance
    alike &= labels[listed, None] == other_labels
    off = np.abs(boxes[listed, None] - other_boxes).max(axis=2)
    return float(np.where(alike, off, np.inf).min(axis=1).max())
