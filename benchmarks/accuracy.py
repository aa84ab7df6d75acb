"""People per photograph as an engine counts them, and how far that is from the annotations.

An engine of fixed size sees a smaller photograph padded at the bottom and the right. Its `count`
output would then hold what it imagines in the padding, so the density is summed over the cells
that lie on the photograph. An engine of free size gives its own `count`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crowdrt import console
from crowdrt.benchmarks.feeds import normalise, static_size
from crowdrt.contracts import GraphInfo, Preprocessing, Sample, Size
from crowdrt.data.preprocess import load_feed
from crowdrt.errors import BenchmarkError, DataError, EngineError

if TYPE_CHECKING:
    from crowdrt.engines.base import Engine

UInt8Batch = npt.NDArray[np.uint8]  # (1, C, H, W)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What an engine says of one photograph."""

    count: float  # people
    density: npt.NDArray[np.float32]  # (h, w) people per cell, the photograph's cells only
    stride: int  # input pixels per cell


@dataclass(frozen=True, kw_only=True)
class CountRow:
    """One photograph: what the engine counts, and what people annotated."""

    image: str
    count: float
    annotated: int | None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Errors in people per photograph, over the annotated ones (SKT, equation 9)."""

    num_images: int
    mae: float
    rmse: float
    bias: float  # mean of predicted - annotated; positive: counts too many


def count_samples(engine: "Engine", samples: Sequence[Sample]) -> list[CountRow]:
    """Count the people on every photograph, in order."""
    return [
        CountRow(
            image=str(sample.image),
            count=predict(engine, sample.image).count,
            annotated=sample.annotated,
        )
        for sample in console.track(samples, "counting", total=len(samples))
    ]


def accuracy(rows: Sequence[CountRow]) -> Accuracy | None:
    """Return the errors over the annotated rows, or None where no row is annotated."""
    errors = np.array([row.count - row.annotated for row in rows if row.annotated is not None])
    if not len(errors):
        return None
    return Accuracy(
        num_images=len(errors),
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt((errors**2).mean())),
        bias=float(errors.mean()),
    )


def predict(engine: "Engine", path: Path) -> Prediction:
    """Run the engine on one photograph.

    Raises:
        DataError: the photograph cannot be read, or is larger than the engine.
        EngineError: the engine does not say how its input is prepared, or answers nonsense.
    """
    info = _info(engine)
    photograph = load_feed(path, info.preprocessing)
    fixed = static_size(engine)
    image = photograph if fixed is None else pad_to_size(photograph, fixed, info, source=path)
    spec = engine.inputs[0]
    pixels = image if spec.dtype == "uint8" else normalise(image, info.preprocessing)
    outputs = engine.run({spec.name: pixels})
    density = np.asarray(outputs["density"], np.float32)[0, 0]
    count = float(outputs["count"][0])
    if image.shape != photograph.shape:
        rows, columns = (-(-side // info.density_stride) for side in photograph.shape[2:])
        density = density[:rows, :columns]
        count = float(density.sum(dtype=np.float32))
    if not np.isfinite(count):
        raise BenchmarkError(
            f"{path}: the engine counts {count} people",
            fix="build the engine again; if it stays, count with the FP32 file to compare",
        )
    return Prediction(count=count, density=density, stride=info.density_stride)


def pad_to_size(image: UInt8Batch, size: Size, info: GraphInfo, *, source: Path) -> UInt8Batch:
    """Return `image` in the top left corner of the size that an engine insists on."""
    _, num_channels, height, width = image.shape
    if height > size[0] or width > size[1]:
        raise DataError(
            f"{source} needs {height}x{width} px (height x width), the engine takes at most"
            f" {size[0]}x{size[1]}",
            fix=f"export for any size: crowdrt export {info.network} --size dynamic -o model.onnx",
        )
    padded = np.empty((1, num_channels, *size), np.uint8)
    padded[:] = _pad_level(info.preprocessing)
    padded[:, :, :height, :width] = image
    return padded


def _pad_level(preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    return np.array(preprocessing.pad_value, np.uint8)[:, None, None]


def _info(engine: "Engine") -> GraphInfo:
    """Return what the file says of itself, if it is a counting network of ours."""
    names = {output.name for output in engine.outputs}
    if engine.info is None or not {"density", "count"} <= names:
        raise EngineError(
            "this engine does not say how to prepare a photograph for it; its outputs are"
            f" {sorted(names)}",
            fix="export the network: crowdrt export NETWORK --weights F -o model.onnx",
        )
    return engine.info
