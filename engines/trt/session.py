"""One execution context of a plan, with the memory, the stream and the graph that it runs with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crowdrt.console import say
from crowdrt.contracts import Feeds
from crowdrt.engines.cuda.device import Device
from crowdrt.engines.cuda.graphs import CudaGraph
from crowdrt.engines.trt.building.progress import recorder_for, started
from crowdrt.errors import EngineError
from crowdrt.lazy import require

Dims = tuple[int, ...]
LEAST_BYTES = 256  # an empty tensor has an address too


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one run went, in milliseconds on the GPU's own clock."""

    to_device_ms: float
    compute_ms: float
    to_host_ms: float


class Plan:
    """A plan loaded on the device; several sessions may run it at the same time."""

    def __init__(self, content: bytes, device: Device) -> None:
        """Load `content`, which is native code: the store has checked its hash and its origin.

        Raises:
            EngineError: TensorRT refuses the plan.
        """
        trt = self.trt = require("tensorrt", extra="tensorrt")
        self.device, self.logger = device, recorder_for(trt)
        with device.current():
            runtime = self.runtime = started(trt.Runtime, self.logger)
            runtime.engine_host_code_allowed = False
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} refuses the plan: {self.logger.complaint()}",
                fix="build it on this machine: crowdrt build MODEL.onnx --engine tensorrt",
            )
        self.engine = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        entering = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == entering]
        self.outputs = [name for name in names if name not in self.inputs]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the numbers that the plan itself takes or gives.

        Raises:
            EngineError: NumPy has no such numbers, bfloat16 for one.
        """
        kind = self.engine.get_tensor_dtype(name)
        try:
            kept: np.dtype[Any] = np.dtype(self.trt.nptype(kind))
        except TypeError as error:
            raise EngineError(
                f"{name} is of the type {kind}, which NumPy does not have",
                fix="let the network take and give float32: add a Cast before that output",
            ) from error
        return kept

    def limits(self, name: str) -> tuple[Dims, Dims]:
        """Return the smallest and the largest shape of an input."""
        engine = self.engine
        shape = tuple(engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape, shape
        low, _, high = engine.get_tensor_profile_shape(name, 0)
        return tuple(low), tuple(high)


class Buffer:
    """One input or output: page-locked memory here, as much on the device, at its largest."""

    def __init__(self, device: Device, dtype: np.dtype[Any], largest: Dims) -> None:
        self._device, self._dtype = device, dtype
        num_bytes = max(LEAST_BYTES, math.prod(largest) * dtype.itemsize)
        self.address = device.allocate(num_bytes)
        try:
            self._pinned = device.pinned(num_bytes)
        except EngineError:
            device.release(self.address)
            raise

    def view(self, shape: Dims) -> npt.NDArray[Any]:
        """Return the beginning of the page-locked memory as an array of that shape."""
        num_bytes = math.prod(shape) * self._dtype.itemsize
        return self._pinned[:num_bytes].view(self._dtype).reshape(shape)

    def close(self) -> None:
        """Give both memories back."""
        self._device.release(self.address)
        self._device.release_pinned(self._pinned)


class Session:
    """Runs a plan in one context. Call it within `with device.current():`, one run at a time."""

    def __init__(self, plan: Plan, *, graphs: bool) -> None:
        """Allocate all that runs need, at the largest shapes.

        Args:
            plan: loaded before.
            graphs: launch all kernels of a size that comes again at once.

        Raises:
            EngineError: the GPU has too little memory.
        """
        self._plan, self._device, self._graphs = plan, plan.device, graphs
        self._graph: CudaGraph | None = None
        self._shapes: dict[str, Dims] = {}
        self._runs_at_size = 0
        self._buffers: dict[str, Buffer] = {}
        self._stream = self._device.new_stream()
        self._events: list[int] = []
        context = self._context = plan.engine.create_execution_context()
        try:
            self._open(plan, context)
        except EngineError:
            self.close()
            raise

    def _open(self, plan: Plan, context: Any) -> None:
        if context is None:
            raise EngineError(
                f"the plan does not fit the GPU's memory: {plan.logger.complaint()}",
                fix="see who else is on the GPU: nvidia-smi; or build with a smaller --shape",
            )
        self._events += [self._device.new_event() for _ in range(4)]
        self.fit({name: plan.limits(name)[1] for name in plan.inputs})
        for name in (*plan.inputs, *plan.outputs):
            largest = tuple(context.get_tensor_shape(name))
            buffer = self._buffers[name] = Buffer(self._device, plan.dtype(name), largest)
            context.set_tensor_address(name, buffer.address)

    def fit(self, shapes: Mapping[str, Dims]) -> None:
        """Prepare for inputs of these shapes.

        Raises:
            EngineError: the plan was not built for them.
        """
        if shapes == self._shapes:
            return
        for name, shape in shapes.items():
            low, high = self._plan.limits(name)
            if not all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True)):
                raise EngineError(
                    f"{name} has shape {shape}, the plan takes {low} to {high}",
                    fix="resize or tile the image, or build for its size: crowdrt build MODEL.onnx "
                    "--engine tensorrt --shape MIN:OPT:MAX",
                )
        self._drop_graph()  # it holds the kernels of the size before
        self._shapes = {}  # nothing is known of a context that took some shapes and not others
        context = self._context
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(
                    f"TensorRT refuses {name} of shape {shape}: {self._plan.logger.complaint()}",
                    fix="try another image size; crowdrt inspect ENGINE shows the plan's own",
                )
        self._shapes = dict(shapes)

    def run(self, feeds: Feeds) -> Feeds:
        """Return the plan's own outputs for its inputs; they are copies."""
        device, stream = self._device, self._stream
        self.fit({name: array.shape for name, array in feeds.items()})
        staged = {name: self._buffers[name].view(array.shape) for name, array in feeds.items()}
        for name, array in feeds.items():
            np.copyto(staged[name], array)  # turns pixels into float32 where the plan takes that
        before, fed, computed, done = self._events
        device.record(before, stream)
        for name, pinned in staged.items():
            device.to_device(self._buffers[name].address, pinned, stream)
        device.record(fed, stream)
        self._compute()
        device.record(computed, stream)
        answers = {name: self._begin_answer(name) for name in self._plan.outputs}
        device.record(done, stream)
        device.synchronise(stream)
        return {name: pinned.copy() for name, pinned in answers.items()}

    def timing(self) -> Timing:
        """Return where the time of the last run went."""
        before, fed, computed, done = self._events
        elapsed = self._device.elapsed_ms
        return Timing(
            to_device_ms=elapsed(before, fed),
            compute_ms=elapsed(fed, computed),
            to_host_ms=elapsed(computed, done),
        )

    def _begin_answer(self, name: str) -> npt.NDArray[Any]:
        pinned = self._buffers[name].view(tuple(self._context.get_tensor_shape(name)))
        self._device.to_host(pinned, self._buffers[name].address, self._stream)
        return pinned

    def _compute(self) -> None:
        """Give the network to the stream, as a graph from the second run at a size on.

        The first run at a size lets TensorRT do what it puts off until then, which no graph may
        hold.
        """
        if self._graph is None and self._graphs and self._runs_at_size == 1:
            self._record()
        if self._graph is None:
            self._enqueue(self._stream)
        else:
            self._graph.launch(self._stream)
        self._runs_at_size += 1

    def _record(self) -> None:
        try:
            self._graph = CudaGraph(self._stream, self._enqueue)
        except EngineError as error:
            self._graphs = False
            say(f"kernels are launched one by one: {error.problem}")

    def _enqueue(self, stream: int) -> None:
        context = self._context
        if not context.execute_async_v3(stream):
            raise EngineError(
                f"TensorRT failed on {self._shapes}: {self._plan.logger.complaint()}",
                fix="try it again; if memory ran out, see who else is on the GPU: nvidia-smi",
            )

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
        self._graph, self._runs_at_size = None, 0

    def close(self) -> None:
        """Give everything back, the context before the memory that it knows."""
        self._device.synchronise(self._stream)
        self._drop_graph()
        self._context = None
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        for event in self._events:
            self._device.drop_event(event)
        self._device.drop_stream(self._stream)
