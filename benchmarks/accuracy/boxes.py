"""People on a photograph as a detector sees them, in the photograph's own pixels.

The photograph is padded at the bottom and the right to what the engine takes; boxes are clipped to
the photograph, and those in the padding go. The published sizes (short side 800, long side at most
1400) are an option, since a camera's own size is what ships.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crowdrt.benchmarks.accuracy.counts import pad_to_size
from crowdrt.benchmarks.feeds import normalise, static_size
from crowdrt.contracts import (
    COUNT,
    DENSITY,
    BoxSample,
    Detections,
    Feeds,
    GraphInfo,
    Size,
    UInt8Image,
)
from crowdrt.data.images import read_image
from crowdrt.data.preprocess import pad_to_stride, resize_short_side
from crowdrt.engines.decode import DECODED, RAW, detections_of
from crowdrt.errors import DataError, EngineError

if TYPE_CHECKING:
    from crowdrt.engines.base import Engine

PERSON = 0  # the label of people: the only class, or the first of COCO's
LONG_SIDE_PX = 1400  # at most, of a resized photograph; DSLA's and OneNet's test size


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxPrediction:
    """What a detector says of one photograph."""

    detections: Detections  # people only, whatever their score, best first
    size: Size  # of the photograph, in pixels


def detect_people(
    engine: "Engine", path: Path, *, short_side_px: int | None = None
) -> BoxPrediction:
    """Run a detector on one photograph.

    Args:
        engine: its outputs are boxes, scores and labels, or logits and boxes.
        path: the photograph.
        short_side_px: resize to this, as far as the long side allows; None leaves the pixels.

    Raises:
        DataError: the photograph cannot be read, or is larger than the engine.
        EngineError: the engine is no detector, or answers nonsense.
    """
    info = detector_info(engine)
    photograph = read_image(path, info.preprocessing.channels)
    image = photograph
    if short_side_px is not None:
        image = resize_short_side(photograph, short_side_px, long_side_px=LONG_SIDE_PX)
    spec = engine.inputs[0]
    batch = batch_for(engine, image, info, source=path)
    pixels = batch if spec.dtype == "uint8" else normalise(batch, info.preprocessing)
    found = first_of(engine.run({spec.name: pixels}), source=path)
    seen, size = image.shape[1:], photograph.shape[1:]
    return BoxPrediction(
        detections=on_photograph(found, (seen[0], seen[1]), (size[0], size[1])),
        size=(size[0], size[1]),
    )


def batch_for(
    engine: "Engine", image: UInt8Image, info: GraphInfo, *, source: Path
) -> npt.NDArray[np.uint8]:
    """Return (1, C, H, W) padded to the stride, or to the one size that the engine takes."""
    fixed = static_size(engine)
    if fixed is None:
        return pad_to_stride(image, info.preprocessing)[np.newaxis]
    height, width = image.shape[1:]
    scale = min(fixed[0] / height, fixed[1] / width)
    if scale < 1:
        raise DataError(
            f"{source} is {height}x{width} px (height x width) where it meets the engine, which "
            f"takes at most {fixed[0]}x{fixed[1]}",
            fix=f"resize it: --short-side {int(min(height, width) * scale)}, or export for any "
            f"size: crowdrt export {info.network} --size dynamic -o model.onnx",
        )
    return pad_to_size(image[np.newaxis], fixed, info, source=source)


def first_of(outputs: Feeds, *, source: Path) -> Detections:
    """Return what a batch of one was answered, decoded in the graph or here."""
    try:
        return detections_of(outputs)[0]
    except EngineError as error:
        raise EngineError(f"{source}: {error.problem}", fix=error.fix) from error


def on_photograph(found: Detections, seen: Size, size: Size) -> Detections:
    """Return the people on the photograph, in its pixels and best first.

    Args:
        found: boxes in pixels of the image that the engine saw.
        seen: size of that image without its padding.
        size: of the photograph.
    """
    scale = np.array([size[1] / seen[1], size[0] / seen[0]] * 2, np.float32)
    boxes = clip_boxes(found.boxes * scale, size)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((found.labels == PERSON) & (sides > 0).all(axis=1))
    order = kept[np.argsort(-found.scores[kept], kind="stable")]
    return Detections(boxes=boxes[order], scores=found.scores[order], labels=found.labels[order])


def clip_boxes(boxes: npt.NDArray[np.float32], size: Size) -> npt.NDArray[np.float32]:
    """Return (N, 4) boxes cut off where the photograph ends; one beyond it becomes empty."""
    limits = np.array([size[1], size[0]] * 2, np.float32)
    return np.clip(boxes, np.float32(0), limits)


def evaluated(prediction: BoxPrediction, sample: BoxSample) -> tuple[Detections, BoxSample]:
    """Return what `benchmarks.detection` measures: annotated boxes end at the photograph too.

    As in CrowdHuman's tool: nobody can say where a body ends that a photograph cuts off.
    """
    assert sample.boxes is not None, f"{sample.image} is not annotated"
    clipped = clip_boxes(sample.boxes, prediction.size)
    return prediction.detections, BoxSample(
        image=sample.image, boxes=clipped, ignore=sample.ignore, labels=sample.labels
    )


def at_least(detections: Detections, min_score: float) -> Detections:
    """Return the detections that count as people."""
    kept = detections.scores >= np.float32(min_score)
    return Detections(
        boxes=detections.boxes[kept],
        scores=detections.scores[kept],
        labels=detections.labels[kept],
    )


def detector_info(engine: "Engine") -> GraphInfo:
    """Return what the file says of itself, if it is a detector of ours."""
    names = [output.name for output in engine.outputs]
    is_detector = any(set(answer) <= set(names) for answer in (DECODED, RAW))
    if engine.info is None or not is_detector:
        fix = "export a detector: crowdrt export dsla --weights F -o model.onnx"
        if {DENSITY, COUNT} & set(names):
            fix = "count with it: crowdrt count ENGINE IMAGES"
        raise EngineError(f"this engine answers {', '.join(names)}, not boxes of people", fix=fix)
    return engine.info
