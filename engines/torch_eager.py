"""The eager PyTorch reference: what every engine is compared with."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Feeds, GraphInfo, TensorSpec
from crowdrt.engines.base import check_feeds, check_threads
from crowdrt.lazy import require

if TYPE_CHECKING:
    from torch import nn


class TorchEngine:
    """Runs an nn.Module that takes the graph's input and returns (density, count)."""

    def __init__(self, module: "nn.Module", info: GraphInfo, *, num_threads: int = 0) -> None:
        """Put `module` into inference mode on the CPU.

        Args:
            module: takes (N, C, H, W) uint8 pixels, or float32 where `info.normalised_input`.
            info: what the module computes.
            num_threads: 0 leaves PyTorch's own choice. PyTorch has one setting per process, so
                the last engine decides for all.
        """
        self._torch = require("torch", extra="train")
        check_threads(num_threads)
        if num_threads:
            self._torch.set_num_threads(num_threads)
        self._module = module.eval()
        self.info: GraphInfo | None = info
        pixels = ("batch", info.preprocessing.num_channels, "height", "width")
        dtype = "float32" if info.normalised_input else "uint8"
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", shape=pixels, dtype=dtype),)
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec(name="density", shape=("batch", 1, "h", "w"), dtype="float32"),
            TensorSpec(name="count", shape=("batch",), dtype="float32"),
        )

    def run(self, feeds: Feeds) -> Feeds:
        """Run the module on named arrays; see `Engine.run`."""
        check_feeds(feeds, self.inputs, self.info)
        image = np.ascontiguousarray(feeds["image"])
        with self._torch.inference_mode():
            density, count = self._module(self._torch.from_numpy(image))
        return {"density": _array(density), "count": _array(count)}


def _array(tensor: Any) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.numpy(), np.float32)
