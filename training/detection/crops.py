"""Crops with boxes to learn from: a pure function of seed, step and member, as all batches here.

Who is cut off is learned as far as seen: a box is clipped to the crop. Whose part inside is too
small a share, or who is too small altogether, is ignored there: neither a person to be found nor
background. So are the regions that the annotation itself ignores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.contracts import BoxSample, Preprocessing
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
from crowdrt.training.photographs.windows import Window, draw_window

FloatArray = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

MIN_INSIDE = 0.3  # of a box's area, or who it shows is ignored in the crop
MIN_HEIGHT_PX = 8.0  # in the crop; one cell of the finest level


@dataclass(frozen=True)
class BoxBatch:
    """One optimisation step's input, or a process's part of it: B square crops."""

    images: npt.NDArray[np.uint8]  # (B, C, H, W)
    boxes: tuple[FloatArray, ...]  # B times (N, 4) x1, y1, x2, y2 in pixels, inside the crop
    ignore: tuple[Flags, ...]  # B times (N,)
    step: int  # which some targets follow


BoxGroup = Group[BoxSample]


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
        self._sources = Sources(groups, annotated_boxes)
        self._channels = preprocessing.channels
        self._config = config
        self._held = Held[Image.Image]()

    def batch(self, step: int, members: range) -> BoxBatch:
        """Return some members of this step's batch; the same ones are always the same crops."""
        images, boxes, ignore = zip(*(self._crop(step, each) for each in members), strict=True)
        return BoxBatch(images=np.stack(images), boxes=boxes, ignore=ignore, step=step)

    def _crop(self, step: int, member: int) -> tuple[npt.NDArray[np.uint8], FloatArray, Flags]:
        rng = np.random.default_rng([self._config.seed, step, member])
        sample = self._sources.pick(rng)
        photograph = self._held.get(
            sample.image, lambda: decode(sample.image, self._channels), num_bytes
        )
        window = window_of(rng, photograph.size, self._config)
        image = window.cut(photograph)
        if self._config.colours:
            image = vary_colours(image, rng)
        boxes, ignore = boxes_in(annotated_boxes(sample), sample.ignore, window)
        return to_array(image), boxes, ignore


def annotated_boxes(sample: BoxSample) -> FloatArray:
    """Return the boxes of a photograph, (N, 4), or refuse one that is not annotated."""
    if sample.boxes is None:
        raise TrainingError(
            f"{sample.image} has no annotated boxes",
            fix="name annotated photographs: crowdrt train takes what crowdrt detect evaluates on",
        )
    return sample.boxes


def window_of(rng: np.random.Generator, size: tuple[int, int], config: TrainingConfig) -> Window:
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
        scale *= random_scale(rng)
    crop = config.crop_px, config.crop_px
    return draw_window(rng, size, crop, scale=scale, flip=config.flip)


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
        whole[:, [0, 2]] = window.size[0] - whole[:, [2, 0]]
    clipped = np.clip(whole, 0, window.size * 2)
    sides, sides_whole = (each[:, 2:] - each[:, :2] for each in (clipped, whole))
    seen = (sides > 0).all(axis=1)
    share = sides.prod(axis=1) / sides_whole.prod(axis=1)
    hidden = (share < MIN_INSIDE) | (sides[:, 1] < MIN_HEIGHT_PX)
    return clipped[seen].astype(np.float32), (ignore | hidden)[seen]
