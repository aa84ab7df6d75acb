"""One layer of an engine on a CPU, as its runtime ran it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Self

INT8, FP32 = "int8", "fp32"
# ONNX Runtime's names of types, and OpenVINO's
TYPES = {
    **{"float": FP32, "f32": FP32, "float16": "fp16", "f16": "fp16", "bfloat16": "bf16"},
    **{"bf16": "bf16", "double": "fp64", "f64": "fp64", "uint8": INT8, "int8": INT8, "u8": INT8},
    **{"i8": INT8, "int32": "int32", "i32": "int32", "int64": "int64", "i64": "int64"},
    **{"bool": "bool", "boolean": "bool"},
}
BYTES = {"fp64": 8, "int64": 8, FP32: 4, "int32": 4, "fp16": 2, "bf16": 2, INT8: 1, "bool": 1}
# what gives a tensor another shape and moves none of it
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """As many ONNX nodes as the runtime fused, or something of its own between them."""

    name: str  # of its product in the ONNX file, else of its first node there, else the runtime's
    kind: str  # Conv, QLinearConv, Reorder ... as the runtime calls it
    kernel: str | None  # OpenVINO's name of the code that ran
    nodes: tuple[str, ...]  # of the ONNX file, in its order; () of what the runtime put in
    precision: str | None  # in which it computes: fp32, int8 ...
    input_shape: Shape | None
    output_shape: Shape | None
    macs: int | None  # None: it has none, or they are not known
    num_bytes: int | None  # inputs, outputs and weights, once each; None of what moves nothing
    samples_ms: tuple[float, ...]

    @property
    def ms(self) -> float:
        """Its median."""
        return median(self.samples_ms)

    def to_json(self) -> dict[str, Any]:
        """Return it as a record holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        shapes = {key: shape_from(document[key]) for key in ("input_shape", "output_shape")}
        samples = tuple(float(sample) for sample in document["samples_ms"])
        fields = {**document, **shapes, "nodes": tuple(document["nodes"]), "samples_ms": samples}
        return cls(**fields)


def shape_from(axes: Sequence[int] | None) -> Shape | None:
    """Return a shape as read from JSON."""
    return None if axes is None else tuple(int(axis) for axis in axes)


def size_of(shape: Sequence[int], precision: str | None) -> int:
    """Return the bytes of a tensor, without what a layout adds."""
    return math.prod(shape) * BYTES.get(precision or "", 4)


def is_product(kind: str) -> bool:
    """Say whether a kind of layer multiplies matrices, whatever is fused into it."""
    words = ("Conv", "MatMul", "Gemm", "FullyConnected", "Deconv")
    return kind != "Convert" and any(word in kind for word in words)
