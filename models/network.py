"""What every network offers to the stages after it."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.contracts import DENSITY, Preprocessing, Size
from crowdrt.errors import ExportError
from crowdrt.int8 import TrainedInt8


class Network(nn.Module):
    """A crowd-analysis network: `forward` is what ships.

    Attributes:
        preprocessing: how a photograph becomes the network's input.
        density_stride: input pixels per density cell.
        train_only: attributes that only the losses need; `export.deploy` removes them.
        offers: what can ship (`--output`); the first is what ships unless `keep` says otherwise.
        output_names: what `forward` returns, in its order; a tuple where there are several.
        fixed_size: the only (height, width) that the network takes, or None.
        static_only: why no graph for every size can be exported, or "".
        whole_image: why an answer depends on all of the image, which rules out tiles, or "".
        unseen: attributes whose convolutions the counter behind the papers' FLOPs did not see.
        trained_int8: how these weights learned to be quantized, or None; `forward` is float.
        pruned: channels were removed, so that layers are narrower than the width says.
    """

    preprocessing: Preprocessing
    density_stride: int
    train_only: tuple[str, ...] = ()
    offers: tuple[str, ...] = (DENSITY,)
    output_names: tuple[str, ...] = (DENSITY,)
    fixed_size: Size | None = None
    static_only: str = ""
    whole_image: str = ""
    unseen: tuple[str, ...] = ()
    trained_int8: TrainedInt8 | None = None
    pruned: bool = False

    @abstractmethod
    def forward(self, image: Tensor) -> Any:
        """(B, C, H, W) normalised image -> one tensor per output name, alone if there is one.

        "density" is (B, 1, h, w) people per cell; its sum is the count.
        """

    def forward_train(self, image: Tensor) -> Any:
        """Return what `forward` does, and beside it what only the losses need."""
        return self.forward(image)

    def keep(self, output: str) -> None:
        """Choose what ships.

        Raises:
            ExportError: the network does not offer it.
        """
        if output not in self.offers:
            raise ExportError(
                f"{type(self).__name__} has no output {output!r}",
                fix=f"use --output {' or --output '.join(self.offers)}",
            )


class Normalise(nn.Module):
    """Grey levels -> what a network's `forward` takes; the one place where PyTorch does it.

    It stays outside the first convolution: with the mean folded into the weights, the convolution
    would pad with black instead of with the mean.
    """

    mean: Tensor  # (1, C, 1, 1) grey levels
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):
            levels = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, levels.view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 pixels -> float32."""
        return (image.float() - self.mean) / self.std


def fold_blocks(model: nn.Module, only: type[nn.Module] = nn.Module) -> nn.Module:
    """Put what each block's `fold()` returns in the block's place; the model is left in eval.

    A block that has a simpler inference form offers `fold() -> nn.Module`. Blocks that are no
    `only` stay as they are.
    """
    model.eval()
    for name, child in list(model.named_children()):
        if isinstance(child, only) and callable(fold := getattr(child, "fold", None)):
            setattr(model, name, fold())
        else:
            fold_blocks(child, only)
    return model
