"""Training batches: random crops with their heads, a pure function of seed, step and member.

Nothing is drawn from a global generator, so a run that was killed goes on with exactly the
batches it would have seen, and processes that share a batch see what one would.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.contracts import MIN_SIDE_PX, Preprocessing, Sample
from crowdrt.data.heads.targets import ADAPTIVE, sigma_by_rule
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.training.photographs.pictures import (
    decode,
    num_bytes,
    random_scale,
    to_array,
    vary_colours,
)
from crowdrt.training.photographs.sources import Group, Held, Sources
from crowdrt.training.photographs.windows import INSIDE_PX, Window, draw_window

FloatArray = npt.NDArray[np.float32]
SIGMA_RANGE_PX = (4.0, 16.0)  # what a stride-8 map can show, and what a scaled crop still holds


@dataclass(frozen=True)
class Batch:
    """One optimisation step's input, or a process's part of it: B crops of H x W pixels."""

    images: npt.NDArray[np.uint8]  # (B, C, H, W)
    density: FloatArray  # (B, 1, H / stride, W / stride) people per cell
    heads: tuple[FloatArray, ...]  # B times (N, 2) x, y in pixels of the crop, all inside it
    short_px: FloatArray  # (B,) the photograph's shorter side in pixels of the crop
    region: FloatArray | None  # the share of each cell that counts; None: all of it
    step: int  # which some losses follow


@dataclass(frozen=True)
class Annotated:
    """A decoded photograph with what its crops need."""

    image: Image.Image
    heads: FloatArray  # (N, 2) x, y in pixels, all inside: those that reach into its map
    sigma: FloatArray  # (N,) pixels
    counted: FloatArray  # (M, 2) the heads in the region
    region: Image.Image | None  # white where people count


@dataclass(frozen=True)
class Crop:
    """One member of a batch."""

    image: npt.NDArray[np.uint8]  # (C, H, W)
    density: FloatArray  # (H / stride, W / stride)
    heads: FloatArray
    short_px: float
    region: FloatArray | None


SampleGroup = Group[Sample]


class CropSource:
    """Holds a training set in memory, up to a limit, and cuts batches from it.

    Three ways of cutting (`TrainingConfig.crops`):

    - "scaled": squares of `crop_px` of a photograph at a random scale; ours.
    - "fixed": squares of `crop_px` as the photograph is, enlarged where it is smaller (BL).
    - "ratio": a random ratio of both sides of the photograph, the same for both (SKT; CSRNet and
      CAN take half), in whole strides of the network. The crops of a batch are as large as the
      first one's: others are cut to that size. The map is cut from the whole photograph's, so
      that heads beside the crop reach into it; the other two count whole people.

    Args:
        groups: what to cut from; empty groups are passed over.
        preprocessing: of the network that learns.
        density_stride: input pixels per density cell.
        config: crop size, batch size, sigma and seed.

    Raises:
        TrainingError: there is no photograph, or one without annotation.
    """

    def __init__(
        self,
        groups: Sequence[SampleGroup],
        preprocessing: Preprocessing,
        density_stride: int,
        config: TrainingConfig,
    ) -> None:
        self._sources = Sources(groups, annotated_heads)
        self._preprocessing = preprocessing
        self._rule = sigma_rule(config)
        self._stride = density_stride
        self.config = config
        self._held = Held[Annotated]()
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def batch(self, step: int, members: range) -> Batch:
        """Return some members of this step's batch; the same ones are always the same crops."""
        size = self._size(step)
        crops = list(self._pool.map(lambda member: self._crop(step, member, size), members))
        return Batch(
            images=np.stack([crop.image for crop in crops]),
            density=np.stack([crop.density for crop in crops])[:, None],
            heads=tuple(crop.heads for crop in crops),
            short_px=np.array([crop.short_px for crop in crops], np.float32),
            region=regions_of(crops),
            step=step,
        )

    def _size(self, step: int) -> tuple[int, int]:
        """Return width and height of all crops of a step."""
        if self.config.crops != "ratio":
            return self.config.crop_px, self.config.crop_px
        # No member has this number, so its generator is the whole batch's.
        rng = np.random.default_rng([self.config.seed, step, self.config.batch_size])
        ratio = rng.uniform(*self.config.crop_ratio)
        first = self._pick(np.random.default_rng([self.config.seed, step, 0]))
        unit = self._preprocessing.stride
        least = -(-MIN_SIDE_PX // unit) * unit
        width, height = (max(int(side * ratio) // unit * unit, least) for side in first.image.size)
        return width, height

    def _pick(self, rng: np.random.Generator) -> Annotated:
        sample = self._sources.pick(rng)
        return self._held.get(  # one file can be annotated in two ways
            id(sample), lambda: self._decode(sample), lambda photo: num_bytes(photo.image)
        )

    def _crop(self, step: int, member: int, size: tuple[int, int]) -> Crop:
        rng = np.random.default_rng([self.config.seed, step, member])
        photo = self._pick(rng)
        scaled = self.config.crops == "scaled"
        scale = random_scale(rng) if scaled else 1.0
        window = draw_window(rng, photo.image.size, size, scale=scale, flip=self.config.flip)
        image = window.cut(photo.image)
        if self.config.colours:
            image = vary_colours(image, rng)
        region = None if photo.region is None else window.cells(photo.region, stride=self._stride)
        return Crop(
            image=to_array(image),
            density=self._density(photo, window),
            heads=window.heads(photo.counted)[0],
            short_px=min(photo.image.size) * window.scale,
            region=region,
        )

    def _density(self, photo: Annotated, window: Window) -> FloatArray:
        sigma = photo.sigma * np.float32(window.scale)
        if self.config.crops == "ratio":
            whole = photo.image.size
            return window.density_of_whole(photo.heads, sigma, whole, stride=self._stride)
        if self.config.crops == "scaled":
            sigma = sigma.clip(*SIGMA_RANGE_PX)
        return window.density(photo.heads, sigma, stride=self._stride)

    def _decode(self, sample: Sample) -> Annotated:
        image = decode(sample.image, self._preprocessing.channels)
        counted = annotated_heads(sample)
        heads = counted if sample.heads is None or sample.roi is None else sample.heads
        sigma = sigma_by_rule(heads, self._rule).astype(np.float32)
        inside = are_inside(heads, image.size)
        return Annotated(
            image=image,
            heads=clear_of_edges(heads[inside], image.size),
            sigma=sigma[inside],
            counted=clear_of_edges(counted[are_inside(counted, image.size)], image.size),
            region=None
            if sample.roi is None
            else Image.fromarray(sample.roi.astype(np.uint8) * 255),
        )


def are_inside(heads: FloatArray, whole: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Say which heads lie on a photograph of this width and height, as `density_map` does."""
    inside = (heads >= 0) & (heads < whole)
    return inside[:, 0] & inside[:, 1]


def clear_of_edges(heads: FloatArray, whole: tuple[int, int]) -> FloatArray:
    """Return the heads with those on the last half pixel, beyond its centre, moved inside."""
    return np.minimum(heads, np.array(whole) - 0.5 - INSIDE_PX).astype(np.float32)


def sigma_rule(config: TrainingConfig) -> str:
    """Return how wide heads are spread, as `data.heads.targets` names it."""
    if config.nearest_sigma_px > 0:
        return f"nearest:{config.nearest_sigma_px:g}"
    return f"fixed:{config.sigma_px:g}" if config.sigma_px > 0 else ADAPTIVE


def regions_of(crops: Sequence[Crop]) -> FloatArray | None:
    """Return (B, 1, h, w) shares of cells that count, or None where all of them do."""
    if all(crop.region is None for crop in crops):
        return None
    shares = [np.ones_like(crop.density) if crop.region is None else crop.region for crop in crops]
    return np.stack(shares)[:, None]


def annotated_heads(sample: Sample) -> FloatArray:
    """Return the heads of a photograph that count, (N, 2) x, y in pixels, or refuse one without."""
    if (heads := sample.counted_heads) is None:
        raise TrainingError(
            f"{sample.image} has no annotated heads",
            fix=f"remove it from the folder, or write {sample.image.name}.heads.json beside it: "
            '{"heads": [[x, y], ...]}',
        )
    return heads
