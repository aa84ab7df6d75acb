"""What a detector is asked to get right: DSLA's equations 1, 5 and 6, and OneNet's losses.

The branch that ships learns by OneNet's losses, of DSLA's O2O branch: focal loss of every cell, L1
and GIoU of the cells that learn a person, weighted 2, 5 and 2. The SLA branch learns by eq. 5 and
6. The text leaves open how its terms are normalised and weighed against each other; here:

* the class terms of a photograph are divided by its people, at least one;
* GIoU is the mean over the certain and soft anchors, and weighs 2 as in OneNet, or K soft anchors
  would make the boxes of the one branch count K times those of the other;
* eq. 5 prints no loss for negatives, the text below it names the focal loss;
* centerness has no loss: the paper's cost holds its convolution, its equations do not.

A photograph's terms need only itself, so parts of a batch average to it; OneNet divides by the
people of the whole batch. All is computed in float32, whatever the network runs in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crowdrt.learning import Assignment
from crowdrt.models.dsla import STRIDES, TrainOutputs
from crowdrt.training.detection.assignment import (
    COST_CLASS,
    COST_GIOU,
    COST_L1,
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    NOBODY,
    SoftLabels,
    one_to_one,
    scale_at,
    soft_labels,
)
from crowdrt.training.detection.geometry import inside, iou_and_giou


class Answers(NamedTuple):
    """One photograph's answers, L cells of all levels, in float32."""

    logits: Tensor  # (L,)
    soft_logits: Tensor  # (L,)
    boxes: Tensor  # (L, 4) pixels


class Cells(NamedTuple):
    """Where the cells are."""

    centres: Tensor  # (L, 2) pixels
    strides: Tensor  # (L,) pixels


class People(NamedTuple):
    """Who is on one photograph."""

    boxes: Tensor  # (G, 4) to be found
    ignored: Tensor  # (I, 4) regions whose cells learn nothing, unless a person is theirs


def detection_losses(
    outputs: TrainOutputs,
    people: Sequence[People],
    assignment: Assignment,
    *,
    side_px: int,
    step: int,
    steps: int,
) -> dict[str, Tensor]:
    """Return the weighted terms of a batch, each the mean over its photographs.

    Args:
        outputs: of `forward_train`, one class.
        people: per photograph.
        assignment: which cells learn whom, and the weight of the SLA branch.
        side_px: of the photographs, which are square.
        step: from 0; eq. 4 counts epochs, here the targets fall at every step.
        steps: of the whole training.
    """
    cells = Cells(torch.cat(outputs.centres), strides_of(outputs))
    scale = scale_at(step, steps, highest=assignment.soft_max, lowest=assignment.soft_min)
    sums: dict[str, list[Tensor]] = {}
    for answers, present in zip(split(outputs), people, strict=True):
        terms = one_to_one_losses(answers, present, cells, assignment, side_px=side_px)
        if assignment.soft:
            terms |= soft_losses(answers, present, cells, assignment, scale=scale)
        for name, term in terms.items():
            sums.setdefault(name, []).append(term)
    return {name: torch.stack(found).mean() for name, found in sums.items()}


def split(outputs: TrainOutputs) -> list[Answers]:
    """Return the answers photograph by photograph, all levels in one."""
    logits, soft_logits, boxes = (
        torch.cat(levels, dim=1).float()
        for levels in (outputs.logits, outputs.soft_logits, outputs.boxes)
    )
    assert logits.shape[2] == 1, "one class, people"
    columns = zip(logits[..., 0], soft_logits[..., 0], boxes, strict=True)
    return [Answers(*each) for each in columns]


def strides_of(outputs: TrainOutputs) -> Tensor:
    """Return (L,) the pixels per cell of every cell."""
    numbers = torch.tensor([len(level) for level in outputs.centres])
    strides = torch.tensor(STRIDES, dtype=torch.float32).repeat_interleave(numbers)
    return strides.to(outputs.centres[0].device)


def one_to_one_losses(
    answers: Answers, people: People, cells: Cells, assignment: Assignment, *, side_px: int
) -> dict[str, Tensor]:
    """Return OneNet's losses of one photograph."""
    logits, _, boxes = (each.detach() for each in answers)
    owner = one_to_one(
        logits, boxes, people.boxes, side_px=side_px, num_cells=assignment.num_certain
    )
    learns = owner != NOBODY
    predicted, wanted = answers.boxes[learns], people.boxes[owner[learns]]
    number = max(1, len(people.boxes))
    asked = learns | ~left_out(people, cells)
    distance = (predicted - wanted).abs().sum() / side_px
    return {
        "class": COST_CLASS * focal(answers.logits, learns)[asked].sum() / number,
        "l1": COST_L1 * distance / number,
        "giou": COST_GIOU * giou_loss(predicted, wanted).sum() / number,
    }


def soft_losses(
    answers: Answers, people: People, cells: Cells, assignment: Assignment, *, scale: float
) -> dict[str, Tensor]:
    """Return the losses of one photograph on the SLA branch."""
    labels = soft_labels(
        answers.soft_logits.detach(),
        answers.boxes.detach(),
        people.boxes,
        *cells,
        num_soft=assignment.num_soft,
        scale=scale if assignment.scheduled else None,
    )
    logits, number = answers.soft_logits, max(1, len(people.boxes))
    certain, soft = labels.certain != NOBODY, labels.soft != NOBODY
    negative = ~certain & ~soft & ~left_out(people, cells)
    missed = functional.binary_cross_entropy_with_logits(
        logits[soft], labels.target[soft], reduction="sum"
    )
    terms = {
        "soft:certain": functional.softplus(-logits[certain]).sum() / number,
        "soft:soft": missed / number,
        "soft:negative": focal(logits, certain)[negative].sum() / number,
        "soft:giou": COST_GIOU * soft_giou(answers.boxes, people.boxes, labels),
    }
    return {name: assignment.soft_weight * term for name, term in terms.items()}


def soft_giou(boxes: Tensor, people: Tensor, labels: SoftLabels) -> Tensor:
    """Return the mean GIoU loss of the certain and the soft anchors, 0 where nobody is."""
    owner = torch.maximum(labels.certain, labels.soft)  # no cell is both
    learns = owner != NOBODY
    loss = giou_loss(boxes[learns], people[owner[learns]])
    return loss.sum() / max(1, len(loss))


def giou_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """(N, 4) against (N, 4) -> (N,): 1 - GIoU, 0 for equal boxes."""
    return 1 - iou_and_giou(predicted, wanted)[1]


def focal(logits: Tensor, positive: Tensor) -> Tensor:
    """Return the focal loss of each cell, (L,), towards 1 where `positive`, else towards 0.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002.
    """
    signed = torch.where(positive, logits, -logits)  # of the right answer
    weight = torch.where(positive, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return weight * (-signed).sigmoid() ** FOCAL_GAMMA * functional.softplus(-signed)


def left_out(people: People, cells: Cells) -> Tensor:
    """Return (L,): whether a cell's centre lies in an ignored region."""
    return inside(cells.centres, people.ignored).any(dim=0)
