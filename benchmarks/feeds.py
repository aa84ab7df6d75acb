"""From a photograph to what an engine takes: the one place where benchmarks shape inputs."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Feeds, Preprocessing, UInt8Image
from crowdrt.errors import EngineError

if TYPE_CHECKING:
    from crowdrt.engines.base import Engine


def feeds_for(engine: "Engine", image: UInt8Image) -> Feeds:
    """Return the engine's feeds for one image that already has the engine's size.

    Args:
        engine: its first input is the image, uint8 as shipped, or float32 when the graph was
            exported without its normalisation (`GraphInfo.normalised_input`).
        image: (3, H, W) or (1, H, W); RGB becomes grey for a one-channel network.
    """
    spec = engine.inputs[0]
    batch: npt.NDArray[np.uint8] = _with_channels(image, spec.shape[1])[None]
    if spec.dtype == "uint8":
        return {spec.name: batch}
    if engine.info is None:
        raise EngineError(
            f"input {spec.name!r} is {spec.dtype} and the file does not say how to normalise",
            fix="export the network with crowdrt export: its default input is the uint8 image",
        )
    return {spec.name: normalise(batch, engine.info.preprocessing)}


def normalise(batch: npt.NDArray[np.uint8], pixels: Preprocessing) -> npt.NDArray[np.float32]:
    """Return (N, C, H, W) float32, as the first nodes of a shipped graph compute it."""
    mean = np.array(pixels.mean, np.float32)[:, None, None]
    std = np.array(pixels.std, np.float32)[:, None, None]
    return ((batch.astype(np.float32) - mean) / std).astype(np.float32)


def static_size(engine: "Engine") -> tuple[int, int] | None:
    """Return the (height, width) that the engine insists on, or None when both are free."""
    height, width = engine.inputs[0].shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    return None


def _with_channels(image: UInt8Image, wanted: int | str) -> UInt8Image:
    if wanted == 1 and len(image) == 3:
        from crowdrt.data.images import grey_of  # Pillow's memory is not charged to RGB networks

        return grey_of(image)
    return image
