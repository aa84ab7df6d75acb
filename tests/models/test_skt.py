"""SKT's training student: its digits, its taps, and what is left of it when it ships."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from crowdrt.errors import RecipeError, WeightsError
from crowdrt.export.deploy import deploy
from crowdrt.models import NETWORKS, build_model
from crowdrt.models.skt import SktStudent
from crowdrt.models.taps import forward_tapped, taps_of
from crowdrt.models.weights import import_checkpoint, load_network, save_weights

EIGHTH = Fraction(1, 8)
QUARTER = Fraction(1, 4)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def image_for(height=64, width=96):
    blobs = torch.randn(1, 3, 4, 5)
    return nn.functional.interpolate(blobs, size=(height, width), mode="bilinear")


@pytest.fixture
def student():
    torch.manual_seed(0)
    return build_model("skt", EIGHTH).eval()


@pytest.mark.parametrize(
    ("n", "adapters", "student"),
    [
        (2, 210_176, 4_067_489),
        (3, 140_544, 1_812_326),
        (4, 105_728, 1_017_681),
        (5, 84_608, 647_489),
    ],
)
def test_parameters_of_the_adapters(n, adapters, student):
    with torch.device("meta"):
        model = build_model("skt", Fraction(1, n))
    assert num_parameters(model.adapters) == adapters
    assert num_parameters(model.student) == student
    assert num_parameters(model) == adapters + student


def test_the_whole_training_model_of_the_papers_student():
    assert num_parameters(build_model("skt", QUARTER)) == 1_123_409


def test_what_the_losses_see(student):
    image = image_for()
    outputs = student.forward_train(image)
    cells = [(64, 96), (32, 48), (16, 24), *[(8, 12)] * 3]
    channels = (64, 64, 128, 256, 512, 256)
    shapes = [tuple(feature.shape) for feature in outputs.features]
    assert shapes == [(1, c, *cell) for c, cell in zip(channels, cells, strict=True)]
    assert outputs.density.std() > 1e-3
    torch.testing.assert_close(outputs.density, student(image), rtol=0, atol=0)
    assert all(feature.min() >= 0 and feature.std() > 0 for feature in outputs.features)


def test_a_feature_is_taken_where_the_papers_code_takes_it(student):
    """Worked out by hand from the layers, without the taps."""
    image = image_for()
    with torch.no_grad():
        by_hand = []
        x = image
        for place, layer in enumerate(student.student.front_end):
            x = layer(x)
            if place == 1 or isinstance(layer, nn.MaxPool2d):
                by_hand.append(x.clone())
        for place, layer in enumerate(student.student.back_end):
            x = layer(x)
            if place in (1, 7):  # behind the ReLUs of the first and the fourth convolution
                by_hand.append(x.clone())
        _, tapped = forward_tapped(student.student, student.taps, image)
    assert len(by_hand) == len(tapped) == 6
    assert all(torch.equal(mine, taken) for mine, taken in zip(by_hand, tapped, strict=True))


def test_a_teacher_has_the_channels_that_the_adapters_make():
    for network in ("csrnet", "bl", "sanet"):
        with torch.device("meta"):
            teacher = build_model(network).eval()
            image = torch.empty(1, 3, 64, 96)
        taps = taps_of(teacher)
        _, features = forward_tapped(teacher, taps, image)
        assert [feature.shape[1] for feature in features] == [channels for _, channels in taps]
        student = SktStudent(build_model(network, EIGHTH)).eval()
        adapted = student.forward_train(image_for()).features
        assert [each.shape[1:] for each in adapted] == [each.shape[1:] for each in features]


def test_hooks_are_gone_afterwards(student):
    with pytest.raises(RuntimeError):
        student.forward_train(torch.zeros(1, 5, 64, 64))
    student.forward_train(image_for())
    assert not any(module._forward_hooks for module in student.modules())


def test_every_parameter_learns(student):
    outputs = student.train().forward_train(image_for())
    (outputs.density.sum() + sum(feature.sum() for feature in outputs.features)).backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    assert all(grad.abs().sum() > 0 for name, grad in gradients.items() if "weight" in name)


def test_what_ships_is_the_student(student):
    image = image_for()
    shipped = deploy(student, image)
    names = {name.split(".")[0] for name, _ in shipped.named_parameters()}
    assert names == {"student"}
    assert num_parameters(shipped) == num_parameters(student.student)
    torch.testing.assert_close(shipped(image), student.student(image))


@pytest.mark.parametrize(
    "network", [name for name in NETWORKS if name not in ("csrnet", "bl", "sanet")]
)
def test_networks_of_which_skt_says_nothing(network):
    with torch.device("meta"):
        other = build_model(network, EIGHTH)
    with pytest.raises(RecipeError, match="SKT says nothing"):
        SktStudent(other)


def test_weights_keep_the_adapters(student, tmp_path):
    path = tmp_path / "skt.safetensors"
    save_weights(student, path, network="skt", width=EIGHTH)
    loaded, network, width = load_network(path)
    assert (network, width) == ("skt", EIGHTH)
    image = image_for()
    before, after = (model.forward_train(image) for model in (student, loaded))
    assert before.features[5].std() > 0
    assert all(map(torch.equal, before.features, after.features))


def published_names(student):
    """The state dict of `student` under the names of SKT's own code."""
    front = ["conv0_0", "conv0_1", "conv1_0", "conv1_1", "conv2_0", "conv2_1", "conv2_2",
             "conv3_0", "conv3_1", "conv3_2"]  # fmt: skip
    convs = [*front, *(f"conv4_{i}" for i in range(6))]
    taps = [f"transform{tap}" for tap in ("0_0", "1_0", "2_0", "3_0", "4_0", "4_3")]
    state = {}
    layers = [*student.student.front_end, *student.student.back_end]
    pairs = list(zip(convs, [m for m in layers if isinstance(m, nn.Conv2d)], strict=True))
    pairs += [(name, adapt[0]) for name, adapt in zip(taps, student.adapters, strict=True)]
    for name, conv in pairs:
        state |= {f"{name}.0.weight": conv.weight, f"{name}.0.bias": conv.bias}
    head = student.student.density_head
    return state | {"conv5_0.weight": head.weight, "conv5_0.bias": head.bias}


@pytest.mark.parametrize("names", [published_names, lambda student: student.state_dict()])
def test_a_checkpoint_becomes_the_student_or_the_training_model(student, tmp_path, capsys, names):
    path = tmp_path / "checkpoint.pth"
    state = {f"module.{name}": tensor.detach() for name, tensor in names(student).items()}
    assert len(state) == 34 + 12
    torch.save({"state_dict": state}, path)
    image = image_for()

    shipped = import_checkpoint(path, "csrnet", EIGHTH)
    assert f"{num_parameters(student.adapters):,} parameters that only training" in (
        capsys.readouterr().err
    )
    assert torch.equal(shipped(image), student(image))

    training = import_checkpoint(path, "skt", EIGHTH)
    assert capsys.readouterr().err == ""
    before, after = (model.forward_train(image) for model in (student, training))
    assert all(map(torch.equal, before.features, after.features))


def test_only_what_is_known_to_be_for_training_is_left_out(student, tmp_path):
    path = tmp_path / "checkpoint.pth"
    state = published_names(student) | {"transform5_0.0.weight": torch.zeros(1)}
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"transform5_0\.0\.weight is not part of the network"):
        import_checkpoint(path, "csrnet", EIGHTH)


def test_a_checkpoint_without_adapters_is_no_training_model(student, tmp_path):
    path = tmp_path / "student.pth"
    torch.save(student.student.state_dict(), path)
    with pytest.raises(WeightsError, match="does not fit"):
        import_checkpoint(path, "skt", EIGHTH)
