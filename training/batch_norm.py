"""Batch normalisation that helps a network learn from scratch and is gone when it ships.

A network without a pretrained backbone trains far better with normalisation between its layers,
but the published networks have none. So training puts one behind every convolution, and folding
turns each pair back into the one convolution that the paper describes.
"""

from torch import nn

from crowdrt.models.layers import NormedConv


class AddedNorm(NormedConv):
    """One that only training has; folding it leaves the convolution that the paper describes."""


def add_batch_norm(model: nn.Module) -> nn.Module:
    """Put a batch normalisation behind every convolution that can take one in, in place.

    Left alone are a map of one channel, a convolution without a bias, which could not hold the
    shift, and what the network normalises itself.
    """
    for parent in list(model.modules()):
        if isinstance(parent, NormedConv):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.out_channels > 1 and child.bias is not None:
                setattr(parent, name, AddedNorm(child))
    return model
