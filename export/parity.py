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
        images: (N, C, H, W) uint8, padded to the stride; sizes may differ.
        rtol: allowed difference, relative to the image's largest density; for the count,
            relative to the sum of absolute densities.

    Raises:
        ParityError: the two differ by more, or PyTorch's answer does not vary and proves nothing.
    """
    info = graph_info(onnx_path)
    reference = ShippedNetwork(model, model.preprocessing)
    engine = OrtEngine(onnx_path)
    densities: list[FloatArray] = []
    rows: list[tuple[float, float, float]] = []
    for image in images:
        density, count = _answer(reference, image)
        feed = image
        if info.normalised_input:
            feed = reference.normalise(torch.from_numpy(image)).numpy()
        got = engine.run({"image": feed})
        rows.append(_compare(density, count, got["density"], got["count"], image, rtol))
        densities.append(density)
    _check_variation(reference, images, densities)
    worst = [max(column) for column in zip(*rows, strict=True)]
    sizes = tuple(dict.fromkeys((image.shape[2], image.shape[3]) for image in images))
    return Parity(max_abs=worst[0], max_rel=worst[1], max_count=worst[2], sizes=sizes)


def _answer(reference: ShippedNetwork, image: UInt8Image) -> tuple[FloatArray, FloatArray]:
    with torch.inference_mode():
        density, count = reference(torch.from_numpy(np.ascontiguousarray(image)))
    return density.numpy(), count.numpy()


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


def _check_variation(
    reference: ShippedNetwork, images: Sequence[UInt8Image], densities: Sequence[FloatArray]
) -> None:
    """Refuse a reference with which agreement would mean nothing: two constants always agree.

    It has to vary within an image, and between an image and its negative. The second catches a
    network that ignores its input, whose answer still varies near the borders through padding.
    """
    scale = max((float(np.abs(density).max()) for density in densities), default=0.0)
    within = max((float(density.std()) for density in densities), default=0.0)
    smallest = min(range(len(images)), key=lambda i: images[i].size, default=None)
    between = 0.0
    if smallest is not None:
        negative, _ = _answer(reference, 255 - images[smallest])
        between = float(np.abs(negative - densities[smallest]).max())
    if not min(within, between) > MIN_VARIATION * scale:
        raise ParityError(
            f"PyTorch's answer hardly varies (largest {scale:.3g}, within an image {within:.3g}, "
            f"from an image to its negative {between:.3g} people per cell), so agreeing with it "
            "proves nothing",
            fix="load trained weights, or compare on photographs instead of flat images",
        )


def probe_sizes(stride: int) -> list[Size]:
    """Return small sizes that no symmetry hides, each a multiple of `stride`."""
    wanted = ((96, 128), (136, 104), (72, 200))
    return [(-(-h // stride) * stride, -(-w // stride) * stride) for h, w in wanted]


def probe_images(preprocessing: Preprocessing, sizes: Sequence[Size]) -> list[UInt8Image]:
    """Return one made-up picture per size, each with flat, smooth and noisy regions."""
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
