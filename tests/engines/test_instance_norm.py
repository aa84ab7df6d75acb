"""Instance norms written out: the same function, and as exact on a large photograph as a small."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.instance_norm import with_exact_norms

NORM = """
<ir_version: 8, opset_import: ["" : OPSET]>
g (float[n, 2, h, w] image) => (float[n, 2, h, w] density)
{
    same = Identity (scale)
    density = InstanceNormalization <epsilon = 0.001> (image, same, bias)
}
"""
SCALE, BIAS = np.array([2.0, -0.5]), np.array([0.25, 3.0])
RAISED = 1.0  # a mean that is not 0, as features behind a ReLU have


def network(text=NORM, *, opset=17):
    model = parser.parse_model(text.replace("OPSET", str(opset)))
    for name, array in (("scale", SCALE), ("bias", BIAS)):
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def features(height, width):
    rng = np.random.default_rng(0)
    return (rng.normal(RAISED, 1, (2, 2, height, width))).astype(np.float32)


def expected(image):
    x = image.astype(np.float64)
    mean, variance = (f(x, axis=(2, 3), keepdims=True) for f in (np.mean, np.var))
    normal = (x - mean) / np.sqrt(variance + 0.001)
    return normal * SCALE[:, None, None] + BIAS[:, None, None]


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_it_is_the_same_function(opset):
    exact = with_exact_norms(network(opset=opset))
    onnx.checker.check_model(exact, full_check=True)
    assert "InstanceNormalization" not in {node.op_type for node in exact.graph.node}
    image = features(24, 40)
    found = OrtEngine(exact.SerializeToString(), optimise=False).run({"image": image})["density"]
    np.testing.assert_allclose(found, expected(image), atol=1e-4)
    assert found.std() > 1


def test_a_large_photograph_is_as_exact_as_a_small_one():
    content = network().SerializeToString()
    image = features(900, 1200)
    right = expected(image)
    ours = OrtEngine(with_exact_norms(network()).SerializeToString()).run({"image": image})[
        "density"
    ]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"image": image})[0]
    off, raw = (float(np.abs(answer - right).max()) for answer in (ours, theirs))
    assert off < 1e-5
    assert raw > 10 * off  # else ONNX Runtime has mended its kernel, and this pass can go


def test_other_shapes_are_left_alone():
    for shape in ("n, 2, w", "n, 2, d, h, w"):
        assert with_exact_norms(network(NORM.replace("n, 2, h, w", shape))) is None
    plain = NORM.replace(
        "InstanceNormalization <epsilon = 0.001> (image, same, bias)", "Relu (image)"
    )
    assert with_exact_norms(network(plain.replace("same = Identity (scale)", ""))) is None
