"""Batch normalisation that helps a network learn from scratch and is gone when it ships.

A network without a pretrained backbone trains far better with normalisation between its layers,
but the published networks have none. So training puts one behind every convolution, and folding
turns each pair back into the one convolution that the paper describes.
"""

from torch import nn

from crowdrt.models.layers import NormedConv


def add_batch_norm(model: nn.Module) -> nn.Module:
    """Put a batch normalisation behind every convolution but the density head, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.out_channels > 1:
                setattr(parent, name, NormedConv(child))
    return model
