"""Features before their ReLU: of every network and tap, the values that the feature is made of."""

from fractions import Fraction

import pytest
import torch

from crowdrt.models import build_model
from crowdrt.models.taps import forward_before_relu, forward_tapped, taps_of


@pytest.mark.parametrize("taps", ["code", "paper"])
@pytest.mark.parametrize("network", ["csrnet", "bl", "sanet"])
def test_the_relu_of_what_is_before_it_is_the_tapped_feature(network, taps):
    torch.manual_seed(0)
    model = build_model(network, Fraction(1, 8)).eval()
    places = taps_of(model, taps)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        answer, features = forward_tapped(model, places, image)
        same, before = forward_before_relu(model, places, image)
    assert torch.equal(answer, same)
    for feature, value in zip(features, before, strict=True):
        assert torch.equal(feature, value.relu())
        assert (value < 0).any()
        assert feature.std() > 0
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_gradient_goes_through_values_that_a_relu_in_place_writes_over():
    torch.manual_seed(0)
    model = build_model("csrnet", Fraction(1, 8))
    _, before = forward_before_relu(model, taps_of(model), torch.randn(1, 3, 64, 64))
    sum(value.clamp(max=0).square().sum() for value in before).backward()
    assert model.front_end[0].weight.grad.abs().sum() > 0
    assert model.back_end[6].weight.grad.abs().sum() > 0
    assert model.density_head.weight.grad is None
