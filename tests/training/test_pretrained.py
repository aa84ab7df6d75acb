"""Weights to begin with: taken by name and shape, never by guessing, and never as code."""

from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

from crowdrt.errors import CrowdRTError, TrainingError
from crowdrt.models import build_model
from crowdrt.training.pretrained import load_by_name

NARROW = Fraction(1, 16)


def vgg(**tensors):
    """Names as torchvision gives VGG's, of which CSRNet's front end has the first ten layers."""
    return {f"features.{name.replace('_', '.')}": tensor for name, tensor in tensors.items()}


def test_a_backbones_layers_are_taken_by_their_places(tmp_path, capsys):
    model = build_model("csrnet", NARROW)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = vgg(**{"0_weight": torch.rand(4, 3, 3, 3), "0_bias": torch.rand(4)})
    save_file({**tensors, "classifier.0.weight": torch.rand(5, 5)}, tmp_path / "vgg.safetensors")
    assert load_by_name(model, tmp_path / "vgg.safetensors") == 2
    after = model.state_dict()
    assert torch.equal(after["front_end.0.weight"], tensors["features.0.weight"])
    assert torch.equal(after["front_end.0.bias"], tensors["features.0.bias"])
    changed = {name for name in own if not torch.equal(own[name], after[name])}
    assert changed == {"front_end.0.weight", "front_end.0.bias"}
    assert "2 tensors taken over, 32 of the network begin" in capsys.readouterr().err


def test_a_layer_of_another_shape_begins_from_scratch(tmp_path):
    model = build_model("csrnet", NARROW)
    tensors = vgg(**{"0_weight": torch.rand(64, 3, 3, 3), "0_bias": torch.rand(4)})
    save_file(tensors, tmp_path / "vgg.safetensors")
    assert load_by_name(model, tmp_path / "vgg.safetensors") == 1


def test_a_checkpoint_of_pytorch_is_read_as_data(tmp_path):
    model = build_model("csrnet", NARROW)
    state = {f"module.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "csrnet.pth")
    assert load_by_name(model, tmp_path / "csrnet.pth") == len(state)
    assert torch.equal(model.state_dict()["front_end.0.bias"], state["module.front_end.0.bias"])


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"a": torch.rand(2)}, tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match="none of its 1 tensors") as caught:
        load_by_name(build_model("csrnet", NARROW), tmp_path / "other.safetensors")
    assert "--init" in caught.value.fix


@pytest.mark.parametrize("name", ["none.safetensors", "broken.safetensors", "broken.pth"])
def test_a_missing_or_damaged_file_is_refused(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(CrowdRTError, match=name) as caught:
        load_by_name(build_model("csrnet", NARROW), tmp_path / name)
    assert caught.value.fix
