"""DSSINet: message passing by hand, the wiring of three scales, slopes that become numbers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from crowdrt.export.deploy import deploy
from crowdrt.models import build_model
from crowdrt.models.dssinet import MessageBlock, ScalarPReLU

EIGHTH = Fraction(1, 8)


def stir(model: nn.Module) -> nn.Module:
    """Draw slopes and signs as training leaves them, so that every branch matters."""
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.2)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = stir(build_model("dssinet", EIGHTH))
    model.decoders[-1][-1].weight.data.abs_()  # or the last ReLU would cut nearly all
    return model


@pytest.mark.parametrize("channels", [(3, 2), (4, 3, 2)])
def test_messages_by_hand(channels):
    """Pixel by pixel, channel by channel; nobody hears news of the round that is going on."""
    torch.manual_seed(1)
    block = stir(MessageBlock(channels))
    features = [torch.randn(1, c, 2, 3) for c in channels]
    slope = block.activation.weight.item()
    states = [feature[0].numpy().astype(float) for feature in features]
    for _ in range(2):
        before = [state.copy() for state in states]
        for i, state in enumerate(states):
            senders = [j for j in range(len(channels)) if j != i]
            for c, y, x in np.ndindex(state.shape):
                message = 0.0
                for conv, j in zip(block.messages[i], senders, strict=True):
                    message += conv.bias[c].item()
                    for k in range(channels[j]):
                        message += conv.weight[c, k, 0, 0].item() * before[j][k, y, x]
                message *= slope if message < 0 else 1
                state[c, y, x] = max(0.0, before[i][c, y, x] + message)
    with torch.no_grad():
        got = block(*features)
    for state, answer in zip(states, got, strict=True):
        assert state.std() > 0.1
        np.testing.assert_allclose(answer[0], state, rtol=1e-5, atol=1e-6)


def reference(model, image):
    """The network as NETWORKS.md words it, from its tensors by name."""
    weights = model.state_dict()

    def conv(name, x, padding=0):
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 1, padding)

    def stage(number, x):
        """Run convolutions with their PReLUs; return the answer with the last one, and raw."""
        position = 0
        if number > 1:
            x, position = functional.max_pool2d(x, 2), 1
        for _ in range(2 if number < 3 else 3):
            raw = conv(f"front_end.{number - 1}.{position}", x, padding=1)
            own = f"front_end.{number - 1}.{position + 1}.weight"
            slope = weights.get(own, weights[f"activations.{number - 1}.weight"])
            x = functional.prelu(raw, slope)
            position += 2
        return x, raw

    def pass_messages(block, features):
        for _ in range(2):
            heard = []
            for i in range(len(features)):
                others = [j for j in range(len(features)) if j != i]
                sent = [conv(f"messages.{block}.messages.{i}.{n}", features[j])
                        for n, j in enumerate(others)]  # fmt: skip
                slope = weights[f"messages.{block}.activation.weight"]
                heard.append(functional.prelu(torch.stack(sent).sum(0), slope))
            features = [torch.relu(h + m) for h, m in zip(features, heard, strict=True)]
        return features

    def decode(number, features):
        hidden = torch.relu(conv(f"decoders.{number}.0", torch.cat(features, 1)))
        return conv(f"decoders.{number}.2", hidden, padding=1)

    def twice(x):
        return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    half = functional.avg_pool2d(image, 2)  # what a bilinear resize to a half is
    b1 = pass_messages(0, [stage(2, stage(1, twice(image))[0])[1], stage(1, image)[1]])
    b2 = pass_messages(1, [stage(3, b1[0])[1], stage(2, b1[1])[1], stage(1, half)[1]])
    b3 = pass_messages(2, [stage(4, b2[0])[1], stage(3, b2[1])[1], stage(2, b2[2])[1]])
    b4 = pass_messages(3, [stage(4, b3[1])[1], stage(3, b3[2])[1]])
    last = stage(4, b4[1])[0]
    slope = weights["activation.weight"]
    density = functional.prelu(decode(0, [last]), slope)
    for number, features in enumerate((b4, b3, b2, b1), start=1):
        up = conv(f"fusions.{number - 1}", twice(density), padding=1)
        density = decode(number, features) + up
        density = functional.prelu(density, slope) if number < 4 else torch.relu(density)
    return density


def test_the_wiring_is_the_published_one(model):
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected, got = reference(model, image), model(image)
    assert expected.std() > 0.1 * expected.mean() > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_features_have_the_published_sizes():
    with torch.device("meta"):
        model = build_model("dssinet")
        features = model.features(torch.empty(1, 3, 96, 160))
    assert [(f.shape[1], 96 // f.shape[2], 160 // f.shape[3]) for f in features] == [
        (512, 16, 16), (768, 8, 8), (896, 4, 4), (448, 2, 2), (192, 1, 1),
    ]  # fmt: skip


def test_one_body_reads_all_three_scales(model):
    sizes = []
    model.front_end[0][0].register_forward_hook(lambda _, images, __: sizes.append(images[0].shape))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 48))
    assert sorted(tuple(size[2:]) for size in sizes) == [(16, 24), (32, 48), (64, 96)]


@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0, 1.0, 3.0])
def test_a_slope_becomes_a_number(slope):
    activation = ScalarPReLU(init=slope)
    values = torch.linspace(-2, 2, 9)
    folded = activation.fold()
    assert list(folded.parameters()) == []
    torch.testing.assert_close(folded(values.clone()), activation(values), rtol=0, atol=0)


def test_deploying_keeps_the_answer(model):
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = model(image)
        shipped = deploy(model, image)
        got = shipped(image)
    assert expected.std() > 0.1 * expected.mean() > 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not any(isinstance(module, nn.PReLU) for module in shipped.modules())
