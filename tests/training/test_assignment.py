"""Which cells learn which person: worked by hand, and what must hold whatever is predicted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdrt.training.detection.assignment import (
    NOBODY,
    choose,
    focal_difference,
    near_centre,
    one_to_one,
    scale_at,
    soft_labels,
)
from crowdrt.training.detection.geometry import iou_and_giou

# Six cells of 8 px in a row, their centres at x = 4, 12 .. 44 and y = 4.
CENTRES = torch.tensor([[8.0 * k + 4, 4.0] for k in range(6)])
STRIDES = torch.full((6,), 8.0)
NOBODY_HERE = torch.zeros(0, 4)


def logits_of(*scores: float) -> torch.Tensor:
    return torch.logit(torch.tensor(scores))


def boxes_of(*boxes: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def labels(scores, people, boxes=None, *, num_soft=6, scale: float | None = 0.6):
    """SLA labels where every cell predicts its person's box, unless `boxes` are given."""
    boxes = people[:1].expand(6, 4) if boxes is None else boxes
    return soft_labels(
        logits_of(*scores), boxes, people, CENTRES, STRIDES, num_soft=num_soft, scale=scale
    )


def test_giou_identities():
    one = boxes_of((0, 0, 10, 10))
    others = boxes_of(
        (0, 0, 10, 10), (5, 0, 15, 10), (10, 0, 20, 10), (30, 0, 40, 10), (2, 2, 2, 2)
    )
    iou, giou = iou_and_giou(one, others)
    torch.testing.assert_close(iou, torch.tensor([1, 1 / 3, 0, 0, 0]))
    # apart, the box around both is 40 wide and half of it empty; inside or touching, GIoU is IoU
    torch.testing.assert_close(giou, torch.tensor([1, 1 / 3, 0, -0.5, 0]))
    torch.testing.assert_close(iou_and_giou(3 * one, 3 * others)[1], giou)  # whatever the scale
    torch.testing.assert_close(iou_and_giou(others, one)[1], giou)


def test_two_empty_boxes_have_a_gradient_that_is_finite():
    point = torch.zeros(1, 4, requires_grad=True)
    iou_and_giou(point, torch.zeros(1, 4))[1].sum().backward()
    assert point.grad is not None
    assert point.grad.isfinite().all()


def test_t_falls_in_a_line_from_the_first_step_to_the_last():
    found = [scale_at(step, 5, highest=0.6, lowest=0.4) for step in range(5)]
    assert found == pytest.approx([0.6, 0.55, 0.5, 0.45, 0.4])
    assert scale_at(0, 1, highest=0.6, lowest=0.4) == 0.6
    assert scale_at(99, 5, highest=0.6, lowest=0.4) == 0.4


PERSON = boxes_of((0, 0, 24, 8))  # its centre is cell 1's; the prior holds cells 0, 1 and 2
SCORES = (0.2, 0.8, 0.4, 0.9, 0.9, 0.9)


@pytest.mark.parametrize(
    ("scale", "half", "best"), [(0.6, 0.3, 0.6), (0.4, 0.2, 0.4), (None, 0.5, 1)]
)
def test_soft_targets_of_the_first_step_of_the_last_and_as_printed(scale, half, best):
    """The certain anchor is cell 1; of the soft ones cell 2 has the highest p, cell 0 half."""
    found = labels(SCORES, PERSON, scale=scale)
    assert found.certain.tolist() == [-1, 0, -1, -1, -1, -1]
    assert found.soft.tolist() == [0, -1, 0, -1, -1, -1]
    torch.testing.assert_close(found.target, torch.tensor([half, 0, best, 0, 0, 0]))


def test_the_score_is_p_times_iou():
    """Cell 2 is half as sure as cell 0, whose box is a third as good."""
    boxes = PERSON.expand(6, 4).clone()
    boxes[0] = torch.tensor([0.0, 0, 8, 8])
    boxes[1] = torch.tensor([40.0, 0, 48, 8])
    found = labels((0.8, 0.9, 0.4, 0.9, 0.9, 0.9), PERSON, boxes)
    assert found.certain.tolist() == [-1, -1, 0, -1, -1, -1]  # 0.4 beats 0.8 / 3; cell 1 has none
    assert found.soft.tolist() == [0, -1, -1, -1, -1, -1]  # and where the score is 0, nothing
    torch.testing.assert_close(found.target[0], torch.tensor(0.6))  # by p alone, eq. 3


def test_k_soft_anchors_at_most():
    wide = boxes_of((-100, 0, 148, 8))
    strides = torch.full((6,), 100.0)
    scores = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    for k in (1, 3, 5, 9):
        found = soft_labels(
            logits_of(*scores), wide.expand(6, 4), wide, CENTRES, strides, num_soft=k, scale=0.6
        )
        assert found.certain.tolist() == [-1] * 5 + [0]
        assert (found.soft == 0).nonzero().flatten().tolist() == list(range(max(0, 5 - k), 5))


def test_a_soft_anchor_of_two_people_learns_whose_score_is_higher():
    people = boxes_of((0, 0, 24, 8), (16, 0, 40, 8))  # centres in cells 1 and 3; cell 2 is of both
    boxes = torch.stack([people[0], people[0], people[1], people[1], people[1], people[1]])
    found = labels((0.2, 0.8, 0.4, 0.8, 0.2, 0.1), people, boxes)
    assert found.certain.tolist() == [-1, 0, -1, 1, -1, -1]
    assert found.soft.tolist() == [0, -1, 1, -1, 1, -1]
    torch.testing.assert_close(found.target, torch.tensor([0.6, 0, 0.6, 0, 0.3, 0]))


def test_who_loses_a_certain_anchor_takes_the_next_best():
    score = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.7, 0.0]])
    assert choose(score).tolist() == [0, 1, NOBODY]
    assert choose(score.flip(0)).tolist() == [1, 0, NOBODY]
    third = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.7, 0.0], [0.7, 0.6, 0.3]])
    assert choose(third).tolist() == [0, 1, 2]  # two rounds: cell 1 is lost as well


def test_more_people_than_cells():
    score = torch.tensor([[0.1], [0.3], [0.2]])
    assert choose(score).tolist() == [1]
    assert choose(torch.full((2, 3), -torch.inf)).tolist() == [NOBODY] * 3


def test_several_cells_each():
    score = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.0], [0.0, 0.85, 0.1, 0.2, 0.3]])
    assert choose(score, 2).tolist() == [0, 1, 0, NOBODY, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 3), st.integers(0, 10_000))
def test_every_person_has_as_many_cells_as_there_are(num_people, num_cells, wanted, seed):
    score = torch.rand(num_people, num_cells, generator=torch.Generator().manual_seed(seed))
    owner = choose(score, wanted)
    counts = torch.bincount(owner[owner != NOBODY], minlength=num_people)
    assert (counts <= wanted).all()
    assert counts.sum() == min(num_cells, wanted * num_people)


def test_the_least_cost_by_hand():
    """Cell 0 is surer, cell 1's box is better: 2 x class + 5 x L1 - 2 x GIoU decide."""
    person = boxes_of((0, 0, 40, 80))
    boxes = boxes_of((0, 0, 40, 60), (0, 0, 40, 80))
    p = torch.tensor([0.7, 0.3])
    found = 0.25 * (1 - p) ** 2 * -p.log()
    missed = 0.75 * p**2 * -(1 - p).log()
    torch.testing.assert_close(focal_difference(torch.logit(p)), found - missed)
    l1, giou = torch.tensor([20 / 160, 0]), torch.tensor([0.75, 1])
    cost = 2 * (found - missed) + 5 * l1 - 2 * giou
    assert cost.argmin() == 1
    assert one_to_one(torch.logit(p), boxes, person, side_px=160).tolist() == [NOBODY, 0]
    sure = torch.tensor([0.9, 0.1])
    assert one_to_one(torch.logit(sure), boxes, person, side_px=1600).tolist() == [0, NOBODY]


def test_one_person_has_one_cell_and_as_many_as_asked():
    person = boxes_of((0, 0, 24, 8))
    for number in (1, 3):
        owner = one_to_one(
            logits_of(*SCORES), person.expand(6, 4), person, side_px=48, num_cells=number
        )
        assert (owner == 0).sum() == number
        assert owner[3] == 0  # the first of the surest, 0.9


def test_an_image_of_nobody():
    found = labels(SCORES, NOBODY_HERE, torch.zeros(6, 4))
    assert found.certain.tolist() == found.soft.tolist() == [NOBODY] * 6
    assert not found.target.any()
    owner = one_to_one(logits_of(*SCORES), torch.zeros(6, 4), NOBODY_HERE, side_px=48)
    assert owner.tolist() == [NOBODY] * 6


def test_the_prior():
    small, off, tall = (20.5, 0, 22, 3), (-90, 0, -70, 8), (0, -100, 24, 108)
    near = near_centre(boxes_of(PERSON[0].tolist(), small, off, tall), CENTRES, STRIDES)
    assert near.tolist() == [
        [True, True, True, False, False, False],  # within 12 px of x = 12, and in the box
        [False, False, True, False, False, False],  # holds no cell's centre: the nearest
        [True, False, False, False, False, False],  # beyond the first cell
        [True, True, True, False, False, False],
    ]


def test_p_that_underflows_leaves_targets_finite():
    logits = torch.full((6,), -200.0)
    boxes = PERSON.expand(6, 4)
    found = soft_labels(logits, boxes, PERSON, CENTRES, STRIDES, num_soft=6, scale=0.6)
    assert (found.certain == 0).sum() == 1
    assert found.target.isfinite().all()
    assert math.isclose(float(found.target.max()), 0.0, abs_tol=0.6)
