"""Weights of pruned networks: the shapes of their tensors say what is left, and are checked."""

import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from crowdrt.contracts import METADATA_KEY
from crowdrt.errors import WeightsError
from crowdrt.models import build_model
from crowdrt.models.narrowing import resize
from crowdrt.models.weights import load_into, load_network, load_outline, save_weights
from crowdrt.models.weights_info import describe_weights

EIGHTH = Fraction(1, 8)
LEFT = 5  # of the first convolution's 8 channels


def first_cut(model, left=LEFT):
    """Keep the first channels between a network's first two convolutions."""
    tensors = dict(model.state_dict())
    tensors["front_end.0.weight"] = tensors["front_end.0.weight"][:left].clone()
    tensors["front_end.0.bias"] = tensors["front_end.0.bias"][:left].clone()
    tensors["front_end.2.weight"] = tensors["front_end.2.weight"][:, :left].clone()
    return tensors


@pytest.fixture
def whole():
    torch.manual_seed(0)
    return build_model("csrnet", EIGHTH).eval()


@pytest.fixture
def pruned(whole):
    """A network of which three channels are gone."""
    tensors = first_cut(whole)
    model = build_model("csrnet", EIGHTH).eval()
    resize(model, {name: tuple(each.shape) for name, each in tensors.items()})
    model.load_state_dict(tensors)
    return model


@pytest.fixture
def written(pruned, tmp_path):
    path = tmp_path / "pruned.safetensors"
    save_weights(pruned, path, network="csrnet", width=EIGHTH, facts={"mae": 1.5})
    return path


def rewritten(path, tensors, **changes):
    text = {"format": 1, "network": "csrnet", "width": "1/8", "facts": {}, "pruned": True}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(text | changes)})
    return path


def test_a_pruned_network_comes_back(pruned, written):
    loaded, network, width = load_network(written)
    image = torch.randn(1, 3, 64, 96)
    expected = pruned(image)
    assert expected.std() > 0
    assert (network, width, loaded.pruned) == ("csrnet", EIGHTH, True)
    assert loaded.front_end[0].out_channels == loaded.front_end[2].in_channels == LEFT
    torch.testing.assert_close(loaded(image), expected, rtol=0, atol=0)


def test_it_fills_a_whole_network_that_is_given(pruned, written):
    other = build_model("csrnet", EIGHTH)
    load_into(other, written, network="csrnet", width=EIGHTH)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other(image), pruned(image), rtol=0, atol=0)


def test_its_outline_has_shapes_and_no_numbers(pruned, written):
    outline, network, width = load_outline(written)
    assert (network, width) == ("csrnet", EIGHTH)
    assert {each.device.type for each in outline.state_dict().values()} == {"meta"}
    assert [p.shape for p in outline.parameters()] == [p.shape for p in pruned.parameters()]


def test_it_is_described_without_pytorch(written):
    code = (
        "import sys; from pathlib import Path\n"
        "from crowdrt.models.weights_info import describe_weights\n"
        "print(describe_weights(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(written)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "csrnet at width 1/8, pruned False\n"


def test_a_whole_network_does_not_say_that_it_was_pruned(whole, tmp_path):
    path = tmp_path / "whole.safetensors"
    save_weights(whole, path, network="csrnet", width=EIGHTH)
    assert b"pruned" not in path.read_bytes()
    assert not describe_weights(path).pruned
    assert not load_network(path)[0].pruned


def test_a_narrowed_network_that_does_not_say_so_is_not_saved(pruned, tmp_path):
    pruned.pruned = False
    with pytest.raises(WeightsError, match=r"front_end.0.weight is \(5, 3, 3, 3\) instead of"):
        save_weights(pruned, tmp_path / "w.safetensors", network="csrnet", width=EIGHTH)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_do_not_fit_each_other_are_refused(whole, tmp_path):
    tensors = first_cut(whole)
    tensors["front_end.2.weight"] = whole.state_dict()["front_end.2.weight"]
    with pytest.raises(WeightsError, match="do not fit each other"):
        load_network(rewritten(tmp_path / "w.safetensors", tensors))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("front_end.0.weight", (9, 3, 3, 3)),  # more than the whole network has
        ("front_end.0.weight", (5, 3, 1, 1)),
        ("front_end.0.weight", (5, 27)),
        ("front_end.0.weight", (0, 3, 3, 3)),
        ("front_end.0.bias", (5, 1)),
        ("front_end.0.bias", (4,)),
        ("density_head.weight", (0, 8, 1, 1)),
        ("front_end.0.weight", (5, 2, 3, 3)),  # the image has three planes
    ],
    ids=str,
)
def test_shapes_that_no_pruning_leaves_are_refused(whole, tmp_path, name, shape):
    tensors = first_cut(whole) | {name: torch.zeros(shape)}
    with pytest.raises(WeightsError) as caught:
        load_network(rewritten(tmp_path / "w.safetensors", tensors))
    assert caught.value.fix.endswith("--data DIR -o OUT")


def test_larger_tensors_are_named_with_what_the_whole_network_has(whole, tmp_path):
    tensors = first_cut(whole) | {"front_end.0.weight": torch.zeros(9, 3, 3, 3)}
    found = r"front_end.0.weight is \(9, 3, 3, 3\) where the whole network has \(8, 3, 3, 3\)"
    with pytest.raises(WeightsError, match=f"no pruned network: {found}"):
        load_network(rewritten(tmp_path / "w.safetensors", tensors))


def test_another_answer_than_the_whole_networks_is_refused(tmp_path):
    whole = build_model("deepcount", EIGHTH)
    path = rewritten(tmp_path / "w.safetensors", dict(whole.state_dict()), network="deepcount")
    with pytest.raises(WeightsError, match="not pruned here"):
        load_network(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("context.scales.0.weight", "channels meet"),  # PyTorch would repeat it 64 times
        ("back_end.0.1.running_mean", "BatchNorm2d"),
    ],
)
def test_what_pytorch_would_repeat_or_pass_over_is_refused(tmp_path, name, message):
    tensors = dict(build_model("can", EIGHTH).state_dict())
    tensors[name] = tensors[name][:1].clone()
    path = rewritten(tmp_path / "w.safetensors", tensors, network="can")
    with pytest.raises(WeightsError, match=message):
        load_network(path)


def test_a_huge_tensor_is_refused_by_the_header_alone(written):
    content = written.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["front_end.0.weight"]["shape"] = [2**20, 2**20, 3, 3]
    text = json.dumps(header).encode()
    written.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(WeightsError):
        load_network(written)


@pytest.mark.parametrize("pruned", ["yes", 1, None, [True]], ids=str)
def test_a_word_that_is_neither_true_nor_false_is_refused(whole, tmp_path, pruned):
    path = rewritten(tmp_path / "w.safetensors", first_cut(whole), pruned=pruned)
    with pytest.raises(WeightsError, match="does not say which network"):
        load_network(path)


def test_a_refused_file_leaves_the_network_as_it_was(whole, tmp_path):
    tensors = first_cut(whole)
    tensors["density_head.bias"] = torch.tensor([float("nan")])
    path = rewritten(tmp_path / "w.safetensors", tensors)
    before = {name: each.clone() for name, each in whole.state_dict().items()}
    with pytest.raises(WeightsError, match="NaN"):
        load_into(whole, path, network="csrnet", width=EIGHTH)
    assert not whole.pruned
    assert all(torch.equal(before[name], each) for name, each in whole.state_dict().items())


def test_another_width_names_both(written):
    with pytest.raises(WeightsError, match="csrnet at width 1/8, pruned, not csrnet at width 1/4"):
        load_into(
            build_model("csrnet", Fraction(1, 4)), written, network="csrnet", width=Fraction(1, 4)
        )


def test_tensors_of_a_pruned_file_that_claims_to_be_whole_are_refused(whole, tmp_path):
    path = rewritten(tmp_path / "w.safetensors", first_cut(whole), pruned=False)
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_network(path)


def test_equal_networks_are_equal_files(pruned, written, tmp_path):
    again = tmp_path / "again.safetensors"
    loaded, network, width = load_network(written)
    save_weights(loaded, again, network=network, width=width, facts={"mae": 1.5})
    assert again.read_bytes() == written.read_bytes()
    assert load_file(again).keys() == pruned.state_dict().keys()
