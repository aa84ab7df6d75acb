"""Normalisation beside every convolution while learning, and none of it in what ships."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from crowdrt.export.deploy import deploy
from crowdrt.models import DENSITY_NETWORKS, build_model
from crowdrt.models.layers import NormedConv
from crowdrt.models.network import fold_blocks
from crowdrt.training.batch_norm import AddedNorm, add_batch_norm

UNNORMED = {  # they have one channel, or no bias
    "can": {"context", "density_head"},
    "dssinet": {"decoders", "fusions"},
}
EIGHTH = Fraction(1, 8)


def upset(module: nn.Module) -> None:
    """Give a normalisation the statistics and weights of one that has learned."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.3)
        nn.init.normal_(module.running_mean, std=0.3)
        nn.init.uniform_(module.running_var, 0.3, 2.0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def image_for(model):
    """Blobs on several scales, unlike noise, so that deep layers differ too."""
    blobs = torch.randn(2, model.preprocessing.num_channels, 4, 5)
    return nn.functional.interpolate(blobs, size=(48, 64), mode="bilinear")


@pytest.mark.parametrize("bias", [True, False])
def test_one_convolution_folds_exactly(bias):
    block = NormedConv(nn.Conv2d(3, 5, 3, padding=1, bias=bias)).apply(upset).double().eval()
    image = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    before = block(image)
    assert before.std() > 0.1
    assert (before - block[0](image)).abs().max() > 0.1  # the normalisation does something
    torch.testing.assert_close(block.fold()(image), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_folding_a_network_keeps_what_it_answers(network):
    model = add_batch_norm(build_model(network, EIGHTH))
    plain = build_model(network, EIGHTH)
    model.apply(upset).eval()
    image = image_for(model)
    with torch.no_grad():
        before = model(image)
        after = fold_blocks(model, only=AddedNorm)(image)
    assert before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))

    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    expected = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert list(names.items()) == list(expected.items())
    assert len(named(model, nn.BatchNorm2d)) == len(named(plain, nn.BatchNorm2d))


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_every_convolution_but_the_density_head_is_normalised(network):
    model = add_batch_norm(build_model(network, Fraction(1, 4)))
    convs = named(model, nn.Conv2d)
    bare = [name for name in convs if not isinstance(parent(model, name), NormedConv)]
    assert {name.split(".")[0] for name in bare} == UNNORMED.get(network, {"density_head"})
    assert all(convs[name].out_channels == 1 or convs[name].bias is None for name in bare)
    assert 0 < len(bare) < len(convs) / 2
    blocks = named(model, NormedConv)
    assert not any(isinstance(parent(model, name), NormedConv) for name in blocks)


def named(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def parent(model, name):
    return model.get_submodule(name.rpartition(".")[0])


def test_the_network_is_left_in_evaluation_mode():
    model = fold_blocks(add_batch_norm(build_model("csrnet", EIGHTH)).train())
    assert not any(module.training for module in model.modules())


def test_deploy_folds_what_training_put_in():
    model = add_batch_norm(build_model("csrnet", EIGHTH)).apply(upset).eval()
    shipped = deploy(model, image_for(model))
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in shipped.modules())
