"""What OpenVINO computes in INT8 is integer arithmetic, on every kind of CPU."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_graphs import UINT8, network, picture, run, with_outputs
from test_int8_exact import Layer, layers_of, unfold
from test_qdq import int8_of

from crowdrt.engines.machine import cpu_may_saturate
from crowdrt.engines.ov import OpenVinoEngine
from crowdrt.engines.rewrites.unsigned import unsigned_activations

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs crowdrt[openvino]"
)
X86 = platform.machine().lower() in ("x86_64", "amd64")
TIE = 1e-3  # of an output code: how near to the border of two codes float32 may take either


def convolutions(engine: OpenVinoEngine) -> list[tuple[str, str]]:
    """Precision and kernel of each convolution that is executed."""
    facts = [node.get_rt_info() for node in engine.compiled.get_runtime_model().get_ops()]
    return sorted(
        (fact["runtimePrecision"].astype(str), fact["primitiveType"].astype(str))
        for fact in facts
        if fact["layerType"].astype(str) == "Convolution"
    )


def exact(layer: Layer, codes: np.ndarray) -> np.ndarray:
    """The output codes before rounding, in float64; OpenVINO adds the bias as a float."""
    zero = int(layer.input_zero)
    columns = unfold(codes.astype(np.int64), layer.conv, layer.codes.shape[2:], zero) - zero
    sums = np.einsum("nkhw,ok->nohw", columns, layer.codes.reshape(len(layer.codes), -1))
    unit = layer.input_step.astype(np.float64) * layer.steps
    total = sums * unit[:, None, None] + layer.bias[:, None, None]
    return np.clip(total / layer.output_step + int(layer.output_zero), 0, 255)


def check_every_layer(kind: str, weight_bits: int = 7) -> list[tuple[str, str]]:
    """Compare every convolution with exact arithmetic on the codes that OpenVINO fed it.

    Returns:
        What `convolutions` finds.
    """
    quantized, plan, _ = int8_of(network(kind), picture(), weight_bits=weight_bits)
    unsigned = unsigned_activations(quantized)
    layers = layers_of(unsigned)
    assert len(layers) == len(plan.convs) - 1 >= 2
    codes = {name: UINT8 for layer in layers for name in (layer.source, layer.result)}
    engine = OpenVinoEngine(with_outputs(unsigned, codes).SerializeToString())
    feeds = {"image": picture(96, 128, seed=5)}
    emitted = engine.run(feeds)
    for layer in layers:
        expected, got = exact(layer, emitted[layer.source]), emitted[layer.result]
        assert expected.std() > 3
        differs = np.rint(expected) != got
        assert np.abs(np.rint(expected) - got).max() <= 1
        assert (np.abs(expected - np.floor(expected) - 0.5)[differs] < TIE).all()
    # the network as it ships, where no code leaves it, does the same
    shipped = OpenVinoEngine(quantized.SerializeToString())
    assert convolutions(shipped) == convolutions(engine)
    expected = emitted["density"]
    assert expected.std() > 0.01
    np.testing.assert_allclose(shipped.run(feeds)["density"], expected, atol=1e-5)
    return convolutions(shipped)


@pytest.mark.parametrize("kind", ["vgg", "columns"])
@pytest.mark.parametrize("weight_bits", [7, 8])
def test_every_convolution_equals_integer_arithmetic(kind, weight_bits):
    if weight_bits == 8 and cpu_may_saturate():
        pytest.skip("8-bit weights are refused on this CPU")
    (first, _), *inner = check_every_layer(kind, weight_bits)
    assert first == "f32"  # the last one, whose result is not quantized
    assert len(inner) >= 2
    if X86:
        assert {precision for precision, _ in inner} == {"u8"}


@pytest.mark.skipif(not X86, reason="only of x86 CPUs can oneDNN imitate older ones")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_VNNI"])
def test_and_on_older_cpus(isa):
    code = "import test_int8_openvino as t; print(t.check_every_layer('vgg')[-1])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert "amx" not in out.stdout


@pytest.mark.parametrize("kind", ["vgg", "columns", "normed"])
def test_a_small_network_answers_as_its_quantizers_do_in_float(kind):
    quantized, _, _ = int8_of(network(kind), picture())
    feeds = {"image": picture(96, 128, seed=5)}
    expected = run(unsigned_activations(quantized), feeds, optimise=False)["density"]
    got = OpenVinoEngine(quantized.SerializeToString()).run(feeds)["density"]
    scale = np.abs(expected).max()
    assert expected.std() > 0.05 * scale
    # one code that a tie took to the other side moves a cell by about 1e-3
    assert (np.abs(got - expected) > 1e-5 * scale).mean() < 0.05
    assert np.abs(got - expected).max() < 0.05 * scale
