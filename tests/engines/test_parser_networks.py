"""Every network, as it ships in FP32, FP16 and INT8, is one that TensorRT's parser takes."""

from fractions import Fraction

import onnx
import pytest

from crowdrt.calibration.fp16.graph import prepared, to_fp16
from crowdrt.calibration.fp16.plan import plan_fp16
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.calibration.int8.qdq import insert_qdq
from crowdrt.engines.trt.graphs.parser_support import tensorrt_support
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.export.onnx_export import to_onnx
from crowdrt.export.simplify import simplify
from crowdrt.models import NETWORKS
from crowdrt.onnx_graph import count_nodes
from crowdrt.pipeline.networks import Origin

WIDTH = Fraction(1, 16)


def int8_form(model: onnx.ModelProto) -> onnx.ModelProto:
    plan = plan_int8(model)
    return insert_qdq(model, plan, dict.fromkeys(plan.watched, 1.0), weight_bits=7)


def fp16_form(model: onnx.ModelProto) -> onnx.ModelProto:
    ready = prepared(model)
    return to_fp16(ready, plan_fp16(ready))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_parsers_take_it_in_every_precision(network):
    model = Origin(network=network, width=WIDTH, weights=None).build()
    shipped = ShippedNetwork(model, model.preprocessing)
    traced, _ = to_onnx(shipped, model.fixed_size, 17)
    float_form, _ = simplify(traced, [])
    forms = {"fp32": float_form, "int8": int8_form(float_form), "fp16": fp16_form(float_form)}
    assert "QuantizeLinear" in count_nodes(forms["int8"].graph)
    assert any(
        each.data_type == onnx.TensorProto.FLOAT16 for each in forms["fp16"].graph.initializer
    )
    for precision, form in forms.items():
        assert tensorrt_support(form) == {"8.6": [], "10": [], "11": []}, precision
