"""What ONNX Runtime's profiler writes down: an event per layer and run, and one per run."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from crowdrt.engines.layers.layer import (
    FP32,
    INT8,
    TYPES,
    VIEWS,
    EngineLayer,
    Shape,
    is_product,
    shape_from,
)
from crowdrt.engines.layers.tracing import OnnxFile, traced
from crowdrt.errors import EngineError

ENDING = "_kernel_time"
RUN = "model_run"
WEIGHTS = {"QLinearConv": 3}  # which input holds them; of every other convolution the second

Event = Mapping[str, Any]
Runs = list[dict[str, float]]  # of each run: layer -> milliseconds
Typed = Sequence[tuple[str, Shape]]  # type and shape of tensors


def read_events(path: Path) -> list[Event]:
    """Return the events in a profile.

    Raises:
        EngineError: there are none.
    """
    try:
        events: list[Event] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EngineError(
            f"ONNX Runtime left no profile that can be read: {error}",
            fix="see how much room the temporary folder has: df -h $TMPDIR",
        ) from error
    return events


def ort_layers(
    events: Sequence[Event], graph: onnx.GraphProto, file: OnnxFile | None, num_warmup: int
) -> list[EngineLayer]:
    """Return the layers in the order in which they ran.

    Args:
        events: of `read_events`.
        graph: as ONNX Runtime ran it: its optimised one.
        file: what the engine was built from.
        num_warmup: how many runs at the start are not counted.
    """
    first, runs = split_runs(events)
    stored = {each.name: each for each in graph.initializer}
    layers, said = [], []
    for key, event in first.items():
        node = node_of(event, graph)
        samples = tuple(run.get(key, 0.0) for run in runs[num_warmup:])
        layers.append(layer_from(event, node, stored, samples))
        said.append([str(event["name"]).removesuffix(ENDING), *(node.output if node else ())])
    return traced(layers, said, file)


def split_runs(events: Sequence[Event]) -> tuple[dict[str, Event], Runs]:
    """Return the first event of every layer, and every layer's time in each run.

    A layer that a loop repeats has the sum of its times.
    """
    first: dict[str, Event] = {}
    runs: Runs = []
    current: dict[str, float] = {}
    for event in events:
        name = str(event.get("name"))
        if event.get("cat") == "Node" and name.endswith(ENDING):
            key = f"{event['args'].get('node_index')} {name}"
            first.setdefault(key, event)
            current[key] = current.get(key, 0.0) + float(event["dur"]) / 1000
        elif name == RUN:
            runs.append(current)
            current = {}
    return first, runs


def node_of(event: Event, graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """Return the node of an event: the only one of its name and kind, else the one at its place.

    A place holds where a graph runs as it is written. A graph that is optimised at each start is
    told of by the places that its nodes had before some were fused or moved.
    """
    facts, said = event["args"], str(event["name"]).removesuffix(ENDING)
    kind = facts.get("op_name")
    nodes: list[onnx.NodeProto] = list(graph.node)
    called = [node for node in nodes if (node.name, node.op_type) == (said, kind)]
    if len(called) == 1:
        return called[0]
    place = int(facts.get("node_index", -1))
    if not 0 <= place < len(nodes):
        return None
    node = nodes[place]
    return node if node.op_type == kind and node.name in ("", said) else None


def layer_from(
    event: Event,
    node: onnx.NodeProto | None,
    stored: Mapping[str, onnx.TensorProto],
    samples_ms: tuple[float, ...],
) -> EngineLayer:
    """Return a layer, not yet traced."""
    facts = event["args"]
    kind = str(facts["op_name"])
    reads, writes = (typed_shapes(facts.get(f"{way}_type_shape")) for way in ("input", "output"))
    return EngineLayer(
        name=str(event["name"]).removesuffix(ENDING),
        kind=kind,
        kernel=None,
        nodes=(),
        precision=precision_of(kind, reads, writes),
        input_shape=reads[0][1] if reads else None,
        output_shape=writes[0][1] if writes else None,
        macs=macs_of(kind, reads, writes, node, stored),
        num_bytes=None if kind in VIEWS else bytes_of(facts, node, stored),
        samples_ms=samples_ms,
    )


def typed_shapes(said: Sequence[Mapping[str, Sequence[int]]] | None) -> Typed:
    """Return (type, shape) of tensors; packed weights are not among them."""
    return [(name, shape_from(axes) or ()) for each in said or () for name, axes in each.items()]


def precision_of(kind: str, reads: Typed, writes: Typed) -> str | None:
    """Return in what a layer computes.

    Products of codes are INT8. Anything else is float if it reads or writes floats: Cast,
    QuantizeLinear and DequantizeLinear are.
    """
    if kind.startswith("QLinear") or "Integer" in kind or kind in ("QGemm", "DynamicQuantizeLSTM"):
        return INT8
    types = [TYPES.get(each[0][0]) for each in (reads, writes) if each]
    return FP32 if FP32 in types else next(iter(types), None)


def macs_of(
    kind: str,
    reads: Typed,
    writes: Typed,
    node: onnx.NodeProto | None,
    stored: Mapping[str, onnx.TensorProto],
) -> int | None:
    """Return what a product multiplies in the graph as it ran, its channels padded to blocks."""
    if not is_product(kind) or not reads or not writes:
        return None
    (_, data), (_, result) = reads[0], writes[0]
    if "Conv" not in kind:
        return math.prod(result) * data[-1] if data else None
    place = WEIGHTS.get(kind, 1)
    name = node.input[place] if node is not None and len(node.input) > place else ""
    if name in stored:
        kernel: Shape = tuple(stored[name].dims)
    else:  # weights that another layer has made
        kernel = next((shape for _, shape in reads[1:] if len(shape) == len(data)), ())
    if not kernel:
        return None
    return math.prod(data if "Transpose" in kind else result) * math.prod(kernel[1:])


def bytes_of(
    facts: Mapping[str, Any], node: onnx.NodeProto | None, stored: Mapping[str, onnx.TensorProto]
) -> int:
    """Return what a layer moves: its activations as they lie in memory, and its weights."""
    moved = int(facts["activation_size"]) + int(facts["output_size"])
    if node is None:
        return moved + int(facts["parameter_size"])
    return moved + sum(stored_bytes(stored[name]) for name in set(node.input) if name in stored)


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Return the size of what a graph stores."""
    itemsize = int(tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * itemsize
