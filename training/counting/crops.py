"""Training batches: random crops with their heads, a pure function of seed, step and member.

Nothing is drawn from a global generator, so a run that was killed goes on with exactly the
batches it would have seen, and processes that share a batch see what one would.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from crowdrt.contracts import Preprocessing, Sample
from crowdrt.data.heads.density import adaptive_sigma, density_map
from crowdrt.data.images import read_image
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig

FloatArray = npt.NDArray[np.float32]
SIGMA_RANGE_PX = (4.0, 16.0)  # what a stride-8 map can show, and what a crop still holds
INSIDE_PX = 1e-3  # a head on the crop's right or lower edge is this far inside


@dataclass(frozen=True)
class Batch:
    """One optimisation step's input, or a process's part of it: B crops of H x W pixels."""

    images: npt.NDArray[np.uint8]  # (B, C, H, W)
    density: FloatArray  # (B, 1, H / stride, W / stride) people per cell
    heads: tuple[FloatArray, ...]  # B times (N, 2) x, y in pixels of the crop, all inside it


@dataclass(frozen=True)
class Annotated:
    """A decoded photograph with what its crops need."""

    image: Image.Image
    heads: FloatArray  # (N, 2) x, y in pixels, all inside
    sigma: FloatArray  # (N,) pixels


@dataclass(frozen=True)
class SampleGroup:
    """Photographs of one source and how often a crop is taken from them."""

    name: str
    samples: tuple[Sample, ...]
    share: float  # relative to the other groups' shares, whatever the groups' sizes


class CropSource:
    """Holds a training set in memory and cuts batches from it.

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
        self._groups = [group for group in groups if group.samples]
        if not self._groups:
            raise TrainingError(
                "there is no annotated photograph to learn from",
                fix="name a data set with --data DIR, or generate one: crowdrt synthesize -o DIR",
            )
        for sample in (sample for group in self._groups for sample in group.samples):
            annotated_heads(sample)  # now, not after an hour
        shares = np.array([group.share for group in self._groups])
        self._shares = shares / shares.sum()
        self._preprocessing = preprocessing
        self._stride = density_stride
        self.config = config
        self._decoded: dict[tuple[int, int], Annotated] = {}

    def batch(self, step: int, members: range) -> Batch:
        """Return some members of this step's batch; the same ones are always the same crops."""
        crops = [self._crop(step, member) for member in members]
        images, density, heads = zip(*crops, strict=True)
        return Batch(images=np.stack(images), density=np.stack(density)[:, None], heads=heads)

    def _crop(self, step: int, member: int) -> tuple[npt.NDArray[np.uint8], FloatArray, FloatArray]:
        rng = np.random.default_rng([self.config.seed, step, member])
        group = int(rng.choice(len(self._groups), p=self._shares))
        photo = self._load(group, int(rng.integers(len(self._groups[group].samples))))
        crop = self.config.crop_px
        smallest = crop / min(photo.image.size)
        scale = max(smallest, float(np.exp(rng.uniform(np.log(0.6), np.log(1.5)))))
        side = crop / scale  # pixels of the photograph that the crop covers
        left = rng.uniform(0, max(photo.image.width - side, 0))
        top = rng.uniform(0, max(photo.image.height - side, 0))
        image = photo.image.resize(
            (crop, crop),
            Image.Resampling.BILINEAR,
            box=(
                left,
                top,
                min(left + side, photo.image.width),
                min(top + side, photo.image.height),
            ),
            reducing_gap=2.0,
        )
        edges = (photo.heads + 0.5 - np.array([left, top])) * scale  # 0: the crop's left edge
        inside = ((edges >= 0) & (edges < crop)).all(1)
        edges = edges[inside]
        if rng.random() < self.config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            edges[:, 0] = crop - edges[:, 0]
        heads = np.clip(edges - 0.5, 0, crop - INSIDE_PX).astype(np.float32)
        density = density_map(
            heads,
            height=crop,
            width=crop,
            sigma=np.clip(photo.sigma[inside] * scale, *SIGMA_RANGE_PX).astype(np.float32),
            stride=self._stride,
        )
        if self.config.colours:
            image = vary_colours(image, rng)
        return to_array(image), density, heads

    def _load(self, group: int, index: int) -> Annotated:
        key = (group, index)
        if key not in self._decoded:
            self._decoded[key] = self._decode(self._groups[group].samples[index])
        return self._decoded[key]

    def _decode(self, sample: Sample) -> Annotated:
        pixels = read_image(sample.image, self._preprocessing.channels)
        image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0))
        heads = annotated_heads(sample)
        if self.config.sigma_px > 0:
            sigma = np.full(len(heads), self.config.sigma_px, np.float32)
        else:
            sigma = adaptive_sigma(heads).astype(np.float32)
        heads = heads.reshape(-1, 2)
        inside = ((heads >= 0) & (heads < image.size)).all(1)
        edge = np.array(image.size) - 0.5 - INSIDE_PX  # of the last pixel
        heads = np.minimum(heads[inside], edge).astype(np.float32)
        return Annotated(image, heads, sigma[inside])


def annotated_heads(sample: Sample) -> FloatArray:
    """Return the heads of a photograph, (N, 2) x, y in pixels, or refuse one without."""
    if sample.heads is None:
        raise TrainingError(
            f"{sample.image} has no annotated heads",
            fix=f"remove it from the folder, or write {sample.image.name}.heads.json beside it: "
            '{"heads": [[x, y], ...]}',
        )
    return sample.heads


def vary_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and colour a little; one crop in eight turns grey."""
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.3))
    grey = rng.random() < 0.125
    compress = rng.random() < 0.2
    if image.mode == "RGB":
        image = ImageEnhance.Color(image).enhance(0.0 if grey else rng.uniform(0.6, 1.4))
    if compress:  # cameras differ in how hard they compress
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=int(rng.integers(40, 90)))
        image = Image.open(encoded)
    return image


def to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return a decoded image as uint8 (C, H, W)."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
