import errno
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from crowdrt import __version__
from crowdrt.contracts import IMAGENET, TensorSpec
from crowdrt.engines.base import open_engine
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.torch_eager import TorchEngine
from crowdrt.errors import CrowdRTError, EngineError, ExportError, ParityError
from crowdrt.export import onnx_export
from crowdrt.export.deploy import ShippedNetwork, deploy
from crowdrt.export.onnx_export import export_onnx
from crowdrt.export.parity import prove_parity
from crowdrt.manifest import read_manifest
from crowdrt.models import build_model
from crowdrt.models.network import Network
from crowdrt.onnx_file import graph_info, read_onnx

NO_FILES: list[str] = []


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def paths_of_this_machine(path) -> list[bytes]:
    text = path.read_bytes() + path.with_name(path.name + ".json").read_bytes()
    folders = {Path(__file__).parents[2], Path(torch.__file__).parents[1], path.parent}
    return [part for part in (b".py", *(str(each).encode() for each in folders)) if part in text]


def test_a_network_of_the_zoo_end_to_end(tmp_path, info, pictures, capsys):
    # with the real simplifier: the pipeline's own path
    torch.manual_seed(0)
    model = deploy(build_model("csrnet", Fraction(1, 16)), torch.randn(1, 3, 64, 96))
    path = tmp_path / "csrnet.onnx"
    artifact = export_onnx(model, info, path, size=None, images=pictures)
    assert (artifact.path, artifact.kind, artifact.reused) == (path, "onnx", False)
    facts = read_manifest(path)["facts"]
    assert facts["simplification"].startswith("simplified: ")
    assert facts["nodes"] == len(operators(path)) == 42
    assert facts["parity"]["max_rel"] < 1e-5
    assert facts["parity"]["sizes"] == [[64, 88], [40, 48], [32, 40]]
    assert operators(path)[:4] == ["Cast", "Sub", "Div", "Conv"]  # normalisation comes first
    output = capsys.readouterr()
    assert output.out == ""
    assert "csrnet.onnx: simplified" in output.err


def test_a_fixed_size_takes_one_image_of_it(tiny, info, tmp_path, no_simplifier):
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=(40, 64))
    engine = open_engine(path)
    assert engine.inputs == (TensorSpec(name="image", shape=(1, 3, 40, 64), dtype="uint8"),)
    assert engine.outputs == (
        TensorSpec(name="density", shape=(1, 1, 5, 8), dtype="float32"),
        TensorSpec(name="count", shape=(1,), dtype="float32"),
    )
    with pytest.raises(EngineError, match="--size dynamic"):
        engine.run({"image": np.zeros((1, 3, 40, 72), np.uint8)})


def test_the_file_says_who_made_it_and_what_it_is(tiny, info, tmp_path, no_simplifier):
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=None)
    model = read_onnx(path)
    assert (model.producer_name, model.producer_version) == ("crowdrt", __version__)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert graph_info(path) == info
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["density", "count"]
    assert open_engine(path).inputs[0].shape == ("batch", 3, "height", "width")
    assert not paths_of_this_machine(path)


def test_normalised_input_takes_floats(tiny, info, tmp_path, no_simplifier):
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=None, normalised_input=True)
    engine = open_engine(path)
    assert engine.inputs[0].dtype == "float32"
    assert graph_info(path).normalised_input
    assert "Cast" not in operators(path)
    image = torch.randn(1, 3, 32, 40)
    expected = tiny(image).detach().numpy()
    assert expected.std() > 1e-2
    np.testing.assert_allclose(engine.run({"image": image.numpy()})["density"], expected, atol=1e-5)


def test_engines_agree_through_the_same_feeds(tiny, info, tmp_path, pictures, no_simplifier):
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=None)
    reference = TorchEngine(ShippedNetwork(tiny, tiny.preprocessing), info)
    engine = open_engine(path)
    for picture in pictures:
        expected = reference.run({"image": picture})
        got = engine.run({"image": picture})
        assert expected["density"].std() > 1e-2
        np.testing.assert_allclose(got["density"], expected["density"], atol=1e-4)
        np.testing.assert_allclose(got["count"], expected["count"], rtol=1e-4)


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_opsets(tiny, info, tmp_path, no_simplifier, opset):
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=None, opset=opset)
    model = onnx.load(path)
    assert model.opset_import[0].version == opset
    assert model.ir_version <= 9  # TensorRT 8.6 to 11 read it


@pytest.mark.parametrize("opset", [7, 12, 21])
def test_an_unsupported_opset_is_refused_before_any_work(tiny, info, tmp_path, monkeypatch, opset):
    monkeypatch.setattr(onnx_export, "to_onnx", None)
    with pytest.raises(ExportError, match=f"opset {opset}") as caught:
        export_onnx(tiny, info, tmp_path / "no.onnx", size=None, opset=opset)
    assert "13 to 20" in caught.value.fix


@pytest.mark.parametrize(
    ("size", "problem", "fix"),
    [
        ((577, 865), "577x865 px .* no multiple of 8", "584x872.*576x864.*dynamic"),
        ((576, 860), "576x860", "576x864.*576x856"),
        ((24, 64), "24x64 px .* too small", "at least 32"),
        ((0, 64), "0x64", "at least 32"),
        ((-8, 64), "-8x64", "at least 32"),
    ],
)
def test_a_size_that_cannot_be(tiny, info, tmp_path, size, problem, fix):
    with pytest.raises(ExportError, match=problem) as caught:
        export_onnx(tiny, info, tmp_path / "no.onnx", size=size)
    assert caught.match(fix)
    assert list(tmp_path.iterdir()) == NO_FILES


def test_nothing_is_done_twice(tiny, info, tmp_path, no_simplifier, monkeypatch):
    path = tmp_path / "tiny.onnx"
    first = export_onnx(tiny, info, path, size=None)
    export = onnx_export.to_onnx
    monkeypatch.setattr(onnx_export, "to_onnx", None)
    again = export_onnx(tiny, info, path, size=None)
    assert again == replace(first, reused=True)
    monkeypatch.setattr(onnx_export, "to_onnx", export)
    tiny.last.weight.data.mul_(1.001)
    assert not export_onnx(tiny, info, path, size=None).reused  # other weights
    assert not export_onnx(tiny, info, path, size=(32, 40)).reused
    path.write_bytes(path.read_bytes()[:-1])
    assert not export_onnx(tiny, info, path, size=(32, 40)).reused  # damaged


def test_made_from_is_in_the_manifest(tiny, info, tmp_path, no_simplifier):
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=None, made_from={"sha256": "abc"})
    assert read_manifest(path)["made_from"]["weights"] == {"sha256": "abc"}
    assert export_onnx(tiny, info, path, size=None, made_from={"sha256": "abc"}).reused
    assert not export_onnx(tiny, info, path, size=None, made_from={"sha256": "def"}).reused


def test_the_structure_is_part_of_what_a_network_is_made_from(make_network):
    torch.manual_seed(0)
    first = make_network()
    torch.manual_seed(0)
    second = make_network()
    assert onnx_export.network_hash(first) == onnx_export.network_hash(second)
    second.first.dilation = (1, 1)  # the same weights
    assert onnx_export.network_hash(first) != onnx_export.network_hash(second)


@pytest.mark.parametrize("size", [None, (40, 64)])
def test_the_other_exporter_takes_over(
    tiny, info, tmp_path, pictures, no_simplifier, monkeypatch, capfd, size
):
    def fail(*_):
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(onnx_export, "_trace", fail)
    path = tmp_path / "tiny.onnx"
    export_onnx(tiny, info, path, size=size, opset=18)
    assert read_manifest(path)["facts"]["exporter"] == "dynamo"
    shape = (1, 3, *size) if size else ("batch", 3, "height", "width")
    assert open_engine(path).inputs[0].shape == shape
    assert onnx.load(path).ir_version <= 9
    assert not paths_of_this_machine(path)
    assert capfd.readouterr().out == ""
    if size is None:
        prove_parity(tiny, path, pictures)


class Pixelwise(Network):
    """A map of the image's size."""

    preprocessing = IMAGENET
    density_stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(3, 1, 1)
        torch.nn.init.constant_(self.head.weight, 0.01)
        torch.nn.init.constant_(self.head.bias, 1.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image)


def test_a_count_is_the_sum_of_a_large_map(info, tmp_path):
    """With the real simplifier, which likes to merge sums."""
    path = tmp_path / "pixelwise.onnx"
    export_onnx(Pixelwise().eval(), replace(info, density_stride=1), path, size=(1024, 1456))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 1024, 1456), dtype=np.uint8)
    outputs = open_engine(path).run({"image": image})
    exact = outputs["density"].sum(dtype=np.float64)
    assert exact > 1e6
    assert abs(outputs["count"][0] - exact) < 1e-6 * exact


def test_tracing_keeps_no_activation_for_gradients(tiny):
    kept = []
    tiny.last.register_forward_hook(lambda _, __, output: kept.append(output.requires_grad))
    onnx_export.to_onnx(ShippedNetwork(tiny, tiny.preprocessing), (40, 64), 17)
    assert set(kept) == {False}


def test_both_exporters_failing_says_why(tiny, info, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("aten::strange is not supported\n  long story")

    monkeypatch.setattr(onnx_export, "_trace", fail)
    monkeypatch.setattr(onnx_export, "_dynamo", fail)
    with pytest.raises(ExportError, match="trace: aten::strange is not supported; dynamo"):
        export_onnx(tiny, info, tmp_path / "no.onnx", size=None)
    assert list(tmp_path.iterdir()) == NO_FILES


def test_a_graph_that_answers_differently_never_takes_the_name(
    tiny, info, tmp_path, no_simplifier, monkeypatch
):
    path = tmp_path / "tiny.onnx"
    path.write_text("an older export")
    export = onnx_export.to_onnx

    def altered(shipped, size, opset):
        shipped.network.last.bias.data.add_(0.1)
        exported = export(shipped, size, opset)
        shipped.network.last.bias.data.sub_(0.1)
        return exported

    monkeypatch.setattr(onnx_export, "to_onnx", altered)
    with pytest.raises(ParityError):
        export_onnx(tiny, info, path, size=None)
    assert path.read_text() == "an older export"
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_nothing(
    tiny, info, tmp_path, no_simplifier, monkeypatch, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(onnx, "save", fail)
    expected = CrowdRTError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export_onnx(tiny, info, tmp_path / "tiny.onnx", size=None)
    assert list(tmp_path.iterdir()) == NO_FILES


def test_the_manifest_is_json_with_a_hash(tiny, info, tmp_path, no_simplifier):
    artifact = export_onnx(tiny, info, tmp_path / "tiny.onnx", size=(32, 40))
    document = json.loads((tmp_path / "tiny.onnx.json").read_text())
    assert document["sha256"] == artifact.sha256
    assert document["made_from"]["size"] == [32, 40]
    assert document["facts"]["exporter"] == "trace"


def test_a_network_may_answer_with_a_count_alone(total, info, tmp_path, no_simplifier):
    path = export_onnx(total, info, tmp_path / "total.onnx", size=None).path
    engine = OrtEngine(path)
    assert [(spec.name, spec.shape) for spec in engine.outputs] == [("count", (1,))]
    assert engine.inputs[0].shape == (1, 3, 32, 48)
    total.last.bias.data += 0.1
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 48), dtype=np.uint8)
    with pytest.raises(ParityError, match="count by"):
        prove_parity(total, path, [image])


def test_a_kept_output_comes_beside_the_count(total, info, tmp_path, no_simplifier):
    total.keep("density")
    path = export_onnx(total, info, tmp_path / "total.onnx", size=None).path
    assert [spec.name for spec in OrtEngine(path).outputs] == ["density", "count"]
    with pytest.raises(ExportError, match="no output 'density:9x9'") as caught:
        total.keep("density:9x9")
    assert "--output count or --output density" in caught.value.fix


def test_a_blind_count_proves_nothing(total, info, tmp_path, no_simplifier):
    total.first.weight.data.zero_()
    with pytest.raises(ParityError, match="proves nothing"):
        export_onnx(total, info, tmp_path / "blind.onnx", size=None)


def test_sizes_that_a_network_cannot_take_are_refused(total, tiny, info, tmp_path):
    with pytest.raises(ExportError, match=r"takes 32x48 px .* and nothing else"):
        export_onnx(total, info, tmp_path / "a.onnx", size=(64, 48))
    tiny.static_only = "its windows depend on the size"
    with pytest.raises(ExportError, match="every size: its windows") as caught:
        export_onnx(tiny, info, tmp_path / "a.onnx", size=None)
    assert "--size 576x864" in caught.value.fix
