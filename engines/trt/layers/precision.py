"""Held against each other: in which precision a file asks its nodes to run, and what a plan does.

A TensorRT that finds no INT8 or FP16 kernel may run a layer in FP32 and say nothing. Here that is
an error with the layer's name, or an exception that is listed with its reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from crowdrt.engines.trt.layers.inspector import Inspection, Layer
from crowdrt.errors import EngineError
from crowdrt.onnx_graph import CONVS, PASSES_ON, element_types, name_of

PRODUCTS = (*CONVS, "Gemm", "MatMul")
RANK = {"int8": 0, "fp8": 0, "fp16": 1, "bf16": 1, "tf32": 2, "fp32": 3}
# (precision asked for, operator) -> why a plan that does not obey is let through
ALLOWED: Mapping[tuple[str, str], str] = {
    ("int8", "ConvTranspose"): "TensorRT has INT8 kernels for few transposed convolutions",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one node of a file is asked to run in."""

    operator: str
    precision: str  # int8, fp16


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A node that runs in more digits than it was asked to, or is not to be found."""

    node: str
    operator: str
    asked: str
    ran: str | None  # None: no layer names the node, or its type is not said
    layer: str | None
    reason: str | None = None  # why that is let through

    def __str__(self) -> str:
        if self.layer is None:
            said = "is in no layer that the inspector names"
        else:
            said = f"runs in {self.ran or 'what the inspector does not say'}, in {self.layer}"
        return f"{self.operator} {self.node}, asked to run in {self.asked}, {said}"


@dataclass(frozen=True)
class Held:
    """What came of holding a plan against its file."""

    obeyed: Mapping[str, int]  # precision -> nodes that run in it, as asked
    errors: tuple[Deviation, ...]
    exceptions: tuple[Deviation, ...]  # listed, with reasons

    def facts(self) -> dict[str, object]:
        """Return what a manifest keeps of it."""
        return {
            "obeyed": dict(self.obeyed),
            "exceptions": [f"{each}: {each.reason}" for each in self.exceptions],
            "errors": [str(each) for each in self.errors],
        }


def asked_of(model: onnx.ModelProto) -> dict[str, Asked]:
    """Return the nodes that a file asks to run in INT8 or FP16.

    INT8: products whose operands both come from a DequantizeLinear. FP16: whatever computes float16
    and does not only pass it on.
    """
    graph = model.graph
    codes = {n for node in graph.node if node.op_type == "DequantizeLinear" for n in node.output}
    types = element_types(model)
    asked = {}
    for node in graph.node:
        if node.op_type in PRODUCTS and set(node.input[:2]) <= codes:
            asked[name_of(node)] = Asked(operator=node.op_type, precision="int8")
        elif node.op_type not in (*PASSES_ON, "Constant", "Concat", "Slice", "Shape") and (
            types.get(node.output[0]) == TensorProto.FLOAT16
        ):
            asked[name_of(node)] = Asked(operator=node.op_type, precision="fp16")
    return asked


def hold(
    inspection: Inspection,
    asked: Mapping[str, Asked],
    allowed: Mapping[tuple[str, str], str] = ALLOWED,
) -> Held:
    """Compare a plan's layers with what the file asks.

    A node counts as obeyed where its layer computes in what was asked or in fewer digits. Of a node
    that no layer names, only a product is missed: others vanish into what stands beside them.
    """
    layers = layers_by_node(inspection.layers)
    obeyed: dict[str, int] = {}
    errors: list[Deviation] = []
    exceptions: list[Deviation] = []
    for node, wish in asked.items():
        layer = layers.get(node)
        if layer is None and wish.operator not in PRODUCTS:
            continue
        ran = None if layer is None else layer.precision
        if ran is not None and RANK.get(ran, 0) <= RANK[wish.precision]:
            obeyed[wish.precision] = obeyed.get(wish.precision, 0) + 1
            continue
        reason = allowed.get((wish.precision, wish.operator))
        found = Deviation(
            node=node,
            operator=wish.operator,
            asked=wish.precision,
            ran=ran,
            layer=None if layer is None else layer.name,
            reason=reason,
        )
        (errors if reason is None else exceptions).append(found)
    return Held(obeyed, tuple(errors), tuple(exceptions))


def layers_by_node(layers: Iterable[Layer]) -> dict[str, Layer]:
    """Return node -> the layer that computes it; copies before and after it do not count."""
    found: dict[str, Layer] = {}
    for layer in layers:
        if layer.moves_only:
            continue
        for node in layer.nodes:
            # of several that name a node, the one with weights is the product itself
            if node not in found or (layer.num_weights and not found[node].num_weights):
                found[node] = layer
    return found


def check_precision(
    inspection: Inspection, model: onnx.ModelProto, *, tf32: bool = True, refuse: bool = True
) -> Held:
    """Hold a plan against its file and refuse one that disobeys in silence.

    Args:
        inspection: of the plan.
        model: the file that the plan was built from, its nodes under the names they were built by.
        tf32: whether FP32 products may round their operands to 10 bits.
        refuse: whether a plan that disobeys is an error, or only listed.

    Raises:
        EngineError: names each layer that runs in more digits than asked, or in TF32 unasked.
    """
    held = hold(inspection, asked_of(model))
    wrong = [str(error) for error in held.errors]
    if not tf32:
        rounded = [layer.name for layer in inspection.layers if layer.precision == "tf32"]
        wrong += [f"{name} runs in tf32, which was not allowed" for name in rounded]
    if wrong and refuse:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise EngineError(
            f"the plan does not run as its file says: {'; '.join(wrong[:5])}{more}",
            fix="build it with a newer TensorRT or at --level 5; leave these layers in FP32 in the "
            "file: crowdrt calibrate --keep-float NODE; or keep the plan as it is, with a list of "
            "them: --any-precision",
        )
    return held
