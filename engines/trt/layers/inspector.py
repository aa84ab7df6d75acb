"""What TensorRT's engine inspector says of a plan's layers, read in both of its dialects.

TensorRT 8.6 and 10 name `Bindings` and give a tensor's layout and type in one sentence
(`Format/Datatype`); 11 has `I/O Tensors`, and the two apart. 8.6 and later name the ONNX nodes of a
layer in `Metadata`; where that is missing, the layer's own name is made of theirs.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from crowdrt.errors import EngineError

# as they stand in formats, weights and kgen's types; the first that is found decides
TYPES = (
    ("bf16", ("bfloat16", "bf16")),
    ("uint8", ("uint8",)),
    ("fp8", ("fp8", "e4m3")),
    ("fp4", ("fp4", "e2m1")),
    ("fp16", ("fp16", "half")),
    ("fp32", ("fp32", "float32", "float")),
    ("int8", ("int8",)),
    ("int64", ("int64",)),
    ("int32", ("int32",)),
    ("int4", ("int4",)),
    ("bool", ("bool",)),
)
BYTES = {"fp32": 4, "int32": 4, "int64": 8, "fp16": 2, "bf16": 2, "int4": 0.5, "fp4": 0.5}
# what a tactic's name says of products, where nothing else does: operands of implicit GEMMs
TACTICS = (("int8", ("i8i8", "imma", "int8")), ("fp16", ("f16f16", "hmma", "h16816", "h884")))
TF32 = re.compile("tf32")
ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")
MOVES = ("Reformat", "NoOp", "Shuffle", "Constant", "ShapeHostToDevice", "DeviceToShapeHost")
JOINTS = re.compile(r" \+ | \|\| |, ")


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """One tensor that a layer reads or writes."""

    name: str
    shape: tuple[int, ...]  # -1 where the engine takes a range
    precision: str | None  # fp32, fp16, int8 ...; None where only a run decides

    @property
    def num_bytes(self) -> int | None:
        """Its size as its shape says, without what a layout adds; None of a free shape."""
        if self.precision is None or any(axis < 0 for axis in self.shape):
            return None
        return int(math.prod(self.shape) * BYTES.get(self.precision, 1))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a plan: as many ONNX nodes as TensorRT could fuse, in one kernel."""

    name: str
    kind: str  # CaskConvolution, kgen, Reformat ...
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    weights: str | None  # their precision
    num_weights: int
    tactic: str | None
    nodes: tuple[str, ...]  # of the ONNX file

    @property
    def moves_only(self) -> bool:
        """Whether it copies, and computes nothing."""
        return self.kind in MOVES

    @property
    def precision(self) -> str | None:
        """The numbers that it computes with: of weights, else of what it reads first.

        FP32 products that round their operands are tf32.
        """
        read = self.weights or next((t.precision for t in self.inputs if t.precision), None)
        tactic = (self.tactic or "").lower()
        if read is None:
            read = next((kind for kind, marks in TACTICS if any(m in tactic for m in marks)), None)
        return "tf32" if read == "fp32" and TF32.search(tactic) else read

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of a convolution; None of any other layer or of a free shape."""
        if not self.num_weights or not self.inputs or not self.outputs:
            return None
        transposed = "Deconv" in self.kind
        shape = (self.inputs if transposed else self.outputs)[0].shape
        if len(shape) < 3 or any(axis < 0 for axis in shape):
            return None
        return self.num_weights * shape[0] * math.prod(shape[2:])

    @property
    def num_bytes(self) -> int | None:
        """What it has to move through memory at least: inputs, outputs and weights once."""
        sizes = [each.num_bytes for each in (*self.inputs, *self.outputs)]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        return sum(known) + int(self.num_weights * BYTES.get(self.weights or "", 1))


@dataclass(frozen=True)
class Inspection:
    """All layers of a plan, in the order in which they run."""

    layers: tuple[Layer, ...]
    dialect: str  # "8.6 and 10", "11"


def read_inspector(text: str, *, source: str = "the inspector's record") -> Inspection:
    """Return the layers that the inspector's JSON names.

    Raises:
        EngineError: it is no such record, or one of an engine that keeps only layers' names.
    """
    try:
        document = json.loads(text)
        entries = document["Layers"]
        if entries and all(isinstance(entry, str) for entry in entries):
            raise EngineError(
                f"{source} has layers' names alone: the engine was built without detail",
                fix="build it with crowdrt: crowdrt build MODEL.onnx --engine tensorrt",
            )
        layers = tuple(layer_from(entry) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{source} is no record of TensorRT's engine inspector: {error!r}",
            fix="build the engine again: crowdrt build MODEL.onnx --engine tensorrt",
        ) from error
    return Inspection(layers, "11" if "I/O Tensors" in document else "8.6 and 10")


def layer_from(entry: Mapping[str, Any]) -> Layer:
    """Return one layer of the record."""
    weights = entry.get("Weights") or {}
    return Layer(
        name=str(entry["Name"]),
        kind=str(entry.get("LayerType", "")),
        inputs=tuple(map(tensor_from, entry.get("Inputs", ()))),
        outputs=tuple(map(tensor_from, entry.get("Outputs", ()))),
        weights=precision_from(str(weights.get("Type", ""))),
        num_weights=int(weights.get("Count", 0)),
        tactic=entry.get("TacticName"),
        nodes=tuple(nodes_of(entry)),
    )


def tensor_from(entry: Mapping[str, Any]) -> LayerTensor:
    """Return one tensor of a layer; version 11 says its type and its layout apart."""
    said = entry.get("Format/Datatype")
    if said is None:
        said = entry.get("Datatype") or entry.get("DataType") or entry.get("Format") or ""
    return LayerTensor(
        name=str(entry["Name"]),
        shape=tuple(int(axis) for axis in entry.get("Dimensions", ())),
        precision=precision_from(str(said)),
    )


def precision_from(said: str) -> str | None:
    """Return the type in a sentence such as `Channel major FP16 format where channel % 8 == 0`."""
    words = re.findall(r"[a-z]+\d*\w*", said.lower())
    return next((kind for kind, names in TYPES if any(name in words for name in names)), None)


def nodes_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ONNX nodes in a layer.

    A layer that only changes a layout has the name of the one that it serves, and no nodes.
    """
    if "Metadata" in entry:
        yield from dict.fromkeys(ONNX_NODE.findall(str(entry["Metadata"])))
        return
    name = str(entry["Name"])
    if entry.get("LayerType") in MOVES and entry.get("Origin") != "QDQ":
        return
    for part in JOINTS.split(name):
        node = part.removeprefix("PWN(").rstrip(")") if part.startswith("PWN(") else part
        if node and not node.startswith(("(Unnamed Layer*", "{ForeignNode[")):
            yield node


def layer_times(text: str, *, source: str = "the profile") -> dict[str, float]:
    """Return layer -> milliseconds per run, as TensorRT's profilers write them.

    Args:
        text: JSON as trtexec's --exportProfile writes it: a count, then a mapping per layer.
        source: what to call it in an error.

    Raises:
        EngineError: it is no such record.
    """
    times: dict[str, float] = {}
    try:
        for entry in json.loads(text):
            if "name" in entry:
                spent = float(entry.get("medianMs", entry["averageMs"]))
                times[entry["name"]] = times.get(entry["name"], 0.0) + spent
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{source} is no record of layers' times: {error!r}", fix="delete it, and profile again"
        ) from error
    return times
