"""Which cells of a detector learn which person; eq. 2 to 4 of DSLA and OneNet's one-to-one rule.

Wang, Li, Xue and Huo, "Dual Subnet Label Assignment for End-to-End Fully Convolutional Pedestrian
Detection in Crowd Scenes"; Sun et al., "What Makes for End-to-End Object Detection?" (OneNet),
ICML 2021, arXiv:2012.05780. DSLA's soft labels are those of Li et al., "One-to-Few Label
Assignment for End-to-End Dense Detection", CVPR 2023, arXiv:2303.11567.

All here is of one photograph and without gradients. The papers let every person choose alone, and
say nothing of two who choose the same cell. Here a cell learns one person: of those who want it,
the one with the best score has it, and the others choose again among what is left.

Shapes: G people, L cells of all levels. A cell's owner is the index of its person, or -1.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crowdrt.training.detection.geometry import iou_and_giou

CENTRE_RADIUS = 1.5  # cells from a person's centre, on either axis; FCOS's centre sampling
COST_CLASS, COST_L1, COST_GIOU = 2.0, 5.0, 2.0  # OneNet's; of its losses, too
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al., arXiv:1708.02002

NOBODY = -1
FORBIDDEN = -torch.inf


class SoftLabels(NamedTuple):
    """What the SLA branch learns on one photograph."""

    certain: Tensor  # (L,) the person whose certain anchor this cell is, or -1
    soft: Tensor  # (L,) the person whose soft anchor this cell is, or -1
    target: Tensor  # (L,) t of soft anchors in 0..1, else 0


def one_to_one(
    logits: Tensor, boxes: Tensor, people: Tensor, *, side_px: int, num_cells: int = 1
) -> Tensor:
    """Give each person the cell of the least cost, as OneNet does.

    The cost is 2 x focal loss of being found less that of being missed, + 5 x the L1 distance of
    the boxes in sides of the image - 2 x GIoU.

    Args:
        logits: (L,) of the branch that ships.
        boxes: (L, 4) predicted, in pixels.
        people: (G, 4) annotated.
        side_px: of the image.
        num_cells: cells per person; more than one is one-to-many, which has to be suppressed.

    Returns:
        (L,) owners.
    """
    _, giou = iou_and_giou(boxes[None], people[:, None])
    l1 = torch.cdist(people / side_px, boxes / side_px, p=1)
    cost = COST_CLASS * focal_difference(logits)[None] + COST_L1 * l1 - COST_GIOU * giou
    return choose(-cost, num_cells)


def focal_difference(logits: Tensor) -> Tensor:
    """Return by how much finding somebody in a cell costs more than finding nobody, (L,)."""
    p = logits.sigmoid()
    found = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * functional.softplus(-logits)
    missed = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * functional.softplus(logits)
    return found - missed


def soft_labels(
    logits: Tensor,
    boxes: Tensor,
    people: Tensor,
    centres: Tensor,
    strides: Tensor,
    *,
    num_soft: int,
    scale: float | None,
) -> SoftLabels:
    """Give each person one certain anchor and up to K soft ones, by eq. 2 and 3.

    The score is [cell near the person's centre] x p x IoU. Certain anchors are taken first; a cell
    that several people would have as a soft anchor learns the one by whom its score is highest,
    and nobody gets another for it.

    Args:
        logits: (L,) of the SLA branch.
        boxes: (L, 4) predicted, in pixels.
        people: (G, 4) annotated.
        centres: (L, 2) of the cells, in pixels.
        strides: (L,) of the cells, in pixels.
        num_soft: K.
        scale: T of eq. 4, by which eq. 3 is multiplied; None: as eq. 3 is printed, without.
    """
    if not len(people):
        nobody = torch.full(logits.shape, NOBODY, device=logits.device)
        return SoftLabels(nobody, nobody, torch.zeros_like(logits))
    p = logits.sigmoid()
    iou, _ = iou_and_giou(boxes[None], people[:, None])
    score = torch.where(near_centre(people, centres, strides), p * iou, FORBIDDEN)
    certain = choose(score)
    free = score.masked_fill(certain[None] != NOBODY, FORBIDDEN)
    wanted = best_cells(free, num_soft) & (free > 0)
    best, owner = torch.where(wanted, free, FORBIDDEN).max(dim=0)
    soft = torch.where(best > 0, owner, NOBODY)
    of_person = torch.arange(len(people), device=p.device)[:, None] == soft[None]  # (G, L)
    highest = torch.where(of_person, p, 0).amax(dim=1)
    ratio = p / highest[soft.clamp(min=0)].clamp(min=torch.finfo(p.dtype).tiny)
    target = torch.where(soft != NOBODY, ratio * (1.0 if scale is None else scale), 0)
    return SoftLabels(certain, soft, target)


def scale_at(step: int, steps: int, *, highest: float, lowest: float) -> float:
    """Return T of eq. 4: linear from `highest` at the first step to `lowest` at the last."""
    progress = step / (steps - 1) if steps > 1 else 0.0
    return highest + (lowest - highest) * min(1.0, progress)


def near_centre(people: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Return (G, L): whether a cell lies near a person's centre, and in the person's box.

    The paper has a spatial prior without saying which; this is FCOS's centre sampling, with 1.5
    cells of the cell's own level. Whoever is too small to hold a cell's centre has the nearest.
    """
    middle = (people[:, :2] + people[:, 2:]) / 2
    offset = (centres[None] - middle[:, None]).abs()  # (G, L, 2)
    half = (people[:, 2:] - people[:, :2])[:, None] / 2
    near = ((offset < CENTRE_RADIUS * strides[None, :, None]) & (offset <= half)).all(dim=2)
    nearest = best_cells(-offset.amax(dim=2), 1)
    return torch.where(near.any(dim=1, keepdim=True), near, nearest)


def best_cells(score: Tensor, number: int) -> Tensor:
    """Return (G, L): whether a cell is among each person's best by `score`, (G, L)."""
    chosen = score.topk(min(number, score.shape[1]), dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, chosen, value=True)


def choose(score: Tensor, num_cells: int = 1) -> Tensor:
    """Let each person choose cells of the highest score, every cell by one person at most.

    In rounds: all who still want a cell name their best free ones, and each cell goes to whoever
    scores highest there. The first round serves nearly everybody, so this costs little.

    Args:
        score: (G, L); -inf forbids.
        num_cells: that each person shall have.

    Returns:
        (L,) owners. Whoever finds no free cell goes without.
    """
    num_people, num_all = score.shape
    owner = torch.full((num_all,), NOBODY, device=score.device)
    missing = torch.full((num_people,), num_cells, device=score.device)
    while (missing > 0).any():
        free = score.masked_fill(owner[None] != NOBODY, FORBIDDEN)
        order = free.topk(min(num_cells, num_all), dim=1).indices
        rank = torch.arange(order.shape[1], device=score.device)[None]
        named = torch.zeros_like(free, dtype=torch.bool).scatter(1, order, rank < missing[:, None])
        best, winner = torch.where(named, free, FORBIDDEN).max(dim=0)
        taken = best > FORBIDDEN
        if not taken.any():
            break
        owner = torch.where(taken, winner, owner)
        missing -= torch.bincount(winner[taken], minlength=num_people)
    return owner
