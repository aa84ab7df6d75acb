"""How a network's convolutions begin, before any weights that a user brings."""

from typing import assert_never

from torch import nn

from crowdrt.learning import Initial

GAUSSIAN_STD = 0.01


def initialise(model: nn.Module, how: Initial) -> nn.Module:
    """Draw the weights of all convolutions, in place, from PyTorch's generator.

    Args:
        model: as it is built, before batch normalisation is added.
        how: "fan-in" is how networks are built here, and leaves them so. "fan-out" is normal with
            variance 2 / fan out, as SKT's students. "gaussian" has a standard deviation of 0.01, as
            MCNN, CSRNet, CAN and SANet where they have no VGG-16: its first answer is near nobody,
            where others answer thousands, and a ReLU behind the map dies on the way down. Biases
            are 0.
    """
    if how == "fan-in":
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            match how:
                case "gaussian":
                    nn.init.normal_(module.weight, std=GAUSSIAN_STD)
                case "fan-out":
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                case unknown:
                    assert_never(unknown)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
