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
