"""TensorRT's engine inspector, on records of real engines (inspector_samples/SOURCES.md)."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from crowdrt.engines.layers.roofline import Peaks
from crowdrt.engines.trt.layers.inspector import layer_times, precision_from, read_inspector
from crowdrt.engines.trt.layers.precision import Asked, asked_of, check_precision, hold
from crowdrt.engines.trt.layers.rows import layer_rows
from crowdrt.errors import EngineError

SAMPLES = Path(__file__).parent / "inspector_samples"
PEAKS = Peaks(device="A", bytes_per_s=1e12, operations_per_s={"fp16": 2e14})


def sample(name):
    return read_inspector((SAMPLES / name).read_text())


def by_name(name, part):
    return next(layer for layer in sample(name).layers if part in layer.name)


def test_int8_convolutions_with_their_fused_nodes():
    first = by_name("int8_qdq.json", "Conv_12")
    assert first.nodes == ("features.0.0.weight", "QuantizeLinear_8", "Conv_12", "Clip_16")
    assert (first.precision, first.inputs[0].precision, first.outputs[0].precision) == (
        "int8", "int8", "int8",
    )  # fmt: skip
    assert first.tactic == "volta_int8x4_icudnn_int8x4_128x32_relu_xregs_medium_c32_nn_v1"
    # 3x3 kernels of 3 channels, 32 of them, at every second pixel
    assert first.macs == 32 * 112 * 112 * 3 * 3 * 3
    assert first.num_bytes == 3 * 224 * 224 + 32 * 112 * 112 + 864


def test_a_quantizer_of_the_file_is_a_layer_and_a_layout_change_has_no_nodes():
    assert sample("int8_qdq.json").layers[0].nodes == ("QuantizeLinear_2",)
    assert sample("fp16.json").layers[0].nodes == ()
    assert sample("fp16.json").layers[0].moves_only


def test_depthwise_macs_follow_the_stored_weights():
    assert by_name("int8_qdq.json", "Conv_29").macs == 32 * 112 * 112 * 9


def test_a_convolution_that_leaves_int8_reads_int8():
    added = by_name("int8_qdq.json", "Add_144")
    assert added.precision == "int8"
    assert [t.precision for t in (*added.inputs, *added.outputs)] == ["int8", "fp16", "fp16"]


def test_metadata_names_the_nodes_and_tf32_is_no_fp32():
    rounded, half = sample("with_metadata.json").layers
    assert rounded.nodes == (
        "p2o.Conv.20", "p2o.BatchNormalization.20", "p2o.Add.10", "p2o.Relu.18",
    )  # fmt: skip
    assert (rounded.precision, half.precision) == ("tf32", "fp16")


def test_the_dialect_of_11():
    found = sample("dialect_11.json")
    assert (found.dialect, sample("fp16.json").dialect) == ("11", "8.6 and 10")
    pixels, conv = found.layers
    assert [t.precision for t in (*pixels.inputs, *pixels.outputs)] == ["uint8", "fp16"]
    assert pixels.nodes == ("/Cast", "/Sub", "/Div")
    assert (conv.precision, conv.nodes) == ("int8", ("Conv_0", "Relu_1"))


@pytest.mark.parametrize(
    ("said", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Channel major INT8 format where column stride % 32 == 0", "int8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear Int64 format", "int64"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("N/A due to dynamic shapes", None),
        ("Unknown format", None),
    ],
)
def test_types_in_the_inspectors_words(said, precision):
    assert precision_from(said) == precision


def test_of_free_shapes_weights_tell_the_precision_and_costs_stay_unknown():
    document = json.loads((SAMPLES / "fp16.json").read_text())
    for layer in document["Layers"]:
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            tensor["Format/Datatype"] = "N/A due to dynamic shapes"
            tensor["Dimensions"][2:] = [-1, -1]
    conv = read_inspector(json.dumps(document)).layers[1]
    assert (conv.precision, conv.macs, conv.num_bytes) == ("fp16", None, None)


def test_an_engine_that_kept_names_alone_is_refused():
    with pytest.raises(EngineError, match="names alone"):
        sample("names_only.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers"'])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(EngineError, match="no record"):
        read_inspector(text)


def test_times_share_macs_and_roofline():
    times = layer_times((SAMPLES / "fp16.profile.json").read_text())
    rows = layer_rows(sample("fp16.json"), times, PEAKS)
    assert sum(row.share for row in rows) == pytest.approx(1)
    conv = rows[3]
    assert conv.ms == 0.053248
    assert conv.macs == 32 * 64 * 56 * 56 * 64 * 9
    # 3.7 G MACs at 200 TFLOP/s take longer than 26 MB at 1 TB/s
    assert (conv.bound_by, rows[2].bound_by) == ("operations", "bytes")
    assert conv.least_ms == pytest.approx(2 * conv.macs / 2e14 * 1e3)
    assert conv.roofline == pytest.approx(conv.least_ms / conv.ms)
    assert rows[4].least_ms is None  # what does nothing has no least time


def test_without_times_or_peaks_their_columns_are_left_out():
    rows = layer_rows(sample("fp16.json"))
    assert all((row.ms, row.share, row.least_ms, row.roofline) == (None,) * 4 for row in rows)
    assert rows[1].macs is not None


@pytest.mark.parametrize(
    "text", ["{}", '[{"name": "a"}]', '[{"name": "a", "averageMs": "x"}]', "3"]
)
def test_no_record_of_times(text):
    if text == "{}":
        assert layer_times(text) == {}
        return
    with pytest.raises(EngineError, match="no record of layers' times"):
        layer_times(text)


# What a file asks


def graph(text, **stored):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net ' + text.replace("\n", " ")
    )
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


ONE, ZERO = np.array(1, np.float32), np.array(0, np.int8)
INT8 = graph(
    """(float[1,3,8,8] x) => (float[1,4,8,8] y) {
    a = QuantizeLinear (x, s, z)
    b = DequantizeLinear (a, s, z)
    wq = QuantizeLinear (w, s, z)
    wd = DequantizeLinear (wq, s, z)
    c = Conv (b, wd)
    y = Conv (c, v)
    }""",
    s=ONE, z=ZERO, w=np.ones((4, 3, 1, 1), np.float32), v=np.ones((4, 4, 1, 1), np.float32),
)  # fmt: skip


def test_a_file_asks_int8_by_qdq_on_both_operands_and_fp16_by_types():
    assert asked_of(INT8) == {"c": Asked(operator="Conv", precision="int8")}
    half = graph(
        """(float[1,3,8,8] x) => (float[1,4,8,8] y) {
        h = Cast <to = 10> (x)
        c = Conv (h, w)
        r = Relu (c)
        y = Cast <to = 1> (r)
        }""",
        w=np.ones((4, 3, 1, 1), np.float16),
    )
    assert {name: each.precision for name, each in asked_of(half).items()} == {
        "c": "fp16", "r": "fp16",
    }  # fmt: skip


def asked(operator="Conv", precision="int8", *nodes):
    return {node: Asked(operator=operator, precision=precision) for node in nodes}


def test_a_plan_that_obeys():
    wishes = asked("Conv", "int8", "Conv_12", "Conv_29", "Conv_142") | asked(
        "Clip", "fp16", "Clip_16"
    )
    held = hold(sample("int8_qdq.json"), wishes)
    assert held.errors == held.exceptions == ()
    assert held.obeyed == {"int8": 3, "fp16": 1}  # a Clip inside of an INT8 convolution


def disobeying(name="Conv_12"):
    """The INT8 record, with one convolution as TensorRT writes an FP32 one."""
    document = json.loads((SAMPLES / "int8_qdq.json").read_text())
    layer = next(each for each in document["Layers"] if name in each["Name"])
    layer["Weights"]["Type"] = "Float"
    layer["TacticName"] = "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc"
    for tensor in (*layer["Inputs"], *layer["Outputs"]):
        tensor["Format/Datatype"] = "Row major linear FP32"
    return read_inspector(json.dumps(document))


def test_a_layer_asked_to_run_int8_that_runs_fp32_is_an_error_with_its_name():
    held = hold(disobeying(), asked("Conv", "int8", "Conv_12", "Conv_29"))
    (error,) = held.errors
    assert str(error) == (
        "Conv Conv_12, asked to run in int8, runs in fp32, in features.0.0.weight + "
        "QuantizeLinear_8 + Conv_12 + PWN(Clip_16)"
    )
    assert held.obeyed == {"int8": 1}


def test_so_is_one_that_runs_half_way():
    held = hold(sample("fp16.json"), asked("Conv", "int8", "Conv_3"))
    assert [error.ran for error in held.errors] == ["fp16"]


def test_a_product_in_no_layer_is_an_error_and_a_fused_relu_is_none():
    held = hold(sample("fp16.json"), asked("Conv", "fp16", "gone") | asked("Relu", "fp16", "away"))
    assert [str(error) for error in held.errors] == [
        "Conv gone, asked to run in fp16, is in no layer that the inspector names"
    ]


def test_listed_exceptions_have_reasons_and_are_not_silent():
    held = hold(disobeying(), asked("ConvTranspose", "int8", "Conv_12"))
    assert held.errors == ()
    (line,) = held.facts()["exceptions"]
    assert "Conv_12" in line
    assert "few transposed convolutions" in line


def test_the_check_refuses_a_plan_and_tf32_where_it_was_not_allowed():
    renamed = onnx.ModelProto()
    renamed.CopyFrom(INT8)
    renamed.graph.node[4].name = "Conv_12"
    assert check_precision(sample("int8_qdq.json"), renamed).obeyed == {"int8": 1}
    with pytest.raises(EngineError, match="Conv_12, asked to run in int8, runs in fp32"):
        check_precision(disobeying(), renamed)
    empty = graph("(float[1] x) => (float[1] y) { y = Relu (x) }")
    assert check_precision(sample("with_metadata.json"), empty).errors == ()
    with pytest.raises(EngineError, match=r"p2o\.Conv\.20 .* runs in tf32"):
        check_precision(sample("with_metadata.json"), empty, tf32=False)
