"""The memory of a graph's tensors, against sums done by hand."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from crowdrt.engines.tiling.memory import peak_bytes, unrolled

F = np.float32
SIZE = (24, 40)
AREA = 24 * 40


def graph(text: str, **stored: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (uint8[N, C, H, W] image) => (float[N, D, h, w] density) {{ {text} }}"""
    )
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in stored.items())
    return model


def per_pixel(model: onnx.ModelProto) -> float:
    return peak_bytes(model, {"image": SIZE}) / AREA


def weights(*shape: int) -> np.ndarray:
    return np.ones(shape, F)


FLOAT = """
    a = Cast <to = 1> (image)
    b = Sub (a, mean)
    c = Conv <pads = [1, 1, 1, 1]> (b, w1)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w2)
    f = Relu (e)
    density = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (f)
"""


def test_a_convolution_holds_what_it_reads_and_what_it_writes():
    """At the second: pixels 3, 16 channels 64, 32 channels 128; the first's input is gone."""
    model = graph(
        FLOAT, mean=weights(1, 3, 1, 1), w1=weights(16, 3, 3, 3), w2=weights(32, 16, 3, 3)
    )
    assert per_pixel(model) == 3 + 64 + 128


LATE = """
    b = Cast <to = 1> (image)
    c = Conv <pads = [1, 1, 1, 1]> (b, w1)
    e = Conv <pads = [1, 1, 1, 1]> (c, w2)
    f = Conv (b, w3)
    density = Add (e, f)
"""


def test_the_last_reader_frees_a_tensor():
    """At the third convolution: pixels 3, floats 12 that it still reads, 16 channels 64 twice.

    Where it reads the second convolution instead, the floats are gone by then.
    """
    stored = {"w1": weights(16, 3, 3, 3), "w2": weights(16, 16, 3, 3)}
    late = graph(LATE, **stored, w3=weights(16, 3, 1, 1))
    assert per_pixel(late) == 3 + 12 + 64 + 64
    early = graph(LATE.replace("(b, w3)", "(c, w3)"), **stored, w3=weights(16, 16, 1, 1))
    assert per_pixel(early) == 3 + 64 + 64 + 64


def test_channels_come_in_blocks():
    """8 of 16 channels: held as 32 bytes, but written as 64 first."""
    model = graph("a = Cast <to = 1> (image)\ndensity = Conv (a, w)", w=weights(8, 3, 1, 1))
    assert per_pixel(model) == 3 + 12 + 32 + 64


INT8 = """
    a = Cast <to = 1> (image)
    aq = QuantizeLinear (a, s, z)
    ad = DequantizeLinear (aq, s, z)
    c = Conv <pads = [1, 1, 1, 1]> (ad, w1)
    d = Relu (c)
    dq = QuantizeLinear (d, s, z)
    dd = DequantizeLinear (dq, s, z)
    e = Conv <pads = [1, 1, 1, 1]> (dd, w2)
    f = Relu (e)
    fq = QuantizeLinear (f, s, z)
    density = DequantizeLinear (fq, s, z)
"""


def test_between_q_and_dq_there_are_codes():
    """Pixels 3, codes of 16 and 32 channels, 9 pointers of 8 bytes; never a float between."""
    model = graph(INT8, s=F(0.1), z=np.uint8(0), w1=weights(16, 3, 3, 3), w2=weights(32, 16, 3, 3))
    inner = 3 + 16 + 32 + 72
    last = 3 + 32 + 128  # the output itself is float
    assert per_pixel(model) == max(inner, last)
    narrow = graph(INT8, s=F(0.1), z=np.uint8(0), w1=weights(32, 3, 3, 3), w2=weights(16, 32, 3, 3))
    assert per_pixel(narrow) == max(3 + 3 + 32 + (27 + 4 * 32), 3 + 32 + 16 + 72)


def test_what_an_int8_convolution_unrolls():
    assert unrolled((16, 16, 3, 3), (1, 16, 5, 7)) == 8 * 9 * 35
    assert unrolled((8, 16, 3, 3), (1, 8, 5, 7)) == (16 * 9 + 4 * 8) * 35
    assert unrolled((8, 16, 1, 1), (1, 8, 5, 7)) == 0


@pytest.mark.parametrize("size", [(8, 8), (16, 64), (80, 48)])
def test_it_goes_by_the_area(size):
    model = graph(
        FLOAT, mean=weights(1, 3, 1, 1), w1=weights(16, 3, 3, 3), w2=weights(32, 16, 3, 3)
    )
    assert peak_bytes(model, {"image": size}) == size[0] * size[1] * (3 + 64 + 128)


def test_large_weights_do_not_count_and_do_not_slow():
    stored = {"mean": weights(1, 3, 1, 1), "w1": weights(512, 3, 3, 3)}
    model = graph(FLOAT, **stored, w2=weights(512, 512, 3, 3))
    assert per_pixel(model) == 3 + 2 * 4 * 512
