"""DeepCount's training set: the tiles of a photograph, and crops of a tile's size.

A photograph is stretched to whole tiles, as where it is counted (`crowdrt.data.tiles`), and its
heads with it. One pass over the photographs, as the published code makes it, has of each one all
its tiles, and 30 crops at random unless one tile shows all of it; each of them mirrored as well.
The paper says no more than "random cropping and mirroring". Departures: a batch's members are
drawn from the pass with replacement, so that each depends on seed, step and number alone; and a
head belongs whole to the tile that it is in, where the code cuts tiles out of the spread map.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.contracts import Preprocessing, Sample, Size
from crowdrt.data.heads.density import density_map
from crowdrt.data.images import image_size
from crowdrt.data.tiles import Tiling, tiling_of
from crowdrt.errors import TrainingError
from crowdrt.learning import GradientFusion, TrainingConfig
from crowdrt.training.counting.crops import (
    SampleGroup,
    annotated_heads,
    are_inside,
    clear_of_edges,
)
from crowdrt.training.photographs.pictures import decode, num_bytes, to_array, vary_colours
from crowdrt.training.photographs.sources import Held, Sources

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TileBatch:
    """One optimisation step's input, or a process's part of it."""

    images: npt.NDArray[np.uint8]  # (B, 3, 384, 512)
    density: FloatArray  # (B, 1, 48, 64) people per cell, each whole


@dataclass(frozen=True)
class Photograph:
    """A decoded photograph."""

    image: Image.Image
    heads: FloatArray  # (N, 2) x, y in its pixels, all inside
    tiling: Tiling


class PassOver:
    """What one pass over the photographs of a group has, numbered through, mirrors left aside.

    By the sizes that files state: one that is turned by its EXIF may have a tile more or fewer.
    """

    def __init__(self, group: SampleGroup, tile: Size, num_crops: int) -> None:
        self.samples = group.samples
        tiles = [len(tiling_of(image_size(sample.image), tile)) for sample in self.samples]
        self.ends = list(accumulate(each + num_crops * (each > 1) for each in tiles))

    def entry(self, number: int) -> tuple[int, int]:
        """Return which photograph an entry is of, and its number there: the tiles come first."""
        index = bisect_right(self.ends, number)
        return index, number - (self.ends[index - 1] if index else 0)


class TileSource:
    """Cuts batches of tiles and crops from photographs.

    Args:
        groups: what to cut from; empty groups are passed over.
        tile: height and width of a tile in pixels.
        stride: pixels per cell of the finest map.
        preprocessing: of the network that learns.
        config: batch size, sigma, mirrors, seed.
        fusion: crops per photograph, grey ones.

    Raises:
        TrainingError: there is no photograph, one without annotation, or no sigma.
    """

    def __init__(
        self,
        groups: Sequence[SampleGroup],
        tile: Size,
        stride: int,
        preprocessing: Preprocessing,
        config: TrainingConfig,
        fusion: GradientFusion,
    ) -> None:
        self._sources = Sources(groups, annotated_heads)
        check_sigma(config)
        self._passes = [PassOver(each, tile, fusion.num_crops) for each in self._sources.groups]
        self._tile, self._stride, self._preprocessing = tile, stride, preprocessing
        self._config, self._fusion = config, fusion
        self._held = Held[Photograph]()
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def batch(self, step: int, members: range) -> TileBatch:
        """Return some members of a step's batch; the same ones are always the same."""
        cuts = self._pool.map(lambda member: self._member(step, member), members)
        images, density = zip(*cuts, strict=True)
        return TileBatch(images=np.stack(images), density=np.stack(density)[:, None])

    def _member(self, step: int, member: int) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        rng = np.random.default_rng([self._config.seed, step, member])
        drawn = self._passes[self._sources.pick_group(rng)]
        index, number = drawn.entry(int(rng.integers(drawn.ends[-1])))
        sample = drawn.samples[index]
        photo = self._held.get(
            id(sample), lambda: self._decode(sample), lambda photo: num_bytes(photo.image)
        )
        is_tile = number < len(photo.tiling)
        corner = corner_of(photo.tiling, number) if is_tile else drawn_corner(photo.tiling, rng)
        image, density = self._cut(photo, corner)
        if rng.random() < self._config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            density = density[:, ::-1]
        if rng.random() < self._fusion.grey:
            image = image.convert("L").convert(image.mode)
        if self._config.colours:
            image = vary_colours(image, rng)
        return to_array(image), density

    def _cut(self, photo: Photograph, corner: tuple[int, int]) -> tuple[Image.Image, FloatArray]:
        """Return a tile's size of the stretched photograph, and its people per cell."""
        height, width = self._tile
        pixels = cut_image(photo.image, photo.tiling, corner)
        heads = cut_heads(photo.heads, photo.tiling, corner)
        sigma = self._config.sigma_px
        return pixels, density_map(
            heads, height=height, width=width, sigma=sigma, stride=self._stride
        )

    def _decode(self, sample: Sample) -> Photograph:
        image = decode(sample.image, self._preprocessing.channels)
        tiling = tiling_of((image.height, image.width), self._tile)
        return Photograph(image, heads_inside(sample, image.size), tiling)


def check_sigma(config: TrainingConfig) -> None:
    """Refuse heads that are spread by how far apart they are."""
    if not config.sigma_px > 0:
        raise TrainingError(
            f"sigma_px={config.sigma_px:g}: heads on tiles are spread by one sigma",
            fix="use sigma_px=5 as DeepCount's paper, or 10 as its code",
        )


def heads_inside(sample: Sample, whole: tuple[int, int]) -> FloatArray:
    """Return the heads on a photograph of this width and height, (N, 2), clear of its edges."""
    heads = annotated_heads(sample).reshape(-1, 2)
    return clear_of_edges(heads[are_inside(heads, whole)], whole)


def corner_of(tiling: Tiling, number: int) -> tuple[int, int]:
    """Return the top and the left of a tile, in pixels of the stretched photograph."""
    row, column = divmod(number, tiling.columns)
    return row * tiling.tile[0], column * tiling.tile[1]


def drawn_corner(tiling: Tiling, rng: np.random.Generator) -> tuple[int, int]:
    """Return the top and the left of a crop anywhere on the stretched photograph."""
    height, width = tiling.tile
    top = int(rng.integers((tiling.rows - 1) * height + 1))
    return top, int(rng.integers((tiling.columns - 1) * width + 1))


def cut_image(image: Image.Image, tiling: Tiling, corner: tuple[int, int]) -> Image.Image:
    """Return a tile's size of the stretched photograph, which never exists as a whole."""
    assert (image.height, image.width) == tiling.image, (image.size, tiling)
    (top, left), (tall, wide) = corner, tiling.tile
    height, width = tall * tiling.rows, wide * tiling.columns
    box = (
        *(left * image.width / width, top * image.height / height),
        *((left + wide) * image.width / width, (top + tall) * image.height / height),
    )
    return image.resize((wide, tall), Image.Resampling.BILINEAR, box=box)


def cut_heads(heads: FloatArray, tiling: Tiling, corner: tuple[int, int]) -> FloatArray:
    """Return the heads there, (N, 2) x, y in pixels of the cut; 0 is the centre of its first.

    Cuts that meet share no head and lose none.
    """
    (top, left), (tall, wide) = corner, tiling.tile
    scale = np.array([tiling.columns * wide, tiling.rows * tall]) / tiling.image[::-1]
    edges = (heads.astype(np.float64) + 0.5) * scale - [left, top]  # 0: the cut's left edge
    edges = edges[((edges >= 0) & (edges < [wide, tall])).all(axis=1)]
    centres: FloatArray = np.maximum(edges - 0.5, 0).astype(np.float32)
    return centres
