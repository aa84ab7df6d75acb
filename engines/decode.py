"""A detector's answer as detections, whether it was decoded inside the graph or is decoded here.

The same steps as the graph's own (`--output boxes`): scores are sigmoids of logits, the best pairs
of cell and class are kept, and nothing is suppressed, since a one-to-one detector answers once per
person. Decoding here (`--output raw`) suits runtimes without top-k, and quantized graphs whose
answers are to be looked at cell by cell.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import NUM_DETECTIONS, Detections, Feeds
from crowdrt.errors import EngineError

DECODED = ("boxes", "scores", "labels")
RAW = ("logits", "boxes")


def detections_of(outputs: Feeds, *, num_detections: int = NUM_DETECTIONS) -> list[Detections]:
    """Return the detections on each image of a batch, best first.

    Args:
        outputs: of an engine. boxes (B, K, 4), scores (B, K) and labels (B, K); or logits
            (B, L, C) and boxes (B, L, 4). Boxes are x1, y1, x2, y2 in input pixels.
        num_detections: at most as many are returned per image.

    Raises:
        EngineError: the outputs are neither, or do not fit each other.
    """
    check_outputs(outputs)
    if "logits" in outputs:
        pairs = zip(outputs["logits"], outputs["boxes"], strict=True)
        return [decode(logits, boxes, num_detections) for logits, boxes in pairs]
    columns = zip(*(outputs[name] for name in DECODED), strict=True)
    return [listed(*each, num_detections=num_detections) for each in columns]


def decode(
    logits: npt.NDArray[Any], boxes: npt.NDArray[Any], num_detections: int = NUM_DETECTIONS
) -> Detections:
    """Return the best pairs of cell and class on one image.

    Args:
        logits: (L, C).
        boxes: (L, 4).
        num_detections: at most as many.
    """
    flat = np.asarray(logits, np.float32).ravel()
    num = min(num_detections, flat.size)
    # of equals at the end, the first; sorting the few that can be listed is faster than all
    least = np.partition(flat, flat.size - num)[flat.size - num]
    candidates = np.flatnonzero(flat >= least)
    order = candidates[np.argsort(-flat[candidates], kind="stable")][:num]
    cell, label = np.divmod(order, logits.shape[1])
    return listed(boxes[cell], sigmoid(flat[order]), label)


def listed(
    boxes: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    *,
    num_detections: int = NUM_DETECTIONS,
) -> Detections:
    """Return one image's list without the rows that only fill it, whose score is 0."""
    kept = np.flatnonzero(scores > 0)[:num_detections]
    return Detections(
        boxes=boxes[kept].astype(np.float32),
        scores=scores[kept].astype(np.float32),
        labels=labels[kept].astype(np.int64),
    )


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    scores: npt.NDArray[np.float32] = np.where(logits >= 0, np.float32(1), small) / (1 + small)
    return scores


def check_outputs(outputs: Feeds) -> None:
    """Refuse what is no detector's answer."""
    names = RAW if "logits" in outputs else DECODED
    shapes = {name: np.shape(outputs[name]) for name in names if name in outputs}
    same_rows = len({shape[:2] for shape in shapes.values()}) == 1
    if len(shapes) != len(names) or not same_rows or shapes["boxes"][2:] != (4,):
        raise EngineError(
            f"the engine answers {shapes or sorted(outputs)}, no boxes of people",
            fix="give a detector, which answers boxes (B, K, 4), scores (B, K) and labels (B, K): "
            "crowdrt export dsla --weights F -o model.onnx",
        )
    if broken := [name for name in names if not np.isfinite(outputs[name]).all()]:
        raise EngineError(
            f"the engine answers {' and '.join(broken)} that are no finite numbers",
            fix="build the engine again; if it stays, compare with the FP32 file",
        )
