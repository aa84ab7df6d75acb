"""What OpenVINO counts when it is asked to: a layer's average over all runs so far."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crowdrt.engines.layers.layer import (
    FP32,
    INT8,
    TYPES,
    VIEWS,
    EngineLayer,
    Shape,
    is_product,
    size_of,
)
from crowdrt.engines.layers.tracing import OnnxFile, traced

NO_WORK = ("Input", "Output", "Const", "Parameter", "Result")

Averages = Mapping[str, int]  # layer -> whole microseconds per run, of all runs so far


def single_runs_ms(averages: Sequence[int]) -> list[float]:
    """Return how long a layer took in each run.

    OpenVINO rounds an average down to whole microseconds, so that run n is known to about n of
    them: good enough for layers that matter, and for a median of few runs.

    Args:
        averages: after the first run, after the second ...
    """
    # what was cut off is half a microsecond in the middle; of what never ran, nothing
    totals = [0.0, *(n * (us + 0.5) if us else 0.0 for n, us in enumerate(averages, start=1))]
    return [max(0.0, b - a) / 1000 for a, b in itertools.pairwise(totals)]


def ov_layers(
    network: Any, averages: Sequence[Averages], file: OnnxFile | None, num_warmup: int
) -> list[EngineLayer]:
    """Return the layers in the order in which they ran.

    Args:
        network: OpenVINO's compiled one, which has run.
        averages: after every run, those at the start too.
        file: what the engine was built from.
        num_warmup: how many runs at the start are not counted.
    """
    layers, said = [], []
    for node in ran(network):
        name = str(node.get_friendly_name())
        facts = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        times = single_runs_ms([each.get(name, 0) for each in averages])[num_warmup:]
        layers.append(layer_from(node, facts, tuple(times)))
        fused = facts.get("originalLayersNames", "").split(",")
        said.append([name, *fused, *(stored_by(node) if is_product(layers[-1].kind) else ())])
    return traced(layers, said, file)


def ran(network: Any) -> Iterator[Any]:
    """Yield the nodes of OpenVINO's own graph that were executed, in their order."""
    nodes = list(network.get_runtime_model().get_ordered_ops())
    nodes.sort(key=lambda node: int(node.get_rt_info()["execOrder"].astype(str)))
    for node in nodes:
        facts = node.get_rt_info()
        executed = facts["execTimeMcs"].astype(str) != "not_executed"
        if executed and facts["layerType"].astype(str) not in NO_WORK:
            yield node


def layer_from(node: Any, facts: Mapping[str, str], samples_ms: tuple[float, ...]) -> EngineLayer:
    """Return a layer, not yet traced."""
    kind = facts["layerType"]
    sources = [each.get_source_output() for each in node.inputs()]
    reads = [(type_of(each), shape_of(each)) for each in sources]
    writes = [(type_of(each), shape_of(each)) for each in node.outputs()]
    shapes = [shape for _, shape in (*reads, *writes)]
    known = all(shape is not None for shape in shapes) and kind not in VIEWS
    return EngineLayer(
        name=str(node.get_friendly_name()),
        kind=kind,
        kernel=facts.get("primitiveType"),
        nodes=(),
        precision=precision_of(kind, facts.get("runtimePrecision", ""), writes),
        input_shape=reads[0][1] if reads else None,
        output_shape=writes[0][1] if writes else None,
        macs=macs_of(kind, [shape for _, shape in reads], writes[0][1] if writes else None),
        num_bytes=sum(size_of(s or (), t) for t, s in (*reads, *writes)) if known else None,
        samples_ms=samples_ms,
    )


def stored_by(node: Any) -> Iterator[str]:
    """Yield the stored tensors that a layer reads: of some layers the only names that are left."""
    for each in node.inputs():
        source = each.get_source_output().get_node()
        if source.get_rt_info()["layerType"].astype(str) == "Const":
            yield str(source.get_friendly_name())


def type_of(output: Any) -> str | None:
    """Return the precision of what comes out of a node of OpenVINO's own graph."""
    facts = output.get_node().get_rt_info()
    said = facts["outputPrecisions"].astype(str).split(",") if "outputPrecisions" in facts else []
    place = output.get_index()
    return TYPES.get(said[place].strip()) if place < len(said) else None


def shape_of(output: Any) -> Shape | None:
    """Return its shape in the last run."""
    shape = output.get_partial_shape()
    return tuple(int(axis) for axis in shape.to_shape()) if shape.is_static else None


def precision_of(
    kind: str, said: str, writes: Sequence[tuple[str | None, Shape | None]]
) -> str | None:
    """Return in what a layer computes: a product in what OpenVINO says, others as they write.

    OpenVINO says of any layer what it reads first; a Cast of pixels reads codes.
    """
    read = TYPES.get(said)
    if is_product(kind) or read != INT8:
        return read
    return FP32 if writes and writes[0][0] == FP32 else read


def macs_of(kind: str, reads: Sequence[Shape | None], result: Shape | None) -> int | None:
    """Return what a product multiplies; a grouped convolution's weights have an axis more."""
    if not is_product(kind) or len(reads) < 2 or result is None:
        return None
    data, kernel = reads[0], reads[1]
    if data is None or kernel is None or not data:
        return None
    if "onv" not in kind:
        return math.prod(result) * data[-1]
    grouped = len(kernel) - len(data)
    return math.prod(data if "Deconv" in kind else result) * math.prod(kernel[1 + grouped :])
