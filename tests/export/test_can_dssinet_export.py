"""CAN and DSSINet as ONNX: plain operators, any size, and shared weights stored once."""

import math
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch

from crowdrt.calibration.calibrate import calibrate
from crowdrt.contracts import CalibrationConfig, GraphInfo
from crowdrt.data.synthetic.photographs import generate
from crowdrt.engines.ort import OrtEngine
from crowdrt.export.deploy import ShippedNetwork, deploy
from crowdrt.export.onnx_export import export_onnx
from crowdrt.export.parity import probe_images
from crowdrt.manifest import read_manifest
from crowdrt.models import build_model
from crowdrt.onnx_graph import num_parameters, stored_tensors

SIZE = (96, 176)  # a map of 12x22 cells for CAN: not divisible by 3 or 6 across
# What a network of convolutions needs; onnx-tensorrt lists each for TensorRT 8.6 and later.
PLAIN = {
    *("Cast", "Sub", "Div", "Add", "Mul", "Conv", "Relu", "LeakyRelu", "MaxPool", "Concat"),
    *("Resize", "MatMul", "Max", "Clip", "Exp", "Reciprocal", "ReduceSum", "Flatten", "Constant"),
}
FROM_SIZES = {
    "Shape",
    "Gather",
    "Range",
    "Slice",
    "Unsqueeze",
    "Greater",
    "Less",
    "And",
    "Transpose",
}


@pytest.fixture(scope="module", params=["can", "dssinet"])
def network(request):
    """A deployed network whose slopes and statistics are not the initial ones."""
    torch.manual_seed(0)
    model = build_model(request.param, Fraction(1, 8))
    for module in model.modules():
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, -0.3, 0.8)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
    blobs = torch.randn(1, 3, 4, 5)
    image = torch.nn.functional.interpolate(blobs, size=(64, 96), mode="bilinear")
    return request.param, deploy(model, image)


@pytest.fixture(scope="module", params=[None, SIZE], ids=["any size", "one size"])
def exported(request, network, tmp_path_factory):
    """Name, deployed network, size and file, made with the real simplifier."""
    name, model = network
    path = tmp_path_factory.mktemp(name) / f"{name}.onnx"
    info = GraphInfo(
        network=name,
        width="1/8",
        preprocessing=model.preprocessing,
        density_stride=model.density_stride,
    )
    export_onnx(model, info, path, size=request.param)
    return name, model, request.param, path


def test_operators_are_plain(exported):
    name, _, size, path = exported
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert model.opset_import[0].version == 17
    assert kinds <= (PLAIN if size or name == "dssinet" else PLAIN | FROM_SIZES)
    assert {"Conv", "Resize"} < kinds


def test_weights_are_stored_once(exported):
    name, model, _, path = exported
    graph = onnx.load(path).graph
    convs = [node for node in graph.node if node.op_type == "Conv"]
    weights = {node.input[1] for node in convs}
    read_by = sorted(sum(node.input[1] == weight for node in convs) for weight in weights)
    # CAN's contrast is judged four times; DSSINet's body sees three scales, messages go twice
    assert read_by == ([1] * 22 + [4] if name == "can" else [1] * 14 + [2] * 16 + [3] * 10)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(math.prod(tensor.dims) for tensor in stored_tensors(graph).values())
    assert num_parameters(graph) <= stored < parameters + 2000
    assert path.stat().st_size < 4 * parameters + 2**17


def test_any_size_is_the_same_network(exported):
    _, model, size, path = exported
    sizes = [size] if size else [(80, 112), (144, 96), (48, 176)]
    engine, reference = OrtEngine(path), ShippedNetwork(model, model.preprocessing)
    for image in probe_images(model.preprocessing, sizes):
        with torch.inference_mode():
            density, count = reference(torch.from_numpy(image))
        got = engine.run({"image": image})
        scale = float(density.abs().max())
        assert density.std() > 0.05 * scale
        np.testing.assert_allclose(got["density"], density, atol=2e-5 * scale)
        np.testing.assert_allclose(got["count"], count, atol=1e-5 * float(density.abs().sum()))
    assert read_manifest(path)["facts"]["parity"]["max_rel"] < 2e-5


def test_int8_counts_on_the_cpu(exported, tmp_path):
    """Photographs of other sizes than the graph's: it shows itself tiles of its own."""
    _, model, size, path = exported
    out = tmp_path / "int8.onnx"
    photographs = generate(
        tmp_path / "photographs", num_images=2, seed=3, size=(120, 200), people=(20, 60)
    )
    calibrate(
        path,
        [each.image for each in photographs],
        out,
        CalibrationConfig(num_images=2),
        num_threads=1,
    )
    facts = read_manifest(out)["facts"]
    assert facts["int8_macs"] > 0.98
    (image,) = probe_images(model.preprocessing, [size or (80, 112)])
    exact, got = (OrtEngine(file).run({"image": image})["density"] for file in (path, out))
    noise = ((got - exact) ** 2).mean()
    assert 0 < noise < 0.1 * exact.var()
    assert out.stat().st_size < path.stat().st_size + 2**18  # shared weights are shared still
