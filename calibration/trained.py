"""A network that learned in simulated INT8 becomes an INT8 file, without photographs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from crowdrt.calibration.calibrate import FORM, facts_of, float_info, refuse_itself, write_int8
from crowdrt.calibration.int8.plan import Plan, plan_int8
from crowdrt.calibration.int8.qdq import insert_qdq
from crowdrt.contracts import Artifact
from crowdrt.errors import CalibrationError
from crowdrt.int8 import TrainedInt8, activation_scale
from crowdrt.manifest import reusable, sha256_file, write_manifest
from crowdrt.onnx_file import external_files, graph_info, read_onnx
from crowdrt.onnx_graph import name_of

MEASURE = "measure ranges instead: crowdrt calibrate {} --ignore-trained --images DIR -o {}"


def calibrate_trained(onnx_path: Path, out: Path, keep_float: Sequence[str] = ()) -> Artifact:
    """Write the INT8 form that a network learned in, or find it already written.

    Biases stay as they were learned, beside weights that were rounded then as they are here.

    Args:
        onnx_path: a float network whose file has trained ranges.
        out: the INT8 network; its manifest lies beside it.
        keep_float: names of convolutions to leave in float, which training did not.

    Raises:
        CalibrationError: the ranges are not this network's, or `out` is the float network.
    """
    refuse_itself(out, onnx_path)
    model = read_onnx(onnx_path)
    trained = graph_info(model, source=str(onnx_path)).trained_int8
    assert trained is not None
    info = replace(float_info(model, source=str(onnx_path)), trained_int8=trained)
    files = [sha256_file(file) for file in (onnx_path, *external_files(onnx_path))]
    made_from = {"onnx": files, "trained": True, "keep_float": sorted(keep_float), "form": FORM}
    if artifact := reusable(out, made_from=made_from):
        return artifact
    plan = plan_int8(model, keep_float)
    ranges = ranges_by_group(model, plan, trained, fix=MEASURE.format(onnx_path, out))
    bits, scales = trained.weight_bits, trained.weight_scales
    quantized = insert_qdq(model, plan, ranges, weight_bits=bits, weights=scales)
    write_int8(quantized, info, out, weight_bits=bits)
    found_by = {"method": "trained", "weight_bits": bits, "weight_scales": scales}
    facts = facts_of(model, plan, info, found_by, tensor_facts(plan, ranges))
    return write_manifest(out, kind="onnx", made_from=made_from, facts=facts)


def ranges_by_group(
    model: onnx.ModelProto, plan: Plan, trained: TrainedInt8, *, fix: str
) -> dict[str, float]:
    """Return the range of each group of a plan, from those of the convolutions that read it.

    Raises:
        CalibrationError: a range is of no convolution, or one is missing, or two of one tensor
            differ.
    """
    read_by = {name_of(node): node.input[0] for node in model.graph.node if len(node.input) > 1}
    if unknown := sorted(set(trained.ranges) - set(read_by)):
        raise CalibrationError(f"trained ranges name {unknown[0]!r}, no layer of the network", fix)
    found: dict[str, set[float]] = {group: set() for group in plan.watched}
    for conv in plan.convs:
        if conv not in trained.ranges:
            raise CalibrationError(f"{conv} has no trained range", fix)
        found[plan.group_of[read_by[conv]]].add(trained.ranges[conv])
    for group, values in found.items():
        if len(values) != 1:
            raise CalibrationError(f"{group} has trained ranges {sorted(values)}, not one", fix)
    return {group: values.pop() for group, values in found.items()}


def tensor_facts(plan: Plan, ranges: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return what the manifest says of each INT8 tensor; its range stands for its largest value."""
    return {
        name: {
            "range": ranges[group],
            "largest": ranges[group],
            "scale": float(activation_scale(ranges[group])),
        }
        for name, group in plan.group_of.items()
    }
