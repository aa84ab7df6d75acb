"""A network in PyTorch on a GPU, in the forms that TensorRT is compared with."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from crowdrt.contracts import Feeds, GraphInfo, TensorSpec
from crowdrt.engines.torch_eager import spec_of
from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.pipeline.gpu.rows import TORCH_FORMS, Row
from crowdrt.pipeline.networks import Origin


class Parts:
    """Where the time of one run went, in milliseconds by the GPU's clock."""

    def __init__(self, to_device_ms: float, compute_ms: float, to_host_ms: float) -> None:
        self.to_device_ms, self.compute_ms, self.to_host_ms = to_device_ms, compute_ms, to_host_ms


class CudaTorchEngine:
    """Runs a shipped network on the first CUDA device, from uint8 pixels to answers on the host.

    Pinned buffers and the device's copy of the image are allocated once, as TensorRT's are.
    """

    def __init__(self, module: Any, info: GraphInfo, names: tuple[str, ...], size: Any) -> None:
        torch = self._torch = require("torch", extra="train")
        self._module = module
        self.info: GraphInfo | None = info
        shape = (1, info.preprocessing.num_channels, *size)
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec(name="image", shape=shape, dtype="uint8"),
        )
        self.outputs: tuple[TensorSpec, ...] = tuple(map(spec_of, names))
        self._pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._image = torch.empty(shape, dtype=torch.uint8, device="cuda")
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]

    def run(self, feeds: Feeds) -> Feeds:
        """See `Engine.run`."""
        return self.timed(feeds)[0]

    def timed(self, feeds: Feeds) -> tuple[Feeds, Parts]:
        """See `TimedEngine.timed`."""
        torch, events = self._torch, self._events
        self._pinned.copy_(torch.from_numpy(np.ascontiguousarray(feeds["image"])))
        with torch.inference_mode():
            events[0].record()
            self._image.copy_(self._pinned, non_blocking=True)
            events[1].record()
            answers = self._module(self._image)
            events[2].record()
            host = [answer.float().to("cpu", non_blocking=True) for answer in answers]
            events[3].record()
            events[3].synchronize()
        named = {
            spec.name: answer.numpy().copy()
            for spec, answer in zip(self.outputs, host, strict=True)
        }
        spent = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
        return named, Parts(*spent)


def open_torch(row: Row, origin: Origin) -> CudaTorchEngine:
    """Return a network in one of TORCH_FORMS.

    Raises:
        EngineError: there is no such form, or no CUDA device.
    """
    torch = require("torch", extra="train")
    from crowdrt.export.deploy import ShippedNetwork

    if row.precision not in TORCH_FORMS:
        raise EngineError(f"form {row.precision!r} is unknown", fix=f"use {', '.join(TORCH_FORMS)}")
    if not torch.cuda.is_available():
        raise EngineError(
            "PyTorch sees no CUDA device", fix="see whether the driver answers: nvidia-smi"
        )
    torch.set_num_threads(1)  # as TensorRT's rows have it: the GPU works, the host copies
    set_tf32(torch, allowed=row.precision == "eager tf32")
    model = origin.build()
    if origin.weights is None:
        draw_weights(torch, model)
    info, names = origin.graph_info(model), ShippedNetwork(model, model.preprocessing).output_names
    shipped = ShippedNetwork(model, model.preprocessing).cuda()
    module: Callable[..., Any] = shipped  # its map has to be one tensor, as density networks' is
    if row.precision in ("fp16 channels-last", "compiled fp16"):
        half_form(torch, shipped)
    if row.precision == "compiled fp16":
        module = torch.compile(shipped, mode="reduce-overhead")  # inductor, and CUDA graphs
    return CudaTorchEngine(module, info, tuple(names), row.size)


def draw_weights(torch: Any, model: Any) -> None:
    """Draw weights as the ONNX files have them: by PyTorch's own, activations all but vanish.

    A GPU multiplies numbers near zero faster than real ones.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def set_tf32(torch: Any, *, allowed: bool) -> None:
    """Let FP32 products round their operands, or not; PyTorch lets convolutions by itself."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True


def half_form(torch: Any, shipped: Any) -> None:
    """Make a network work in float16, channels last, behind its FP32 normalisation."""
    layout = torch.channels_last

    class Half(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network.half().to(memory_format=layout)

        def forward(self, image: Any) -> Any:
            return self.network(image.half().contiguous(memory_format=layout)).float()

    shipped.network = Half(shipped.network).eval()
