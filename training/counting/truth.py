"""What predicted density maps are compared with, and the form that every loss of them has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Annotation:
    """What a batch's density maps are compared with."""

    density: Tensor  # (B, 1, h, w) people per cell
    heads: Sequence[Tensor]  # B times (N, 2) x, y in input pixels; 0: the centre of the first
    stride: int  # input pixels per cell
    short_px: Tensor  # (B,) the photographs' shorter sides in input pixels; on the CPU


class CountingLoss(Protocol):
    """How far predicted density maps are from the annotation."""

    def __call__(self, predicted: Tensor, truth: Annotation) -> dict[str, Tensor]:
        """Return the weighted terms whose sum is descended, each a scalar by its name.

        Each is a mean over the batch of a sum over an image, so that equal parts of a batch
        average to the whole.

        Args:
            predicted: (B, 1, h, w) people per cell.
            truth: of the same images, on the same device.
        """
        ...
