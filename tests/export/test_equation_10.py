import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crowdrt.export.equation_10 import cost_of, layer_costs

LAYERS = [
    (nn.Conv2d(4, 6, 3, padding=1), 1),
    (nn.Conv2d(4, 6, (3, 5), stride=2), 1),
    (nn.Conv2d(4, 6, 3, groups=2), 1),
    (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), 4),
    (nn.ConvTranspose2d(4, 6, (2, 2), stride=2), 4),
]


@pytest.mark.parametrize(("layer", "too_many"), LAYERS)
def test_equation_10_overcounts_transposed_convolutions_alone(layer, too_many):
    image = torch.randn(1, 4, 12, 16)
    with FlopCounterMode(display=False) as counter:
        output = layer(image)
    cost = cost_of(layer, image, output)
    assert cost.macs == counter.get_total_flops() / 2 > 0
    assert cost.equation_10 == too_many * cost.macs


def test_a_3x4_kernel_on_one_cell_is_counted_twelve_times():
    layer = nn.ConvTranspose2d(8, 5, (3, 4))
    image = torch.randn(1, 8, 1, 1)
    cost = cost_of(layer, image, layer(image))
    assert (cost.kernel, cost.output) == ("3x4x8x5", "3x4x5")
    assert cost.equation_10 == 12 * cost.macs == 12 * 12 * 8 * 5


def test_layers_come_in_the_order_of_their_calls_and_the_model_stays_clean():
    model = nn.ModuleDict({"second": nn.Conv2d(4, 2, 1), "first": nn.Conv2d(3, 4, 1)})
    costs = layer_costs(
        model, lambda x: model["second"](model["first"](x)), torch.zeros(1, 3, 2, 2)
    )
    assert list(costs) == ["first", "second"]
    assert not any(module._forward_hooks for module in model.modules())
