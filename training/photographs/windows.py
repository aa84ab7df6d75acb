"""Windows: which part of a photograph a crop shows, how large, and whether mirrored.

One frame for all of it: pixel i of a photograph or crop reaches from i to i + 1, so an annotated
head, whose 0 is the centre of the first pixel, lies half a pixel further.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.data.heads.density import density_map, shares_between

FloatArray = npt.NDArray[np.float32]
INSIDE_PX = 1e-3  # a head on the crop's right or lower edge is this far inside


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a photograph that a crop shows."""

    left: float  # of the photograph's pixels, as all but `size`
    top: float
    width: float
    height: float
    size: tuple[int, int]  # width and height of the crop, in its own pixels
    mirrored: bool = False

    @property
    def scale(self) -> float:
        """Crop pixels per pixel of the photograph."""
        return self.size[0] / self.width

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in the photograph."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def cut(self, image: Image.Image) -> Image.Image:
        """Return what the window shows; where nothing is scaled, pixel for pixel."""
        left, top, right, bottom = self.box  # floats may end past the last pixel by 1e-13
        if self.scale == 1:
            crop = image.crop((round(left), round(top), round(right), round(bottom)))
        else:
            box = left, top, min(right, image.width), min(bottom, image.height)
            crop = image.resize(self.size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else crop

    def cells(self, region: Image.Image, *, stride: int) -> FloatArray:
        """Return which share of each cell is white in a picture as large as the photograph.

        Args:
            region: black and white.
            stride: pixels of the crop per cell.

        Returns:
            (height / stride, width / stride) from 0 to 1.
        """
        left, top, right, bottom = self.box
        box = left, top, min(right, region.width), min(bottom, region.height)
        size = self.size[0] // stride, self.size[1] // stride
        covered = region.resize(size, Image.Resampling.BOX, box=box)
        share: FloatArray = np.asarray(covered, np.float32) / np.float32(255)
        return share[:, ::-1] if self.mirrored else share

    def heads(self, heads: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return the heads that the window shows, in pixels of the crop, and which they are.

        Args:
            heads: (N, 2) x, y in pixels of the photograph, 0 the centre of the first.

        Returns:
            (M, 2) in [0, width) x [0, height) of the crop, and (N,) True for those M.
        """
        edges = (heads + 0.5 - np.array([self.left, self.top])) * self.scale
        inside = ((edges >= 0) & (edges < self.size)).all(1)
        edges = edges[inside]
        if self.mirrored:
            edges[:, 0] = self.size[0] - edges[:, 0]
        last = np.array(self.size) - INSIDE_PX
        return np.clip(edges - 0.5, 0, last).astype(np.float32), inside

    def density(self, heads: FloatArray, sigma: FloatArray, *, stride: int) -> FloatArray:
        """Return the crop's map of the heads in it, each of them one whole person.

        Args:
            heads: (N, 2) x, y in pixels of the photograph.
            sigma: (N,) in pixels of the crop.
            stride: pixels of the crop per cell.

        Returns:
            (height / stride, width / stride) people per cell.
        """
        shown, inside = self.heads(heads)
        width, height = self.size
        return density_map(shown, height=height, width=width, sigma=sigma[inside], stride=stride)

    def density_of_whole(
        self, heads: FloatArray, sigma: FloatArray, whole: tuple[int, int], *, stride: int
    ) -> FloatArray:
        """Return this part of the whole photograph's map: heads beside the crop reach into it.

        It is what cutting a map of one cell per pixel and summing it over cells would give.

        Args:
            heads: (N, 2) x, y in pixels of the photograph.
            sigma: (N,) in pixels of the crop, as `density` takes it.
            whole: width and height of the photograph in pixels.
            stride: pixels of the crop per cell.

        Returns:
            (height / stride, width / stride) people per cell.
        """
        columns, rows = (
            shares_between(
                start + np.arange(self.size[axis] // stride + 1) * (stride / self.scale),
                heads[:, axis] + 0.5,
                sigma / self.scale,
                extent=whole[axis],
            )
            for axis, start in enumerate((self.left, self.top))
        )
        density: FloatArray = (rows.T @ columns).astype(np.float32)
        return density[:, ::-1] if self.mirrored else density


def draw_window(
    rng: np.random.Generator,
    whole: tuple[int, int],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    flip: float = 0.5,
) -> Window:
    """Place a window at random.

    Args:
        rng: three numbers are drawn from it, whatever comes out.
        whole: width and height of the photograph.
        size: width and height of the crop.
        scale: crop pixels per pixel of the photograph; more where it is smaller than the crop.
        flip: how often it is mirrored.
    """
    scale = max(scale, size[0] / whole[0], size[1] / whole[1])
    width, height = size[0] / scale, size[1] / scale
    left = rng.uniform(0, max(whole[0] - width, 0))
    top = rng.uniform(0, max(whole[1] - height, 0))
    if scale == 1:  # whole pixels are copied, not mixed
        left, top = round(left), round(top)
    mirrored = bool(rng.random() < flip)
    return Window(left=left, top=top, width=width, height=height, size=size, mirrored=mirrored)
