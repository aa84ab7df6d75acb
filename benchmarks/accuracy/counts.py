"""People per photograph as an engine counts them, and how far that is from the annotations.

An engine of fixed size sees a smaller photograph padded at the bottom and the right. Its `count`
output would then hold what it imagines in the padding, so the density is summed over the cells
that a map of the photograph alone has (SANet's reaches 3.5 px over every border). An engine of free
size gives its own `count`. A network that takes one size and no other sees a photograph tile by
tile, and the counts are added; one that was cut to its map counts by its map. In a photograph with
a region of interest the density is summed over the region alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crowdrt import console
from crowdrt.benchmarks.feeds import normalise, static_size
from crowdrt.contracts import (
    COUNT,
    DENSITY,
    Feeds,
    GraphInfo,
    Preprocessing,
    Region,
    Sample,
    Size,
    UInt8Image,
)
from crowdrt.data.heads.regions import cell_shares
from crowdrt.data.images import image_size, read_image
from crowdrt.data.preprocess import pad_to_stride
from crowdrt.data.tiles import TileMode, merge_maps, tiles_of, tiling_of
from crowdrt.errors import BenchmarkError, DataError, EngineError

if TYPE_CHECKING:
    from crowdrt.engines.base import Engine

UInt8Batch = npt.NDArray[np.uint8]  # (N, C, H, W)
TILES_AT_ONCE = 4  # where an engine takes any batch: more tiles need more memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What an engine says of one photograph."""

    count: float  # people
    density: npt.NDArray[np.float32] | None  # (h, w) people per cell, the photograph's cells only
    stride: int  # input pixels per cell
    stretched: Size | None = None  # px of the photograph under the map, where it was stretched
    margin_px: float = 0.0  # by which the map begins above and left of the photograph

    @property
    def span(self) -> Size:
        """Height and width under the map in pixels of the photograph; (0, 0) without a map."""
        if self.density is None:
            return 0, 0
        rows, columns = self.density.shape
        return self.stretched or (rows * self.stride, columns * self.stride)


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
            count=predict_sample(engine, sample).count,
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


def predict_sample(engine: "Engine", sample: Sample, tiles: TileMode | None = None) -> Prediction:
    """Run the engine on one photograph; where it has a region of interest, count in that alone.

    Args:
        engine: of a counting network.
        sample: the photograph, annotated or not.
        tiles: how a network of one size is shown any other; None: stretched tiles.

    Raises:
        DataError: as `predict`, and for a region of another size than the photograph.
        EngineError: as `predict`, and for a region where the engine does not say where people are.
    """
    found = predict(engine, sample.image, tiles)
    return found if sample.roi is None else within(found, sample.roi, source=sample.image)


def within(found: Prediction, roi: Region, *, source: Path) -> Prediction:
    """Return what of a prediction lies in a region: its map is 0 elsewhere, its count the sum."""
    if found.density is None:
        raise EngineError(
            f"{source}: people are to be counted in a region of it, and this engine counts without "
            "a density map",
            fix="export a map beside the count: "
            "crowdrt export deepcount --output density:48x64 -o model.onnx",
        )
    if (size := image_size(source)) != roi.shape:
        raise DataError(
            f"{source} has {size[0]}x{size[1]} px (height x width), its region of interest "
            f"{roi.shape[0]}x{roi.shape[1]}",
            fix="copy both again from the published data set; neither may be resized",
        )
    cells = found.density.shape
    shares = cell_shares(roi, (cells[0], cells[1]), span=found.span, margin_px=found.margin_px)
    density = found.density * shares
    return replace(found, count=float(density.sum(dtype=np.float64)), density=density)


def predict(engine: "Engine", path: Path, tiles: TileMode | None = None) -> Prediction:
    """Run the engine on one photograph.

    Args:
        engine: of a counting network.
        path: the photograph.
        tiles: how a network of one size is shown any other; None: stretched tiles.

    Raises:
        DataError: the photograph cannot be read, is larger than the engine, or is to be tiled for
            a network that takes it whole.
        EngineError: the engine does not say how its input is prepared, or answers nonsense.
    """
    channels = counting_info(engine).preprocessing.channels
    return predict_pixels(engine, read_image(path, channels), tiles, source=path)


def predict_pixels(
    engine: "Engine",
    photograph: UInt8Image,
    tiles: TileMode | None = None,
    *,
    source: Path | str,
) -> Prediction:
    """Run the engine on one photograph that is decoded; see `predict`. Errors name `source`."""
    info = counting_info(engine)
    check_tiles(info, tiles)
    if info.fixed_size is not None:
        found = predict_tiles(engine, info, photograph, info.fixed_size, tiles or "resize")
    else:
        found = predict_whole(engine, info, [photograph], source=source)[0]
    check_finite(found, source=source)
    return found


def check_tiles(info: GraphInfo, tiles: TileMode | None) -> None:
    """Refuse a way to fill tiles for a network that takes photographs whole."""
    if tiles is not None and info.fixed_size is None:
        raise DataError(
            f"{info.network} takes a photograph whole: --tiles {tiles} is for networks that take "
            "one size and no other",
            fix="leave out --tiles",
        )


def check_finite(found: Prediction, *, source: Path | str) -> None:
    """Refuse a count that is no number."""
    if not np.isfinite(found.count):
        raise BenchmarkError(
            f"{source}: the engine counts {found.count} people",
            fix="build the engine again; if it stays, count with the FP32 file to compare",
        )


def predict_whole(
    engine: "Engine", info: GraphInfo, photographs: Sequence[UInt8Image], *, source: Path | str
) -> list[Prediction]:
    """Run an engine of any size, or of one that is at least the photographs', which share theirs.

    More than one at a time is for an engine of free batch. Errors name `source`.
    """
    padded = [pad_to_stride(each, info.preprocessing) for each in photographs]
    feed = padded[0][np.newaxis] if len(padded) == 1 else np.stack(padded)  # no needless copy
    fixed = static_size(engine)
    image = feed if fixed is None else pad_to_size(feed, fixed, info, source=source)
    outputs = run(engine, info, image)
    maps = np.asarray(outputs[DENSITY], np.float32)[:, 0]
    counts, stride = [float(each) for each in outputs[COUNT]], info.density_stride
    beyond = max(0, maps.shape[1] - -(-image.shape[2] // stride))  # cells, half on each side
    if image.shape != feed.shape:
        rows, columns = (-(-side // stride) + beyond for side in feed.shape[2:])
        maps = maps[:, :rows, :columns]
        counts = [float(density.sum(dtype=np.float32)) for density in maps]
    return [
        Prediction(count=count, density=density, stride=stride, margin_px=beyond * stride / 2)
        for count, density in zip(counts, maps, strict=True)
    ]


def predict_tiles(
    engine: "Engine", info: GraphInfo, photograph: UInt8Image, tile: Size, mode: TileMode
) -> Prediction:
    """Run an engine of one size on the tiles of a photograph: counts add up, maps lie side by side.

    Of padded tiles, the map's cells on the photograph are kept; the count is of the whole tiles. An
    engine that answers a map alone counts by its sum.
    """
    height, width = photograph.shape[1:]
    tiling = tiling_of((height, width), tile, mode)
    taken = engine.inputs[0].shape[0]
    batch = taken if isinstance(taken, int) else TILES_AT_ONCE
    tiles = tiles_of(photograph, tiling, info.preprocessing, batch=batch)
    answers = [run(engine, info, each) for each in tiles]
    counting = COUNT if COUNT in answers[0] else DENSITY
    count = float(sum(answer[counting].sum(dtype=np.float64) for answer in answers))
    stride = info.density_stride
    if DENSITY not in answers[0]:
        return Prediction(count=count, density=None, stride=stride)
    maps = np.concatenate([np.asarray(answer[DENSITY], np.float32) for answer in answers])
    density = merge_maps(maps, tiling)
    if mode == "resize":
        return Prediction(count=count, density=density, stride=stride, stretched=tiling.span)
    return Prediction(
        count=count, density=density[: -(-height // stride), : -(-width // stride)], stride=stride
    )


def run(engine: "Engine", info: GraphInfo, image: UInt8Batch) -> Feeds:
    """Feed pixels as the engine takes them; returns its outputs by name."""
    spec = engine.inputs[0]
    pixels = image if spec.dtype == "uint8" else normalise(image, info.preprocessing)
    return engine.run({spec.name: pixels})


def pad_to_size(
    image: UInt8Batch, size: Size, info: GraphInfo, *, source: Path | str
) -> UInt8Batch:
    """Return `image` in the top left corner of the size that an engine insists on."""
    batch, num_channels, height, width = image.shape
    if height > size[0] or width > size[1]:
        raise DataError(
            f"{source} needs {height}x{width} px (height x width), the engine takes at most"
            f" {size[0]}x{size[1]}",
            fix=f"export for any size: crowdrt export {info.network} --size dynamic -o model.onnx",
        )
    padded = np.empty((batch, num_channels, *size), np.uint8)
    padded[:] = _pad_level(info.preprocessing)
    padded[:, :, :height, :width] = image
    return padded


def _pad_level(preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    return np.array(preprocessing.pad_value, np.uint8)[:, None, None]


def counting_info(engine: "Engine") -> GraphInfo:
    """Return what the file says of itself.

    Raises:
        EngineError: it is no counting network of ours.
    """
    names = {output.name for output in engine.outputs}
    wanted = {DENSITY, COUNT}
    if engine.info and engine.info.fixed_size:
        wanted = {COUNT} if COUNT in names else {DENSITY}
    if engine.info is not None and "boxes" in names:
        raise EngineError(
            f"this engine answers {', '.join(sorted(names))}: it finds people and does not count",
            fix="show whom it finds: crowdrt detect ENGINE IMAGES",
        )
    if engine.info is None or not wanted <= names:
        raise EngineError(
            "this engine does not say how to prepare a photograph for it; its outputs are"
            f" {sorted(names)}",
            fix="export the network: crowdrt export NETWORK --weights F -o model.onnx",
        )
    return engine.info
