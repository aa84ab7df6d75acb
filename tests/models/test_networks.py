"""What every network promises: sizes, parameters, and an output that follows its input."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crowdrt.errors import RecipeError
from crowdrt.models import DENSITY_NETWORKS, NETWORKS, build_model
from crowdrt.models.mcnn import MCNN
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

PARAMETERS = {  # design/NETWORKS.md section 2, worked out from the papers
    ("csrnet", Fraction(1)): 16_263_489,
    ("csrnet", Fraction(1, 2)): 4_067_489,
    ("csrnet", Fraction(1, 3)): 1_812_326,
    ("csrnet", Fraction(1, 4)): 1_017_681,
    ("csrnet", Fraction(1, 5)): 647_489,
    ("bl", Fraction(1)): 21_499_457,
    ("bl", Fraction(1, 4)): 1_345_169,
    ("sanet", Fraction(1)): 912_657,
    ("sanet", Fraction(1, 4)): 58_389,
    ("mcnn", Fraction(1)): 127_953,
    ("can", Fraction(1)): 18_103_489,
    ("dssinet", Fraction(1)): 8_857_788,
    ("dsla", Fraction(1)): 32_115_532,
}

# DSSINet reads stages 2 and 3 before their last activation only; the papers count the slopes.
NEVER_USED = {"dssinet": {"activations.1.weight", "activations.2.weight"}}
# The slope between its decoders has to wait until something there is negative.
SLEEPING = {"dssinet": {"activation.weight"}}


def image_for(model: Network, *, batch: int = 1, height: int = 48, width: int = 64):
    """Random blobs: like photographs, and unlike white noise, they differ on every scale."""
    blobs = torch.randn(batch, model.preprocessing.num_channels, 4, 5)
    return torch.nn.functional.interpolate(blobs, size=(height, width), mode="bilinear")


def num_parameters(model: Network) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("network", "width"), PARAMETERS)
def test_parameters_are_the_papers(network, width):
    with torch.device("meta"):
        model = build_model(network, width)
    assert num_parameters(model) == PARAMETERS[network, width]


def test_rgb_mcnn_has_the_parameters_that_papers_compare():
    model = MCNN(channels="rgb")
    assert num_parameters(model) == 133_705
    assert model.preprocessing.num_channels == 3
    assert model(image_for(model)).shape == (1, 1, 12, 16)
    assert MCNN().preprocessing.num_channels == 1  # the class's own stays grey


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
@pytest.mark.parametrize("width", [Fraction(1), Fraction(1, 4), Fraction(1, 8)], ids=str)
def test_a_fresh_network_carries_signal(network, width):
    worst = 9.9
    for seed in range(1 if width == 1 else 3):
        torch.manual_seed(seed)
        model = build_model(network, width).eval()
        with torch.no_grad():
            one, other = model(image_for(model, batch=2))
        within = one.std() / one.mean().abs()
        between = (one - other).abs().mean() / one.mean().abs()
        worst = min(worst, within.item(), between.item())
    assert worst > 0.1, "the output hardly depends on the input"


def test_pytorchs_own_initialisation_carries_no_signal():
    """Why `initialise` exists: with PyTorch's default a narrow CSRNet answers a constant."""
    torch.manual_seed(0)
    model = build_model("csrnet", Fraction(1, 8)).eval()
    image = image_for(model)
    with torch.no_grad():
        ours = model(image)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        default = model(image)
    assert default.std() < ours.std() / 50


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_every_parameter_learns(network):
    torch.manual_seed(0)
    model = build_model(network, Fraction(1, 4))
    model(image_for(model)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    unused = {name for name, grad in gradients.items() if grad is None}
    assert unused == NEVER_USED.get(network, set())
    learned = {name: grad for name, grad in gradients.items() if grad is not None}
    assert all(grad.isfinite().all() for grad in learned.values())
    still = {name for name, grad in learned.items() if "weight" in name and not grad.any()}
    assert still == SLEEPING.get(network, set())


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_the_map_is_the_image_over_the_density_stride(network):
    model = build_model(network, Fraction(1, 8)).eval()
    stride = model.preprocessing.stride
    border = 7 if network == "sanet" else 0  # three transposed convolutions, nothing cropped
    for rows, columns in ((3, 5), (4, 3)):
        height, width = rows * stride, columns * stride
        with torch.no_grad():
            density = model(image_for(model, height=height, width=width))
        expected = (height // model.density_stride + border, width // model.density_stride + border)
        assert density.shape == (1, 1, *expected)


@pytest.mark.parametrize(("network", "cells"), [("csrnet", (72, 108)), ("bl", (72, 108))])
def test_pools_round_down(network, cells):
    with torch.device("meta"):
        model = build_model(network, Fraction(1, 8))
        density = model(torch.empty(1, 3, 583, 871))
    assert density.shape[2:] == cells


@pytest.mark.parametrize("network", ["bl", "sanet", "dssinet"])
def test_density_is_never_negative(network):
    torch.manual_seed(1)
    model = build_model(network, Fraction(1, 8)).eval()
    with torch.no_grad():
        density = model(image_for(model))
    assert density.min() >= 0
    assert density.max() > 0


def test_sanets_map_is_centred_on_the_image():
    """The 7 px that SANet's map is larger are 3.5 on each side: a flip commutes with the network.

    Only with kernels that are themselves symmetric, so all are made so.
    """
    torch.manual_seed(0)
    model = build_model("sanet", Fraction(1, 8)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.add_(module.weight.flip(3))
        image = image_for(model)
        density = model(image)
        flipped = model(image.flip(3)).flip(3)
    assert density.std() > 0
    torch.testing.assert_close(density, flipped, rtol=1e-3, atol=1e-4)


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="csrnet, bl, sanet, mcnn"):
        build_model("vgg", Fraction(1))


@pytest.mark.parametrize("width", [Fraction(0), Fraction(-1, 4), Fraction(2)], ids=str)
def test_a_width_outside_its_range_is_refused(width):
    with pytest.raises(RecipeError, match="width"):
        build_model("csrnet", width)


def test_the_list_of_networks_is_the_one_that_builds():
    for network in NETWORKS:
        assert isinstance(build_model(network, Fraction(1, 8)), Network)


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (64, Fraction(1, 3), 21),
        (128, Fraction(1, 3), 43),
        (256, Fraction(1, 5), 51),
        (12, Fraction(1, 8), 2),  # 1.5: halves go up
        (20, Fraction(1, 8), 3),  # 2.5: Python's round would say 2
        (8, Fraction(1, 64), 1),  # never without channels
    ],
)
def test_scaled_rounds_halves_up(channels, width, expected):
    assert scaled(channels, width) == expected


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 64))
def test_scaled_is_within_half_a_channel(channels, a, b):
    width = Fraction(min(a, b), max(a, b))
    difference = scaled(channels, width) - channels * width
    assert Fraction(-1, 2) < difference <= Fraction(1, 2) or scaled(channels, width) == 1
