from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.normalisation import without_std

# Two convolutions read the normalised photograph, as in a network of several columns.
COLUMNS = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[n, 3, h, w] image) => (float[n, 4, h, w] density)
{
    pixels = Cast <to = 1> (image)
    centred = Sub (pixels, mean)
    scaled = Div (centred, std)
    c1 = Conv <pads = [1, 1, 1, 1]> (scaled, w1, b1)
    c2 = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (scaled, w2)
    density = Add (c1, c2)
}
"""
ALSO_READ = COLUMNS.replace(
    "density = Add (c1, c2)",
    "c3 = Add (c1, c2)\n d = Relu (scaled)\ne = Concat <axis = 1> (d, m1)\n density = Add (c3, e)",
)

BRANCH = """chosen = If (bright) <
        then_branch = there () => (float[n, 4, h, w] t) { t = Conv (READ, w3) },
        else_branch = here () => (float[n, 4, h, w] e) { e = Identity (c2) }
    >
    density = Add (c1, chosen)"""
BRANCHING = COLUMNS.replace(
    "density = Add (c1, c2)",
    f"total = ReduceSum <keepdims = 0> (centred)\n bright = Cast <to = 9> (total)\n {BRANCH}",
)


@pytest.fixture
def built(from_text) -> Callable[[str], onnx.ModelProto]:
    mean, std = (123.7, 116.3, 103.5), (58.4, 20.1, 90.3)  # far apart: a swap shows
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 3, 3, 3), "b1": (4,)}
    arrays = {
        "mean": np.array(mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.array(std, np.float32).reshape(1, 3, 1, 1),
        "m1": np.zeros((1, 1, 20, 28), np.float32),
    }
    return lambda text: from_text(text, shapes | arrays)


@pytest.fixture
def branching(built) -> Callable[[str], onnx.ModelProto]:
    """Makes a graph of whose If one branch alone reads `w3`, and another tensor."""
    w3 = np.random.default_rng(2).normal(0, 0.3, (4, 3, 1, 1)).astype(np.float32)

    def make(read: str) -> onnx.ModelProto:
        model = onnx.parser.parse_model(BRANCHING.replace("READ", read))
        model.graph.initializer.extend(built(COLUMNS).graph.initializer)
        model.graph.initializer.append(numpy_helper.from_array(w3, "w3"))
        onnx.checker.check_model(model, full_check=True)
        return model

    return make


def answers(model: onnx.ModelProto) -> np.ndarray:
    image = np.random.default_rng(1).integers(0, 256, (1, 3, 20, 28), dtype=np.uint8)
    engine = OrtEngine(model.SerializeToString(), optimise=False)
    return engine.run({"image": image})["density"]


def test_the_division_is_gone_and_the_answer_is_not_changed(built):
    model = built(COLUMNS)
    folded = without_std(model)
    onnx.checker.check_model(folded, full_check=True)
    assert [n.op_type for n in folded.graph.node] == ["Cast", "Sub", "Conv", "Conv", "Add"]
    assert {v.name for v in folded.graph.initializer} & {"std", "w1", "w2"} == set()
    expected = answers(model)
    assert expected.std() > 0.1
    np.testing.assert_allclose(answers(folded), expected, rtol=0, atol=2e-6 * abs(expected).max())


def test_the_model_itself_is_left_alone(built):
    model = built(COLUMNS)
    before = model.SerializeToString()
    without_std(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "text",
    [
        ALSO_READ,
        COLUMNS.replace(
            "=> (float[n, 4, h, w] density)",
            "=> (float[n, 4, h, w] density, float[n, 3, h, w] scaled)",
        ),
        COLUMNS.replace("Conv <pads = [1, 1, 1, 1]> (scaled, w1, b1)", "Relu (scaled)").replace(
            "Add (c1, c2)", "Identity (c2)"
        ),
    ],
    ids=["read by an operator", "an output", "a reader that is no convolution"],
)
def test_a_division_whose_result_others_need_stays(text, built):
    assert without_std(built(text)) is None


def test_a_graph_without_normalisation_is_left_as_it_is(built):
    assert without_std(built(COLUMNS.replace("Div (centred, std)", "Identity (centred)"))) is None


def test_a_division_that_a_branch_reads_stays(branching):
    assert without_std(branching("scaled")) is None


def test_what_a_branch_alone_reads_stays_stored(branching):
    model = branching("centred")
    folded = without_std(model)
    onnx.checker.check_model(folded, full_check=True)
    stored = {value.name for value in folded.graph.initializer}
    assert ("w3" in stored, "std" in stored) == (True, False)
    expected = answers(model)
    assert expected.std() > 0.1
    np.testing.assert_allclose(answers(folded), expected, rtol=0, atol=2e-6 * abs(expected).max())
