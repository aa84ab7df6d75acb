"""onnxsim, believed only after its graph has answered as the original did."""

from collections.abc import Sequence

import numpy as np
import onnx

from crowdrt.contracts import Feeds
from crowdrt.engines.ort import OrtEngine
from crowdrt.export.difference import differences
from crowdrt.export.quiet import quiet
from crowdrt.lazy import require

RTOL = 1e-5  # of an output's largest value

Signature = tuple[str, int, tuple[int | str, ...]]  # name, element type, shape


def simplify(model: onnx.ModelProto, probes: Sequence[Feeds]) -> tuple[onnx.ModelProto, str]:
    """Return the simplified graph, or `model` itself, and a sentence that says which and why.

    The graph is kept as it was when onnxsim is missing or fails, when inputs or outputs no
    longer have their names, types and free axes, when the file grows, or when an output
    changes on one of `probes`.
    """
    try:
        simpler = _run_onnxsim(model)
        reason = _objection(model, simpler, probes)
    except Exception as error:  # noqa: BLE001 - whatever it has against the graph, ours works
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason is not None:
        return model, f"kept as exported: {reason}"
    before, after = len(model.graph.node), len(simpler.graph.node)
    return simpler, f"simplified: {before} -> {after} nodes"


def _run_onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    onnxsim = require("onnxsim", extra="train")
    with quiet():
        simpler, _ = onnxsim.simplify(model)
    assert isinstance(simpler, onnx.ModelProto)
    del simpler.metadata_props[:]  # its diary of what it did
    simpler.metadata_props.extend(model.metadata_props)
    return simpler


def _objection(
    model: onnx.ModelProto, simpler: onnx.ModelProto, probes: Sequence[Feeds]
) -> str | None:
    onnx.checker.check_model(simpler)
    if not _same_outside(model.graph, simpler.graph):
        return "onnxsim changed the names, types or free axes of inputs or outputs"
    if simpler.ByteSize() > 1.1 * model.ByteSize() + 2**16:
        return f"onnxsim made the file {simpler.ByteSize() / model.ByteSize():.1f} times as large"
    return _changed_output(model, simpler, probes)


def _same_outside(old: onnx.GraphProto, new: onnx.GraphProto) -> bool:
    """Compare inputs and outputs.

    Where every axis of the inputs is a number, every axis of the outputs is one too, whether the
    exporter knew it or gave it a name: such names may become numbers.
    """
    inputs = [_signature(value) for value in old.input]
    outputs = [_signature(value) for value in old.output]
    found = [_signature(value) for value in new.output]
    known = all(isinstance(axis, int) for _, _, shape in inputs for axis in shape)
    if known and len(found) == len(outputs):
        found = [_named_as(then, now) for then, now in zip(outputs, found, strict=True)]
    return inputs == [_signature(value) for value in new.input] and outputs == found


def _named_as(then: Signature, now: Signature) -> Signature:
    """Return `now` with the names that its axes had."""
    name, kind, shape = now
    if len(shape) == len(then[2]):
        pairs = zip(then[2], shape, strict=True)
        shape = tuple(old if isinstance(old, str) else new for old, new in pairs)
    return name, kind, shape


def _signature(value: onnx.ValueInfoProto) -> Signature:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return value.name, tensor.elem_type, shape


def _changed_output(
    model: onnx.ModelProto, simpler: onnx.ModelProto, probes: Sequence[Feeds]
) -> str | None:
    # one engine after the other: each keeps the memory that its largest run needed
    for then, now in zip(_answers(model, probes), _answers(simpler, probes), strict=True):
        for name, found in differences(then, now, RTOL).items():
            if not found.relative <= RTOL:
                return f"onnxsim changed {name} by {found.relative:.2g} of its largest value"
    return None


def _answers(model: onnx.ModelProto, probes: Sequence[Feeds]) -> list[Feeds]:
    engine = OrtEngine(model.SerializeToString())
    # copies: ONNX Runtime's own arrays keep all of the engine's memory as long as they live
    return [{name: np.array(a) for name, a in engine.run(feeds).items()} for feeds in probes]
