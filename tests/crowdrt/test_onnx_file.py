import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.contracts import IMAGENET, GraphInfo
from crowdrt.errors import ExportError
from crowdrt.onnx_file import external_files, fed, graph_info, read_onnx, set_info, spec_of

INFO = GraphInfo(network="tiny", width="1", preprocessing=IMAGENET, density_stride=8)


def scaling(values: int = 64) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "weight"], ["y"])],
        "scaling",
        [value("x", TensorProto.FLOAT, [values])],
        [value("y", TensorProto.FLOAT, [values])],
        [numpy_helper.from_array(np.arange(values, dtype=np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.onnx"
    model = scaling()
    set_info(model, INFO)
    onnx.save(model, path)
    return path


def test_axes_that_no_caller_can_fill_are_free():
    model = scaling()
    model.graph.input.append(
        helper.make_tensor_value_info("image", TensorProto.UINT8, [0, -1, "h", None, 5])
    )
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [64]))
    x, image = map(spec_of, fed(model))  # older exporters list what is stored as inputs, too
    assert (x.shape, x.dtype) == ((64,), "float32")
    assert (image.name, image.dtype) == ("image", "uint8")
    assert image.shape == ("axis0", "axis1", "h", "axis3", 5)


def test_round_trip(written):
    assert read_onnx(written).graph.name == "scaling"
    assert graph_info(written) == INFO
    assert external_files(written) == []


def test_info_replaces_older_info_and_nothing_else():
    model = scaling()
    model.metadata_props.add(key="author", value="somebody")
    set_info(model, INFO)
    set_info(model, INFO)
    assert sorted(entry.key for entry in model.metadata_props) == ["author", "crowdrt"]


def test_every_truncation_is_refused(written):
    whole = written.read_bytes()
    for length in [0, 1, 2, 10, *range(20, len(whole) - 1, 37), len(whole) - 1]:
        written.write_bytes(whole[:length])
        with pytest.raises(ExportError, match=r"model\.onnx"):
            graph_info(written)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\xff\xd8\xff\xe0JFIF" * 20, b"PK\x03\x04" + bytes(100), b"{}"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "photo.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"photo\.onnx") as caught:
        read_onnx(path)
    assert "crowdrt export" in caught.value.fix


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(ExportError, match="does not exist"):
            read_onnx(path)


def test_an_invalid_graph(tmp_path):
    model = scaling()
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(ExportError, match=r"not a valid ONNX network: .*nowhere"):
        read_onnx(tmp_path / "bad.onnx")


def test_the_network_of_another_tool(tmp_path):
    path = tmp_path / "foreign.onnx"
    onnx.save(scaling(), path)
    assert read_onnx(path)
    with pytest.raises(ExportError, match="was not exported by crowdrt") as caught:
        graph_info(path)
    assert "crowdrt export" in caught.value.fix


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"preprocessing": {}}', "null"])
def test_metadata_that_cannot_be_read(tmp_path, text):
    model = scaling()
    model.metadata_props.add(key="crowdrt", value=text)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError, match=r"odd\.onnx: its crowdrt metadata"):
        graph_info(tmp_path / "odd.onnx")


@pytest.fixture
def split(tmp_path):
    """A network whose weights lie in a file of their own."""
    folder = tmp_path / "split"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(scaling(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def relocate(path, location):
    model = onnx.load(path, load_external_data=False)
    entry = next(e for e in model.graph.initializer[0].external_data if e.key == "location")
    entry.value = location
    path.write_bytes(model.SerializeToString())


def test_weights_in_a_file_beside_it_are_read(split):
    weight = numpy_helper.to_array(read_onnx(split).graph.initializer[0])
    np.testing.assert_array_equal(weight, np.arange(64))
    assert external_files(split) == [split.parent / "weights.bin"]


def parent_folder(split):
    (split.parent / "weights.bin").rename(split.parent.parent / "weights.bin")
    relocate(split, "../weights.bin")


def absolute_path(split):
    relocate(split, str(split.parent / "weights.bin"))


def symbolic_link(split):
    (split.parent / "weights.bin").rename(split.parent.parent / "secret.bin")
    (split.parent / "weights.bin").symlink_to(split.parent.parent / "secret.bin")


def hard_link(split):
    (split.parent / "weights.bin").rename(split.parent.parent / "secret.bin")
    os.link(split.parent.parent / "secret.bin", split.parent / "weights.bin")


def missing(split):
    (split.parent / "weights.bin").unlink()


def cut_short(split):
    os.truncate(split.parent / "weights.bin", 10)


@pytest.mark.parametrize(
    "attack", [parent_folder, absolute_path, symbolic_link, hard_link, missing, cut_short]
)
@pytest.mark.parametrize("reader", [read_onnx, external_files])
def test_unsafe_weights_files_are_refused(split, attack, reader):
    attack(split)
    with pytest.raises(ExportError, match="missing or not safe to read") as caught:
        reader(split)
    assert "beside it" in caught.value.fix
