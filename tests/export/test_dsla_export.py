"""The detector as a file: any size, plain operators, both outputs alike, INT8."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from crowdrt.calibration.calibrate import calibrate
from crowdrt.contracts import NUM_DETECTIONS, CalibrationConfig, GraphInfo
from crowdrt.engines.decode import detections_of
from crowdrt.engines.ort import OrtEngine, save_optimised, session_config
from crowdrt.errors import ParityError
from crowdrt.export.deploy import deploy
from crowdrt.export.onnx_export import export_onnx
from crowdrt.export.parity import probe_images, prove_parity
from crowdrt.models.dsla import DSLA

SIZES = ((128, 192), (64, 64))  # with more cells than detections, and with fewer

# What TensorRT 8.6's parser takes; K of a TopK and the ends of a Clip have to be stored numbers.
TENSORRT_8 = {
    *("Add", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Div", "Equal"),
    *("Expand", "Flatten", "Gather", "GatherElements", "Identity", "InstanceNormalization"),
    *("MaxPool", "Min"),
    *("Mul", "Pad", "Range", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Sub"),
    *("TopK", "Transpose", "Unsqueeze", "Where"),
}


def upset(module: nn.Module) -> None:
    """Give a normalisation the statistics of one that has learned."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.running_mean, std=0.2)
        nn.init.uniform_(module.running_var, 0.5, 2.0)


def info_of(model: DSLA, output: str) -> GraphInfo:
    return GraphInfo(
        network="dsla",
        width="1/16",
        preprocessing=model.preprocessing,
        density_stride=model.density_stride,
        output=output,
    )


@pytest.fixture(scope="module")
def shipped() -> DSLA:
    torch.manual_seed(0)
    model = DSLA(Fraction(1, 16), num_classes=2).apply(upset).eval()
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 5, 6), size=(128, 192))
    deployed = deploy(model, image)
    assert isinstance(deployed, DSLA)
    return deployed


@pytest.fixture(scope="module")
def files(shipped, tmp_path_factory) -> dict[str, Path]:
    """Both outputs for any size; exporting proves parity with PyTorch."""
    folder, paths = tmp_path_factory.mktemp("dsla"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crowdrt.export.onnx_export.simplify", lambda model, _: (model, "not tried"))
        for output in DSLA.offers:
            shipped.keep(output)
            paths[output] = folder / f"{output}.onnx"
            pictures = probe_images(shipped.preprocessing, SIZES)
            info = info_of(shipped, output)
            export_onnx(shipped, info, paths[output], size=None, images=pictures)
    return paths


def test_names_axes_and_types(files):
    engine = OrtEngine(files["boxes"])
    assert [(o.name, o.shape, o.dtype) for o in engine.outputs] == [
        ("boxes", ("batch", NUM_DETECTIONS, 4), "float32"),
        ("scores", ("batch", NUM_DETECTIONS), "float32"),
        ("labels", ("batch", NUM_DETECTIONS), "int64"),
    ]
    assert engine.info is not None
    assert engine.info.output == "boxes"
    raw = OrtEngine(files["raw"])
    assert [(o.name, len(o.shape)) for o in raw.outputs] == [("logits", 3), ("boxes", 3)]


@pytest.mark.parametrize("output", ["boxes", "raw"])
def test_plain_operators(files, output):
    model = onnx.load(files[output])
    assert {node.op_type for node in model.graph.node} <= TENSORRT_8
    assert [entry.version for entry in model.opset_import] == [17]
    stored = {value.name for value in model.graph.initializer}
    stored |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type in ("TopK", "Clip"):
            assert {name for name in node.input[1:] if name} <= stored


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decoding_inside_and_beside_the_graph_is_the_same(shipped, files, size):
    images = probe_images(shipped.preprocessing, [size, size])
    feeds = {"image": np.concatenate([images[0], 255 - images[1]])}
    inside, beside = (
        detections_of(OrtEngine(files[output]).run(feeds)) for output in ("boxes", "raw")
    )
    for one, other in zip(inside, beside, strict=True):
        assert len(one.scores) == len(other.scores) > 100
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
        clear = np.flatnonzero(np.diff(one.scores, prepend=2) < -1e-6)
        alone = clear[:-1][np.diff(clear) == 1]  # ties may come in either order
        assert len(alone) > len(one.scores) / 2
        np.testing.assert_array_equal(one.boxes[alone], other.boxes[alone])
        np.testing.assert_array_equal(one.labels[alone], other.labels[alone])
    assert np.abs(inside[0].boxes[:50] - inside[1].boxes[:50]).max() > 1


@pytest.mark.parametrize("spoil", ["box_head", "class_head"])
def test_parity_sees_a_detector_with_other_weights(shipped, files, spoil):
    shipped.keep("boxes")
    picture = probe_images(shipped.preprocessing, SIZES[:1])
    assert prove_parity(shipped, files["boxes"], picture).max_rel < 1e-4
    bias = getattr(shipped, spoil).bias
    with torch.no_grad():
        bias += 0.01
        try:
            with pytest.raises(ParityError, match="boxes by"):
                prove_parity(shipped, files["boxes"], picture)
        finally:
            bias -= 0.01


@pytest.fixture(scope="module")
def quantized(shipped, files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    for number, picture in enumerate(probe_images(shipped.preprocessing, SIZES[:1] * 2)):
        Image.fromarray(picture[0].transpose(1, 2, 0)).save(folder / f"{number}.png")
    images = sorted(folder.glob("*.png"))
    return calibrate(files["raw"], images, folder / "int8.onnx", CalibrationConfig()).path


def test_int8_keeps_heads_and_group_norm_float(quantized, tmp_path):
    graph = onnx.load(quantized).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    heads = [node for node in graph.node if node.op_type == "Conv" and "_head" in node.name]
    others = [node for node in graph.node if node.op_type == "Conv" and "_head" not in node.name]
    assert len(heads) == 2 * 5
    assert len(others) == 53 + 8 + 2 * 5 * 4
    assert not {made_by.get(node.input[1]) for node in heads} & {"DequantizeLinear"}
    assert {made_by[node.input[1]] for node in others} == {"DequantizeLinear"}
    save_optimised(
        quantized, tmp_path / "optimised.onnx", config=session_config(onnx.load(quantized))
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(others)  # a tower's last too: its norm reads codes
    assert kinds.count("InstanceNormalization") == 2 * 5 * 4


def test_int8_answers_like_float(shipped, files, quantized):
    feeds = {"image": probe_images(shipped.preprocessing, SIZES[:1])[0]}
    expected, got = OrtEngine(files["raw"]).run(feeds), OrtEngine(quantized).run(feeds)
    correlation = np.corrcoef(expected["logits"].ravel(), got["logits"].ravel())[0, 1]
    assert correlation > 0.95
    assert 0 < np.abs(got["boxes"] - expected["boxes"]).mean() < 2  # px
    assert len(detections_of(got)[0].scores) == NUM_DETECTIONS
