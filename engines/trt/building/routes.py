"""The three ways in which TensorRT takes a network's precision, one per generation.

TensorRT 8.6 knows the precisions that flags allow and chooses among them by speed, so layers are
told what the file's types say. From 10 on a network can be typed by the file alone; 11 knows
nothing else, and has removed the flags.
"""

from types import ModuleType
from typing import Any, Protocol

from crowdrt.engines.trt.graphs.graph import PlanGraph
from crowdrt.errors import EngineError

Facts = dict[str, Any]  # what a route did, for the manifest


class Route(Protocol):
    """How one generation is told a network's precision."""

    name: str
    max_opset: int  # that its ONNX parser documents

    def create_network(self, builder: Any) -> Any:
        """Return an empty network."""
        ...

    def set_precision(self, config: Any, network: Any, graph: PlanGraph) -> Facts:
        """Say in which precision a parsed network runs; return what was said."""
        ...

    def watch(self, config: Any, monitor: Any) -> bool:
        """Let a monitor follow the build; False where TensorRT has none."""
        ...


def route_of(trt: ModuleType) -> Route:
    """Return the route of the TensorRT that is installed.

    Raises:
        EngineError: there is no route for that version.
    """
    parts = [int(part) for part in str(trt.__version__).split(".")[:2]]
    if parts == [8, 6]:
        return Route8(trt)
    if parts[0] == 10:
        return Route10(trt)
    if parts[0] == 11:
        return Route11(trt)
    raise EngineError(
        f"TensorRT {trt.__version__} has no route here",
        fix="install 8.6, 10 or 11, for example: pip install 'tensorrt-cu12>=10,<12'",
    )


class Route8:
    """TensorRT 8.6: flags allow a precision, constraints hold each layer to the file."""

    name = "8.6: builder flags and layer constraints"
    max_opset = 17

    def __init__(self, trt: ModuleType) -> None:
        self.trt = trt

    def create_network(self, builder: Any) -> Any:
        """See `Route.create_network`."""
        return builder.create_network(
            1 << int(self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        )

    def set_precision(self, config: Any, network: Any, graph: PlanGraph) -> Facts:
        """See `Route.set_precision`.

        Constraints are given only where float16 is allowed: else a float has one precision anyway.
        They are preferences, so that a layer without such a kernel does not end the build; whether
        one was disregarded is seen in the finished engine.
        """
        trt, flags = self.trt, []
        if graph.quantized:
            config.set_flag(trt.BuilderFlag.INT8)
            flags.append("INT8")
        held = 0
        if graph.halves:
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            flags += ["FP16", "PREFER_PRECISION_CONSTRAINTS"]
            held = self._hold(network, graph)
        if graph.ranges:  # else only one context could run at a time
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        return {"flags": flags, "layers_held": held}

    def _hold(self, network: Any, graph: PlanGraph) -> int:
        """Tell every layer that computes in floats in which; return how many were told."""
        trt = self.trt
        wanted = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}
        kinds = trt.LayerType
        untyped = (kinds.CONSTANT, kinds.SHAPE, kinds.CAST, kinds.QUANTIZE, kinds.DEQUANTIZE)
        held = 0
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            precision = graph.asked.get(layer.name)
            outputs = [layer.get_output(k).dtype for k in range(layer.num_outputs)]
            floats = all(each in wanted.values() for each in outputs)
            if precision is None or layer.type in untyped or not floats:
                continue
            layer.precision = wanted[precision]
            for k in range(layer.num_outputs):
                layer.set_output_type(k, wanted[precision])
            held += 1
        return held

    def watch(self, config: Any, monitor: Any) -> bool:  # noqa: ARG002 - it has none
        """See `Route.watch`."""
        return False


class Route10:
    """TensorRT 10: a strongly typed network runs in the types of the file."""

    name = "10: strongly typed"
    max_opset = 20

    def __init__(self, trt: ModuleType) -> None:
        self.trt = trt

    def create_network(self, builder: Any) -> Any:
        """See `Route.create_network`."""
        return builder.create_network(
            1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )

    def set_precision(self, config: Any, network: Any, graph: PlanGraph) -> Facts:  # noqa: ARG002
        """See `Route.set_precision`; the file has said everything."""
        return {"flags": [], "layers_held": 0}

    def watch(self, config: Any, monitor: Any) -> bool:
        """See `Route.watch`."""
        config.progress_monitor = monitor
        return True


class Route11(Route10):
    """TensorRT 11: every network is strongly typed, and nothing has to ask for it."""

    name = "11: strongly typed, the only mode"
    max_opset = 25

    def create_network(self, builder: Any) -> Any:
        """See `Route.create_network`."""
        return builder.create_network(0)
