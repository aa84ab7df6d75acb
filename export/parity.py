"""Proof that an exported file counts as PyTorch does, on outputs that vary."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crowdrt.contracts import Preprocessing, Size, UInt8Image
from crowdrt.engines.ort import OrtEngine
from crowdrt.errors import ParityError
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.models.network import Network
from crowdrt.onnx_file import graph_info

RTOL = 1e-4  # of the largest density; sums in another order differ by about 1e-6
MIN_VARIATION = 1e-3  # of the largest density: below it a reference proves nothing
PROBE_SIZES = ((96, 128), (136, 104), (72, 200))  # odd multiples of 8 among them

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far apart two forms of one network are, over all images."""

    max_abs: float  # people per cell
    max_rel: float  # of the image's largest density
    max_count: float  # people
    sizes: tuple[Size, ...]

    def to_facts(self) -> dict[str, Any]:
        """The manifest's form."""
        return asdict(self)


def prove_parity(
    model: Network, onnx_path: Path, images: Sequence[UInt8Image], *, rtol: float = RTOL
) -> Parity:
    """Compare the ONNX file with PyTorch on every image.

    Args:
        model: the deployed network that was exported.
        onnx_path: an FP32 export of it.
        images: at least two of (N, C, H, W) uint8, padded to the stride; sizes may differ.
        rtol: allowed difference, relative to the image's largest density; for the count,
            relative to the sum of absolute densities.

    Raises:
        ParityError: the two differ by more, or PyTorch's answer does not vary and proves nothing.
    """
    if len(images) < 2:
        raise ParityError(
            f"{len(images)} image(s) cannot show that the output follows the input",
            fix="compare on two images or more, of different content",
        )
    info = graph_info(onnx_path)
    reference = ShippedNetwork(model, model.preprocessing)
    engine = OrtEngine(onnx_path)
    expected: list[FloatArray] = []
    rows: list[tuple[float, float, float]] = []
    for image in images:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(image))
            density, count = (out.numpy() for out in reference(pixels))
            feed = reference.normalise(pixels).numpy() if info.normalised_input else image
        got = engine.run({"image": feed})
        expected.append(density)
        rows.append(_compare(density, count, got["density"], got["count"], image, rtol))
    _check_variation(expected)
    worst = [max(column) for column in zip(*rows, strict=True)]
    sizes = tuple(dict.fromkeys((image.shape[2], image.shape[3]) for image in images))
    return Parity(max_abs=worst[0], max_rel=worst[1], max_count=worst[2], sizes=sizes)


def _compare(
    density: FloatArray,
    count: FloatArray,
    got_density: FloatArray,
    got_count: FloatArray,
    image: UInt8Image,
    rtol: float,
) -> tuple[float, float, float]:
    height, width = image.shape[2:]
    where = f"at {height}x{width} px"
    if got_density.shape != density.shape or got_count.shape != count.shape:
        raise ParityError(
            f"{where} the ONNX file answers density {got_density.shape} and count "
            f"{got_count.shape}, PyTorch {density.shape} and {count.shape}",
            fix="export with a fixed size: --size HEIGHTxWIDTH",
        )
    max_abs = float(np.abs(got_density - density).max())
    max_rel = max_abs / max(float(np.abs(density).max()), 1e-12)
    off = np.abs(got_count - count)
    allowed = rtol * np.abs(density).sum(axis=(1, 2, 3))
    if not (max_rel <= rtol and (off <= allowed).all()):  # also true for NaN
        raise ParityError(
            f"{where} the ONNX file differs from PyTorch by {max_rel:.2%} of the largest "
            f"density and by {float(off.max()):.3g} people (allowed: {rtol:.2%})",
            fix="export with another --opset, or a fixed --size, and compare again",
        )
    return max_abs, max_rel, float(off.max())


def _check_variation(densities: Sequence[FloatArray]) -> None:
    # Two constants agree whatever the export did.
    scale = max(float(np.abs(density).max()) for density in densities)
    within = min(float(density.std()) for density in densities)
    means = [float(density.mean()) for density in densities]
    between = max(means) - min(means)
    if not min(within, between) > MIN_VARIATION * scale:
        raise ParityError(
            f"PyTorch's answer hardly varies (largest {scale:.3g}, within an image {within:.3g}, "
            f"between images {between:.3g} people per cell), so agreeing with it proves nothing",
            fix="load trained weights, or compare on photographs instead of flat images",
        )


def probe_images(preprocessing: Preprocessing, sizes: Sequence[Size]) -> list[UInt8Image]:
    """Return one made-up picture per size, each with flat, smooth and noisy regions.

    The pictures differ in brightness, so a network that looks at its input answers differently.
    """
    rng = np.random.default_rng(0)
    return [_probe(rng, preprocessing, size, k / len(sizes)) for k, size in enumerate(sizes)]


def _probe(
    rng: np.random.Generator, preprocessing: Preprocessing, size: Size, brightness: float
) -> UInt8Image:
    channels, (height, width) = preprocessing.num_channels, size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = 60 * np.sin(x / 9) * np.cos(y / 7) + 60 + 75 * brightness
    image = np.repeat(waves[None], channels, axis=0)
    right, low = width // 2, height // 2
    image[:, :low, right:] = rng.integers(0, 256, (channels, low, width - right))
    image[:, low:, right:] = 255 * brightness
    pixels: UInt8Image = np.clip(image, 0, 255).astype(np.uint8)[None]
    return pixels
