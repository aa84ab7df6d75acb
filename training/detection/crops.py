"""Crops with boxes to learn from: a pure function of seed, step and member, as all batches here.

Who is cut off is learned as far as seen: a box is clipped to the crop. Whose part inside is too
small a share, or who is too small altogether, is ignored there: neither a person to be found nor
background. So are the regions that the annotation itself ignores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.contracts import BoxSample, Preprocessing
from crowdrt.data.images import read_image
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.training.counting.crops import to_array, vary_colours

FloatArray = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

SCALES = (0.6, 1.5)  # of "scaled" crops, evenly in the logarithm
MIN_INSIDE = 0.3  # of a box's area, or who it shows is ignored in the crop
MIN_HEIGHT_PX = 8.0  # in the crop; one cell of the finest level
DECODED = 128  # photographs that are kept in memory


@dataclass(frozen=True)
class BoxBatch:
    """One optimisation step's input, or a process's part of it: B square crops."""

    images: npt.NDArray[np.uint8]  # (B, C, H, W)
    boxes: tuple[FloatArray, ...]  # B times (N, 4) x1, y1, x2, y2 in pixels, inside the crop
    ignore: tuple[Flags, ...]  # B times (N,)


@dataclass(frozen=True)
class BoxGroup:
    """Photographs of one source and how often a crop is taken from them."""

    name: str
    samples: tuple[BoxSample, ...]
    share: float = 1.0  # relative to the other groups' shares, whatever the groups' sizes


@dataclass(frozen=True)
class Window:
    """The square of a photograph that becomes a crop."""

    left: float  # pixels of the photograph
    top: float
    side: float
    crop_px: int
    mirrored: bool

    @property
    def scale(self) -> float:
        """Pixels of the crop per pixel of the photograph."""
        return self.crop_px / self.side


class BoxCrops:
    """Cuts batches from photographs with boxes.

    Args:
        groups: what to cut from; empty groups are passed over.
        preprocessing: of the network that learns.
        config: crop size, scales, colours and seed.

    Raises:
        TrainingError: there is no photograph, or one without annotation.
    """

    def __init__(
        self, groups: Sequence[BoxGroup], preprocessing: Preprocessing, config: TrainingConfig
    ) -> None:
        self._groups = [group for group in groups if group.samples]
        if not self._groups:
            raise TrainingError(
                "there is no photograph with boxes to learn from",
                fix="name CrowdHuman, COCO or MOT sequences with --data DIR",
            )
        for sample in (sample for group in self._groups for sample in group.samples):
            annotated_boxes(sample)  # now, not after an hour
        shares = np.array([group.share for group in self._groups])
        self._shares = shares / shares.sum()
        self._channels = preprocessing.channels
        self._config = config
        self._decoded = lru_cache(DECODED)(self._decode)

    def batch(self, step: int, members: range) -> BoxBatch:
        """Return some members of this step's batch; the same ones are always the same crops."""
        images, boxes, ignore = zip(*(self._crop(step, each) for each in members), strict=True)
        return BoxBatch(images=np.stack(images), boxes=boxes, ignore=ignore)

    def _crop(self, step: int, member: int) -> tuple[npt.NDArray[np.uint8], FloatArray, Flags]:
        rng = np.random.default_rng([self._config.seed, step, member])
        group = int(rng.choice(len(self._groups), p=self._shares))
        number = int(rng.integers(len(self._groups[group].samples)))
        photograph, sample = self._decoded(group, number), self._groups[group].samples[number]
        window = draw_window(rng, photograph.size, self._config)
        image = cut(photograph, window)
        if self._config.colours:
            image = vary_colours(image, rng)
        boxes, ignore = boxes_in(annotated_boxes(sample), sample.ignore, window)
        return to_array(image), boxes, ignore

    def _decode(self, group: int, number: int) -> Image.Image:
        pixels = read_image(self._groups[group].samples[number].image, self._channels)
        return Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0))


def annotated_boxes(sample: BoxSample) -> FloatArray:
    """Return the boxes of a photograph, (N, 4), or refuse one that is not annotated."""
    if sample.boxes is None:
        raise TrainingError(
            f"{sample.image} has no annotated boxes",
            fix="name annotated photographs: crowdrt train takes what crowdrt detect evaluates on",
        )
    return sample.boxes


def draw_window(rng: np.random.Generator, size: tuple[int, int], config: TrainingConfig) -> Window:
    """Choose where to cut and how large.

    The photograph is thought of with the short side that the recipe names, then scaled at random;
    never so small that the crop would reach beyond it.

    Args:
        rng: of this member of this batch.
        size: width, height of the photograph.
        config: crop size, short side, scales, flip.
    """
    scale = config.short_side_px / min(size) if config.short_side_px else 1.0
    if config.crops == "scaled":
        scale *= math.exp(rng.uniform(math.log(SCALES[0]), math.log(SCALES[1])))
    side = config.crop_px / max(scale, config.crop_px / min(size))
    left, top = (rng.uniform(0, max(length - side, 0)) for length in size)
    return Window(left, top, side, config.crop_px, mirrored=rng.random() < config.flip)


def cut(photograph: Image.Image, window: Window) -> Image.Image:
    """Return the crop of a window."""
    right, bottom = window.left + window.side, window.top + window.side
    image = photograph.resize(
        (window.crop_px, window.crop_px),
        Image.Resampling.BILINEAR,
        box=(window.left, window.top, min(right, photograph.width), min(bottom, photograph.height)),
        reducing_gap=2.0,
    )
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.mirrored else image


def boxes_in(boxes: FloatArray, ignore: Flags, window: Window) -> tuple[FloatArray, Flags]:
    """Return who is in the crop, clipped to it, and who of them is ignored.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the photograph.
        ignore: (N,) by the annotation.
        window: of the crop.
    """
    corner = np.array([window.left, window.top] * 2)
    whole = (boxes - corner) * window.scale
    if window.mirrored:
        whole[:, [0, 2]] = window.crop_px - whole[:, [2, 0]]
    clipped = np.clip(whole, 0, window.crop_px)
    sides, sides_whole = (each[:, 2:] - each[:, :2] for each in (clipped, whole))
    seen = (sides > 0).all(axis=1)
    share = sides.prod(axis=1) / sides_whole.prod(axis=1)
    hidden = (share < MIN_INSIDE) | (sides[:, 1] < MIN_HEIGHT_PX)
    return clipped[seen].astype(np.float32), (ignore | hidden)[seen]
