"""A network of CSRNet's shape at 1/16 of its width, in FP32 and as explicit Q/DQ, without torch."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from crowdrt.contracts import GraphInfo, Preprocessing
from crowdrt.onnx_file import set_info

FRONT = (4, 4, 0, 8, 8, 0, 16, 16, 16, 0, 32, 32, 32)  # 0: a 2x2 pool
BACK = (32, 32, 32, 16, 8, 4)  # dilation 2
PIXELS = Preprocessing(channels="rgb", mean=(124.0, 116.0, 104.0), std=(58.0, 57.0, 57.0), stride=8)


class Student:
    """The graph while it is put together, layer by layer."""

    def __init__(self, *, int8: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.int8 = int8
        self.rng = np.random.default_rng(0)

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        """Add a node; return its result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"/{name}", **attributes))
        return name

    def array(self, name: str, values: np.ndarray) -> str:
        """Store an array; return its name."""
        self.stored.append(numpy_helper.from_array(values, name))
        return name

    def codes(self, name: str, step: np.ndarray, **attributes: object) -> str:
        """Quantize a tensor and give it back, as int8 codes around 0."""
        if not self.int8:
            return name
        zero = np.zeros(step.shape, np.int8)
        rest = [self.array(f"{name}_scale", step), self.array(f"{name}_zero", zero)]
        quantized = self.node("QuantizeLinear", [name, *rest], **attributes)
        return self.node("DequantizeLinear", [quantized, *rest], **attributes)

    def conv(self, fed: str, channels: tuple[int, int], *, apart: int, kernel: int = 3) -> str:
        """Add a convolution whose results vary about as much as what it reads."""
        num_in, num_out = channels
        scale = np.sqrt(2 / (num_in * kernel**2))
        values = self.rng.standard_normal((num_out, num_in, kernel, kernel)) * scale
        stem = f"layer_{len(self.nodes)}"
        weights = self.array(f"{stem}.weight", values.astype(np.float32))
        bias = self.array(f"{stem}.bias", self.rng.normal(0, 0.1, num_out).astype(np.float32))
        if kernel > 1:
            step = np.abs(values).max(axis=(1, 2, 3)).astype(np.float32) / 63
            weights = self.codes(weights, step, axis=0)
            fed = self.codes(fed, np.array(0.05, np.float32))
        border = apart * (kernel - 1) // 2
        return self.node(
            "Conv", [fed, weights, bias], kernel_shape=[kernel, kernel], pads=[border] * 4,
            dilations=[apart, apart], strides=[1, 1],
        )  # fmt: skip


def write_student(path: Path, *, int8: bool) -> Path:
    """Write the network, with free height and width."""
    net = Student(int8=int8)
    pixel = net.node("Cast", ["image"], to=TensorProto.FLOAT)
    shape = (1, 3, 1, 1)
    mean = net.array("mean", np.array(PIXELS.mean, np.float32).reshape(shape))
    std = net.array("std", np.array(PIXELS.std, np.float32).reshape(shape))
    fed, before = net.node("Div", [net.node("Sub", [pixel, mean]), std]), 3
    for channels, apart in [*((c, 1) for c in FRONT), *((c, 2) for c in BACK)]:
        if channels:
            fed = net.node("Relu", [net.conv(fed, (before, channels), apart=apart)])
            before = channels
            continue
        fed = net.codes(fed, np.array(0.05, np.float32))
        fed = net.node("MaxPool", [fed], kernel_shape=[2, 2], strides=[2, 2])
    density = net.conv(fed, (before, 1), apart=1, kernel=1)
    count = net.node("ReduceSum", [density, net.array("axes", np.array([1, 2, 3]))], keepdims=0)
    for node in net.nodes:
        node.output[0] = {density: "density", count: "count"}.get(node.output[0], node.output[0])
        for i, name in enumerate(node.input):
            node.input[i] = "density" if name == density else name
    graph = helper.make_graph(
        net.nodes,
        "student",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("density", TensorProto.FLOAT, ["n", 1, "h", "w"]),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, ["n"]),
        ],
        net.stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = GraphInfo(
        network="csrnet", width="1/16", preprocessing=PIXELS, density_stride=8,
        precision="int8" if int8 else "fp32", weight_bits=7 if int8 else 32,
    )  # fmt: skip
    set_info(model, info)
    onnx.save(model, path)
    return path
