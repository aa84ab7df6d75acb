from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from crowdrt.contracts import IMAGENET, Preprocessing
from crowdrt.errors import ParityError
from crowdrt.export.onnx_export import export_onnx
from crowdrt.export.parity import probe_images, probe_sizes, prove_parity


@pytest.fixture
def exported(tiny, info, tmp_path, no_simplifier):
    return export_onnx(tiny, info, tmp_path / "tiny.onnx", size=None).path


def test_pytorch_and_the_file_agree_at_several_sizes(tiny, exported, pictures):
    parity = prove_parity(tiny, exported, pictures)
    assert parity.sizes == ((64, 88), (40, 48), (32, 40))
    assert 0 <= parity.max_rel < 1e-5
    assert parity.max_count < 1e-3
    assert parity.to_facts()["max_abs"] == parity.max_abs


def alter(path, name, change):
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("network.last.bias", lambda bias: bias + np.float32(0.01)),
        ("network.first.weight", lambda weight: weight * np.float32(1.01)),
        ("network.last.bias", lambda bias: bias * np.float32("nan")),
    ],
)
def test_a_file_that_differs_is_caught(tiny, exported, pictures, name, change):
    alter(exported, name, change)
    with pytest.raises(ParityError, match=r"at 64x88 px the ONNX file differs from PyTorch"):
        prove_parity(tiny, exported, pictures)


def test_a_wrong_count_is_caught_though_the_density_is_right(tiny, exported, pictures):
    model = onnx.load(exported)
    last = model.graph.node[-1]
    assert list(last.output) == ["count"]
    model.graph.node[-1].output[0] = "sum"
    model.graph.node.append(onnx.helper.make_node("Abs", ["sum"], ["positive"]))
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["positive"], ["count"]))
    onnx.save(model, exported)
    with pytest.raises(ParityError, match="people"):
        prove_parity(tiny, exported, pictures)


def test_other_normalisation_is_caught(tiny, exported, pictures):
    tiny.preprocessing = replace(IMAGENET, mean=(120.0,) * 3)
    with pytest.raises(ParityError, match="differs"):
        prove_parity(tiny, exported, pictures)


def test_two_constants_prove_nothing(tiny, info, tmp_path, no_simplifier):
    tiny.last.weight.data.zero_()
    with pytest.raises(ParityError, match="proves nothing") as caught:
        export_onnx(tiny, info, tmp_path / "constant.onnx", size=None)
    assert "trained weights" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_ignores_the_image_proves_nothing(tiny, info, tmp_path, no_simplifier):
    # what it answers still varies: the second convolution pads with zeros
    tiny.first.weight.data.zero_()
    tiny.first.bias.data.fill_(1.0)
    assert tiny(torch.rand(1, 3, 64, 64)).std() > 1e-2
    with pytest.raises(ParityError, match=r"its negative 0\)"):
        export_onnx(tiny, info, tmp_path / "blind.onnx", size=None)


def test_no_image_at_all(tiny, exported):
    with pytest.raises(ParityError, match="proves nothing"):
        prove_parity(tiny, exported, [])


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_probes_differ_from_each_other_and_inside(channels, stride):
    number = 3 if channels == "rgb" else 1
    mean = (127.5,) * number
    preprocessing = Preprocessing(channels=channels, mean=mean, std=mean, stride=stride)
    sizes = probe_sizes(stride)
    probes = probe_images(preprocessing, sizes)
    assert [probe.shape for probe in probes] == [(1, number, *size) for size in sizes]
    assert all(probe.dtype == np.uint8 and probe.std() > 20 for probe in probes)
    assert np.diff([probe.mean() for probe in probes]).min() > 5
    assert not any(side % stride for size in sizes for side in size)
