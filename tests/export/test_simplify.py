import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.export.simplify import simplify


@pytest.fixture
def model() -> onnx.ModelProto:
    """Free height and width; an Identity and a foldable pair of constants to remove."""
    nodes = [
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Mul", ["same", "three"], ["density"]),
    ]
    shape = ["batch", 1, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(i), n) for i, n in ((1, "one"), (2, "two"))],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made.metadata_props.add(key="author", value="kept")
    return made


@pytest.fixture
def probes() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {"image": rng.normal(size=(1, 1, *size)).astype(np.float32)} for size in ((4, 6), (5, 3))
    ]


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_onnxsim_removes_nodes_and_free_axes_survive(model, probes, capsys):
    simpler, note = simplify(model, probes)
    assert note == "simplified: 3 -> 1 nodes"
    assert [node.op_type for node in simpler.graph.node] == ["Mul"]
    assert shape_of(simpler.graph.input[0]) == ["batch", 1, "height", "width"]
    assert [(entry.key, entry.value) for entry in simpler.metadata_props] == [("author", "kept")]
    assert capsys.readouterr().out == ""


def replaced(model: onnx.ModelProto, change) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    change(other.graph)
    return other


def wrong_constant(graph):
    graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(2.001), "two"))


def fixed_axis(graph):
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_value = 4


def renamed_output(graph):
    graph.node[-1].output[0] = graph.output[0].name = "other"


def bloated(graph):
    graph.initializer.append(numpy_helper.from_array(np.zeros(2**17, np.float32), "bulk"))


def broken(graph):
    graph.node[-1].input[0] = "nowhere"


def other_results_at_odd_sizes(graph):
    # right at 4x6, wrong at 5x3: only a second probe shows it
    del graph.node[:]
    graph.initializer.append(numpy_helper.from_array(np.full((4, 1), 3, np.float32), "rows"))
    graph.node.append(helper.make_node("Mul", ["image", "rows"], ["density"]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (wrong_constant, "changed density"),
        (fixed_axis, "free axes"),
        (renamed_output, "names"),
        (bloated, "times as large"),
        (broken, "nowhere"),
        (other_results_at_odd_sizes, "ONNX Runtime failed"),
    ],
)
def test_a_spoilt_graph_is_not_taken(model, probes, monkeypatch, change, reason):
    spoilt = SimpleNamespace(simplify=lambda graph: (replaced(graph, change), True))
    monkeypatch.setitem(sys.modules, "onnxsim", spoilt)
    kept, note = simplify(model, probes)
    assert kept is model
    assert note.startswith("kept as exported: ")
    assert reason in note


def fix_sizes(graph, size):
    for i, axis in enumerate(graph.input[0].type.tensor_type.shape.dim):
        axis.dim_value = (1, 1, *size)[i]


def test_an_output_of_a_fixed_graph_may_learn_its_size(model, probes):
    """The exporter names an axis that it cannot work out; onnxsim then finds the number."""
    fix_sizes(model.graph, (4, 6))
    simpler, note = simplify(model, probes[:1])
    assert note == "simplified: 3 -> 1 nodes"
    assert shape_of(simpler.graph.output[0]) == [1, 1, 4, 6]


def other_number(graph):
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def second_output(graph):
    graph.output.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, [1, 1, 4, 6]))


@pytest.mark.parametrize("change", [other_number, second_output])
def test_nothing_else_of_a_fixed_graph_changes(model, probes, monkeypatch, change):
    fix_sizes(model.graph, (4, 6))
    spoilt = SimpleNamespace(simplify=lambda graph: (replaced(graph, change), True))
    monkeypatch.setitem(sys.modules, "onnxsim", spoilt)
    kept, note = simplify(model, probes[:1])
    assert kept is model
    assert "names, types or free axes" in note


def test_a_failing_or_missing_onnxsim_keeps_the_graph(model, probes, monkeypatch):
    def fail(_):
        raise RuntimeError("Nodes in a graph must be topologically sorted\nand more")

    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(simplify=fail))
    assert simplify(model, probes) == (
        model,
        "kept as exported: Nodes in a graph must be topologically sorted",
    )
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    _, note = simplify(model, probes)
    assert "onnxsim could not be imported" in note
