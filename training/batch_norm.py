"""Batch normalisation that helps a network learn from scratch and is gone when it ships.

A network without a pretrained backbone trains far better with normalisation between its layers,
but the published networks have none. So training puts one behind every convolution, and folding
turns each pair back into the one convolution that the paper describes.
"""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class NormedConv(nn.Sequential):
    """A convolution and its batch normalisation; `fold()` makes them one convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels))

    def fold(self) -> nn.Conv2d:
        """Return the convolution that computes the same in evaluation mode."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return fuse_conv_bn_eval(conv.eval(), norm.eval())


def add_batch_norm(model: nn.Module) -> nn.Module:
    """Put a batch normalisation behind every convolution but the density head, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.out_channels > 1:
                setattr(parent, name, NormedConv(child))
    return model
