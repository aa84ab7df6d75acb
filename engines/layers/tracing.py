"""From the layers of an optimised graph back to the nodes of the ONNX file that they compute.

ONNX Runtime calls a layer by a node or by the tensor that came out of one, with an ending of its
own; OpenVINO keeps a list of what it fused. Either names a part of what is in the layer: the rest
is what stands between it and the product that it belongs to.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from crowdrt.contracts import Size
from crowdrt.engines.layers.layer import EngineLayer, is_product
from crowdrt.onnx_graph import CONVS, layer_macs, name_of

PRODUCTS = (*CONVS, "Gemm", "MatMul")
# of ONNX Runtime's passes, of ours (rewrites/), and of OpenVINO's; the last one is PyTorch's
ENDINGS = re.compile(r"(_nchwc|_token_\d+|_rgb0(_\w+)?|_weights_per_std|/WithoutBiases)$")
TENSOR = re.compile(r"_output_\d+$")
# what a runtime computes together with the product in front of it
FUSED = (
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "Add", "Mul"),
    *("BatchNormalization", "QuantizeLinear", "DequantizeLinear", "Identity"),
)


@dataclass(frozen=True)
class OnnxFile:
    """The nodes of the file that an engine was built from, and what they multiply."""

    model: onnx.ModelProto
    size: Size  # (height, width) in pixels that the engine ran at

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """Name -> node, in the file's order."""
        return {name_of(node): node for node in self.model.graph.node}

    @cached_property
    def makers(self) -> dict[str, str]:
        """Tensor -> the node that it comes out of."""
        return {made: name for name, node in self.nodes.items() for made in node.output}

    @cached_property
    def weights(self) -> dict[str, str]:
        """Stored tensor -> the product whose weights it is, unless several share them."""
        readers: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            if node.op_type in PRODUCTS:
                readers.setdefault(node.input[1], []).append(name)
        return {stored: names[0] for stored, names in readers.items() if len(names) == 1}

    @cached_property
    def macs(self) -> Mapping[str, int | None]:
        """Product -> its multiply-accumulates."""
        return layer_macs(self.model, self.size)

    def node_called(self, said: str) -> str | None:
        """Return the node that a runtime's name of a layer, a tensor or its weights means."""
        while True:
            if said in self.nodes:
                return said
            if said in self.makers:
                return self.makers[said]
            if said in self.weights:
                return self.weights[said]
            shorter = ENDINGS.sub("", said)
            if shorter == said:
                return None
            said = shorter

    def up_to_product(self, name: str) -> list[str]:
        """Return a node and what is before it, back to the product that it is fused with."""
        path = [name]
        while self.nodes[path[-1]].op_type in FUSED:
            before = self.makers.get(self.nodes[path[-1]].input[0])
            if before is None:
                break
            path.append(before)
        return path if self.nodes[path[-1]].op_type in PRODUCTS else [name]


def traced(
    layers: Iterable[EngineLayer], said: Sequence[Collection[str]], file: OnnxFile | None
) -> list[EngineLayer]:
    """Return the layers under the names that their nodes have in the ONNX file.

    Args:
        layers: as a runtime ran them.
        said: of each, what the runtime calls it, what it was fused of, reads or answers.
        file: what the engine was built from; without it names lose only what a runtime adds to
            them, and MACs are those of the graph as the runtime wrote it.
    """
    pairs = zip(layers, said, strict=True)
    if file is None:
        return [replace(layer, name=plain_name(layer.name)) for layer, _ in pairs]
    return [named(layer, names, file) for layer, names in pairs]


def plain_name(said: str) -> str:
    """Return a layer's name without what passes and exporters append."""
    shorter = ENDINGS.sub("", said)
    while shorter != said:
        said, shorter = shorter, ENDINGS.sub("", shorter)
    return TENSOR.sub("", said)


def may_be(kind: str, operator: str) -> bool:
    """Say whether a layer without products computes a node, and does not only serve it.

    What changes a layout or pads channels bears the name of the layer that it does so for.
    """
    if "Reorder" in kind or kind in ("Transpose", "Pad"):
        return operator == kind
    return operator not in PRODUCTS


def named(layer: EngineLayer, said: Collection[str], file: OnnxFile) -> EngineLayer:
    """Return one layer under the name of its product, or of its first node."""
    found = {name for each in said if (name := file.node_called(each)) is not None}
    product = is_product(layer.kind)
    if product:
        found = {name for each in found for name in file.up_to_product(each)}
    else:
        found = {name for name in found if may_be(layer.kind, file.nodes[name].op_type)}
    nodes = tuple(name for name in file.nodes if name in found)
    if not nodes:
        return replace(layer, name=plain_name(layer.name))
    products = [name for name in nodes if file.nodes[name].op_type in PRODUCTS]
    if not (product and products):
        return replace(layer, name=nodes[0], nodes=nodes)
    known = [file.macs.get(name) for name in products]
    counts = [count for count in known if count is not None]
    macs = sum(counts) if len(counts) == len(known) else layer.macs
    return replace(layer, name=products[0], nodes=nodes, macs=macs)
