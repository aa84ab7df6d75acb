"""Boxes as tensors: their overlap, pair by pair and all with all.

Boxes are x1, y1, x2, y2 in pixels, x1 <= x2 and y1 <= y2; the last axis has the four.
"""

import torch
from torch import Tensor

SMALLEST_AREA = 1e-6  # square pixels; dividing by it keeps empty boxes finite


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_and_giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of boxes that stand opposite each other.

    Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, arXiv:1902.09630: the
    share of the smallest box around both that neither covers is taken off, so that boxes apart
    differ, too. -1 < GIoU <= IoU <= 1.

    Args:
        boxes: (..., 4).
        others: (..., 4); the axes before the last broadcast.
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    union = area(boxes) + area(others) - common
    iou = common / union.clamp(min=SMALLEST_AREA)
    outer_low = torch.minimum(boxes[..., :2], others[..., :2])
    outer_high = torch.maximum(boxes[..., 2:], others[..., 2:])
    outer = (outer_high - outer_low).prod(dim=-1)
    return iou, iou - (outer - union) / outer.clamp(min=SMALLEST_AREA)


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return (N, P): whether each point, (P, 2) x and y, lies in each box, (N, 4)."""
    x, y = points[None, :, 0], points[None, :, 1]
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    return (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
