"""What every network offers to the stages after it."""

from abc import abstractmethod

from torch import Tensor, nn

from crowdrt.contracts import Preprocessing


class Network(nn.Module):
    """A counting network: `forward` is what ships.

    Attributes:
        preprocessing: how a photograph becomes the network's input.
        density_stride: input pixels per density cell.
        train_only: attributes that only the losses need; `export.deploy` removes them.
    """

    preprocessing: Preprocessing
    density_stride: int
    train_only: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised image -> (B, 1, h, w) people per cell; sum = count."""


def fold_blocks(model: nn.Module) -> nn.Module:
    """Put what each block's `fold()` returns in the block's place; the model is left in eval.

    A block that has a simpler inference form offers `fold() -> nn.Module`.
    """
    model.eval()
    for name, child in list(model.named_children()):
        if callable(fold := getattr(child, "fold", None)):
            setattr(model, name, fold())
        else:
            fold_blocks(child)
    return model
