"""Proof that an exported file counts as PyTorch does, on outputs that vary."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crowdrt.contracts import COUNT, Feeds, Preprocessing, Size, UInt8Image
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.instance_norm import with_exact_norms
from crowdrt.errors import ParityError
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.export.difference import differences
from crowdrt.models.network import Network
from crowdrt.onnx_file import graph_info, read_onnx

RTOL = 1e-4  # of the largest value; sums in another order differ by about 1e-6
KERNEL_RTOL = 5e-3  # of a file with instance norms: see engines/rewrites/instance_norm.py
MIN_VARIATION = 1e-3  # of the largest value: below it a reference proves nothing
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far apart two forms of one network are, over all images."""

    max_abs: float  # of the first output: people per cell, where it is a density map
    max_rel: float  # of any output, relative to the image's largest value of it
    max_count: float  # people; 0 where the network does not count
    sizes: tuple[Size, ...]

    def to_facts(self) -> dict[str, Any]:
        """The manifest's form."""
        return asdict(self)


def prove_parity(
    model: Network, onnx_path: Path, images: Sequence[UInt8Image], *, rtol: float = RTOL
) -> Parity:
    """Compare the ONNX file with PyTorch on every image, output by output.

    Args:
        model: the deployed network that was exported.
        onnx_path: an FP32 export of it.
        images: (N, C, H, W) uint8, padded to the stride; sizes may differ.
        rtol: allowed difference, relative to the output's largest value on the image; see
            `crowdrt.export.difference` for counts and detections.

    Raises:
        ParityError: the two differ by more, or PyTorch's answer does not vary and proves nothing.
    """
    info = graph_info(onnx_path)
    reference = ShippedNetwork(model, model.preprocessing)
    first = reference.output_names[0]
    answers = [answer(reference, image) for image in images]
    _check_variation(reference, images, [each[first] for each in answers])
    feeds = images
    if info.normalised_input:
        feeds = [reference.normalise(torch.from_numpy(image)).numpy() for image in images]
    exact = with_exact_norms(read_onnx(onnx_path))
    if exact is not None:  # the file is held to `rtol`, ONNX Runtime's kernel to what it can do
        _compare_all(OrtEngine(exact.SerializeToString()), answers, feeds, rtol)
        rtol = max(rtol, KERNEL_RTOL)
    rows = _compare_all(OrtEngine(onnx_path), answers, feeds, rtol)
    worst = [max(column) for column in zip(*rows, strict=True)]
    sizes = tuple(dict.fromkeys((image.shape[2], image.shape[3]) for image in images))
    return Parity(max_abs=worst[0], max_rel=worst[1], max_count=worst[2], sizes=sizes)


def answer(reference: ShippedNetwork, image: UInt8Image) -> dict[str, FloatArray]:
    """Return PyTorch's outputs by name."""
    with torch.inference_mode():
        outputs = reference(torch.from_numpy(np.ascontiguousarray(image)))
    names = reference.output_names
    return {name: each.numpy() for name, each in zip(names, outputs, strict=True)}


def _compare_all(
    engine: OrtEngine,  # opened late: it keeps the memory that its largest run needed
    answers: Sequence[Mapping[str, FloatArray]],
    feeds: Sequence[npt.NDArray[Any]],
    rtol: float,
) -> list[tuple[float, float, float]]:
    """Compare the engine's answer to every feed; see `_compare`."""
    pairs = zip(answers, feeds, strict=True)
    return [_compare(each, engine.run({"image": feed}), feed, rtol) for each, feed in pairs]


def _compare(
    expected: Mapping[str, FloatArray], got: Feeds, image: npt.NDArray[Any], rtol: float
) -> tuple[float, float, float]:
    """Return the largest differences: absolute of the first output, relative of any, people."""
    height, width = image.shape[2:]
    where = f"at {height}x{width} px"
    for name, values in expected.items():
        if got[name].shape != values.shape:
            raise ParityError(
                f"{where} the ONNX file answers {name} {got[name].shape}, PyTorch {values.shape}",
                fix="export with a fixed size: --size HEIGHTxWIDTH",
            )
    found = differences(expected, got, rtol)
    off = found[COUNT].absolute if COUNT in found else 0.0
    if not all(each.relative <= rtol for each in found.values()):  # also true for NaN
        parts = ", ".join(f"{name} by {each.relative:.2%}" for name, each in found.items())
        people = f", {off:.3g} people" if COUNT in found else ""
        raise ParityError(
            f"{where} the ONNX file differs from PyTorch: {parts} of its largest value{people} "
            f"(allowed: {rtol:.2%})",
            fix="export with another --opset, or a fixed --size, and compare again",
        )
    first = next(iter(expected))
    return found[first].absolute, max(each.relative for each in found.values()), off


def _check_variation(
    reference: ShippedNetwork, images: Sequence[UInt8Image], answers: Sequence[FloatArray]
) -> None:
    """Refuse a reference with which agreement would mean nothing: two constants always agree.

    The first output has to vary within an image, where it is more than one number, and between an
    image and its negative. The second catches a network that ignores its input, whose answer
    still varies near the borders through padding.
    """
    scale = max((float(np.abs(each).max()) for each in answers), default=0.0)
    within = max((float(each.std()) for each in answers), default=0.0)
    smallest = min(range(len(images)), key=lambda i: images[i].size, default=None)
    between = 0.0
    if smallest is not None:
        name = reference.output_names[0]
        negative = answer(reference, 255 - images[smallest])[name]
        between = float(np.abs(negative - answers[smallest]).max())
        if answers[smallest][0].size == 1:
            within = between
    if not min(within, between) > MIN_VARIATION * scale:
        raise ParityError(
            f"PyTorch's answer hardly varies (largest {scale:.3g}, within an image {within:.3g}, "
            f"from an image to its negative {between:.3g}), so agreeing with it proves nothing",
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
