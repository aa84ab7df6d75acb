"""PyTorch as an engine: eager, what every engine is compared with, and its faster forms."""

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from crowdrt.contracts import COUNT, DENSITY, Feeds, GraphInfo, TensorSpec
from crowdrt.engines.base import check_feeds, check_threads
from crowdrt.lazy import require

if TYPE_CHECKING:
    from torch import nn

Form = Literal["eager", "channels-last", "compiled"]


class TorchEngine:
    """Runs an nn.Module that takes the graph's input and returns its outputs."""

    def __init__(
        self,
        module: "nn.Module",
        info: GraphInfo,
        *,
        output_names: Sequence[str] = (DENSITY, COUNT),
        num_threads: int = 0,
        form: Form = "eager",
    ) -> None:
        """Put `module` into evaluation mode on the CPU.

        Args:
            module: takes (N, C, H, W) uint8 pixels, or float32 where `info.normalised_input`.
            info: what the module computes.
            output_names: of the tuple that the module returns.
            num_threads: 0 leaves PyTorch's own choice. PyTorch has one setting per process, so
                the last engine decides for all.
            form: eager, as the papers timed it; channels-last, eager with channels beside each
                other in memory; compiled, by TorchInductor, weights folded and channels last, once
                per size of image: it takes a C++ compiler and, the first time, most of a minute.
        """
        self._torch = require("torch", extra="train")
        check_threads(num_threads)
        if num_threads:
            self._torch.set_num_threads(num_threads)
        self._module = self._in_form(module.eval(), form)
        # weights are not folded where tensors are those of inference mode
        self._mode = self._torch.no_grad if form == "compiled" else self._torch.inference_mode
        self.info: GraphInfo | None = info
        size: tuple[int | str, ...] = info.fixed_size or ("height", "width")
        pixels = ("batch", info.preprocessing.num_channels, *size)
        dtype = "float32" if info.normalised_input else "uint8"
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", shape=pixels, dtype=dtype),)
        self.outputs: tuple[TensorSpec, ...] = tuple(map(spec_of, output_names))

    def _in_form(self, module: "nn.Module", form: Form) -> "nn.Module":
        """Return the module with its weights laid out, and compiled, as `form` has it."""
        if form == "eager":
            return module
        last: nn.Module = module.to(memory_format=self._torch.channels_last)  # type: ignore[call-overload]
        if form == "channels-last":
            return last
        found: nn.Module = self._torch.compile(last, dynamic=False, options={"freezing": True})
        return found

    def run(self, feeds: Feeds) -> Feeds:
        """Run the module on named arrays; see `Engine.run`."""
        check_feeds(feeds, self.inputs, self.info)
        image = np.ascontiguousarray(feeds["image"])
        with self._mode():
            answers = self._module(self._torch.from_numpy(image))
        names = [output.name for output in self.outputs]
        return {name: answer.numpy() for name, answer in zip(names, answers, strict=True)}


def spec_of(name: str) -> TensorSpec:
    """Describe an output of a module that takes any batch and any size."""
    shape: dict[str, tuple[int | str, ...]] = {
        DENSITY: ("batch", 1, "h", "w"),
        "boxes": ("batch", "k", 4),
        "scores": ("batch", "k"),
        "labels": ("batch", "k"),
        "logits": ("batch", "k", "classes"),
    }
    dtype = "int64" if name == "labels" else "float32"
    return TensorSpec(name=name, shape=shape.get(name, ("batch",)), dtype=dtype)


def can_compile() -> bool:
    """Say whether this machine has the C++ compiler that `torch.compile` asks for."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))
