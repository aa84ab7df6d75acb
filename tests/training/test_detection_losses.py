"""The detector's losses: worked by hand, and what ignoring, nobody and half precision must do."""

import math
from dataclasses import replace

import pytest
import torch

from crowdrt.learning import Assignment
from crowdrt.models.dsla import STRIDES, TrainOutputs, cell_centres
from crowdrt.training.detection.losses import People, detection_losses, focal, giou_loss

SIDE = 64
CELLS = [64, 16, 4, 1, 1]  # of 64x64 px
TERMS = {"class", "l1", "giou", "soft:certain", "soft:soft", "soft:negative", "soft:giou"}
NO_BOXES = torch.zeros(0, 4)
PERSON = torch.tensor([[16.0, 16, 48, 48]])
PERFECT = 12.0  # a logit that is nearly sure


def outputs(*, batch: int = 1, logit: float = -6.0, dtype=torch.float32) -> TrainOutputs:
    """Every cell answers the same logit, and a box of 16 px around its centre."""
    centres = [
        cell_centres(torch.zeros(1, 1, math.ceil(SIDE / s), math.ceil(SIDE / s)), s)
        for s in STRIDES
    ]
    boxes = [torch.cat([c - 8, c + 8], dim=1).expand(batch, -1, -1).to(dtype) for c in centres]
    logits = [torch.full((batch, num, 1), logit, dtype=dtype) for num in CELLS]
    leaves = [each.clone().requires_grad_() for each in (*logits, *logits, *boxes)]
    return TrainOutputs(leaves[:5], leaves[5:10], leaves[10:], [], centres)


def losses(out: TrainOutputs, *people: People, step=0, steps=10, assignment=None):
    return detection_losses(
        out, people, assignment or Assignment(), side_px=SIDE, step=step, steps=steps
    )


def values(out: TrainOutputs, *people: People, **options) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in losses(out, *people, **options).items()}


def test_focal_loss_by_hand():
    p = 0.25
    logits = torch.logit(torch.tensor([p, p]))
    found = focal(logits, torch.tensor([True, False]))
    right, wrong = 0.25 * 0.75**2 * -math.log(p), 0.75 * p**2 * -math.log(1 - p)
    torch.testing.assert_close(found, torch.tensor([right, wrong]))


def test_giou_loss_of_equal_boxes_is_nothing():
    assert giou_loss(PERSON, PERSON).item() == 0
    assert giou_loss(PERSON, PERSON + 1000).item() == pytest.approx(2, abs=0.01)


def test_every_term_of_one_person_by_hand():
    """All cells answer alike, so it does not matter which of them learn the person.

    Boxes of 16x16 px lie inside the person's 32x32 px: IoU and GIoU are a quarter. 68 cells of
    8 and 16 px compete; whoever is chosen has the same p, so soft targets are all T.
    """
    out = outputs()
    with torch.no_grad():
        out.boxes[0][0, 27] = torch.tensor([24.0, 24, 40, 40])  # the one-to-one branch's choice
    found = values(out, People(PERSON, NO_BOXES))
    assert set(found) == TERMS
    p = 1 / (1 + math.exp(6))
    softplus = math.log1p(math.exp(-6))
    missed, negative = 0.25 * (1 - p) ** 2 * (6 + softplus), 0.75 * p**2 * softplus
    assert found["class"] == pytest.approx(2 * (missed + 85 * negative), rel=1e-4)
    assert found["l1"] == pytest.approx(5 * 4 * 8 / 64, rel=1e-4)
    assert found["giou"] == pytest.approx(2 * 0.75, rel=1e-4)
    assert found["soft:certain"] == pytest.approx(6 + softplus, rel=1e-4)
    # T is 0.6 at the first step: BCE(p, t) is softplus(x) - t x
    assert found["soft:soft"] == pytest.approx(6 * (softplus + 0.6 * 6), rel=1e-4)
    assert found["soft:negative"] == pytest.approx(79 * negative, rel=1e-3)
    assert 0 < found["soft:giou"] <= 2


def test_soft_targets_fall_from_the_first_step_to_the_last():
    first, last = (
        values(outputs(), People(PERSON, NO_BOXES), step=step)["soft:soft"] for step in (0, 9)
    )
    assert first - last == pytest.approx(6 * 6 * (0.6 - 0.4), rel=1e-4)  # six anchors, logit -6
    printed = Assignment(scheduled=False)
    one, other = (
        values(outputs(), People(PERSON, NO_BOXES), step=s, assignment=printed)["soft:soft"]
        for s in (0, 9)
    )
    assert one == other > first


def test_a_photograph_of_nobody():
    out = outputs(logit=0.0)
    found = values(out, People(NO_BOXES, NO_BOXES))
    negative = 0.75 * 0.25 * math.log(2)
    assert found.pop("class") == pytest.approx(2 * 86 * negative)
    assert found.pop("soft:negative") == pytest.approx(86 * negative)
    assert set(found.values()) == {0}
    sum(losses(out, People(NO_BOXES, NO_BOXES)).values()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in out.logits)
    assert not any(each.grad.any() for each in out.boxes if each.grad is not None)


def test_an_ignored_box_is_neither_a_person_nor_background():
    out = outputs(logit=0.0)
    region = torch.tensor([[0.0, 0, 32, 32]])
    sum(losses(out, People(NO_BOXES, region)).values()).backward()
    inside = (torch.cat(out.centres) <= 32).all(dim=1)
    assert inside.sum() == 16 + 4 + 1 + 1  # of the four finest levels
    for branch in (out.logits, out.soft_logits):
        gradient = torch.cat([level.grad[0, :, 0] for level in branch])
        assert not gradient[inside].any()
        assert gradient[~inside].all()


def test_a_person_in_an_ignored_region_is_learned():
    everywhere = torch.tensor([[0.0, 0, SIDE, SIDE]])
    out = outputs(logit=0.0)
    found = losses(out, People(PERSON, everywhere))
    assert found["class"].item() == pytest.approx(2 * 0.25 * 0.25 * math.log(2))  # of one cell
    sum(found.values()).backward()
    assert sum(int((each.grad != 0).sum()) for each in out.logits) == 1
    assert sum(int((each.grad != 0).sum()) for each in out.soft_logits) == 1 + 6


def test_certain_and_soft_anchors_learn_the_box():
    out = outputs()
    losses(out, People(PERSON, NO_BOXES))["soft:giou"].backward()
    assert sum(int(each.grad.any(dim=2).sum()) for each in out.boxes) == 1 + 6


def test_parts_of_a_batch_average_to_it():
    people = [People(PERSON, NO_BOXES), People(NO_BOXES, NO_BOXES)]
    both = values(outputs(batch=2), *people)
    each = [values(outputs(), one) for one in people]
    for name, term in both.items():
        assert term == pytest.approx(sum(e[name] for e in each) / 2)


def test_onenet_has_no_soft_term_and_weight_0_none_that_counts():
    person = People(PERSON, NO_BOXES)
    alone = values(outputs(), person, assignment=Assignment(soft=False))
    assert set(alone) == {"class", "l1", "giou"}
    half, whole = (
        values(outputs(), person, assignment=replace(Assignment(), soft_weight=w))
        for w in (0.5, 1.0)
    )
    for name in TERMS - set(alone):
        assert half[name] == pytest.approx(whole[name] / 2)
    assert {name: half[name] for name in alone} == pytest.approx(alone)


def test_all_is_computed_in_float32():
    """In bfloat16 the negatives of 86 cells would not sum to three digits."""
    exact = values(outputs(), People(PERSON, NO_BOXES))
    half = losses(outputs(dtype=torch.bfloat16), People(PERSON, NO_BOXES))
    for name, term in half.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(exact[name], rel=1e-3)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_sure_answers_stay_finite(logit):
    out = outputs(logit=logit)
    terms = losses(out, People(PERSON, NO_BOXES))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(each.grad.isfinite().all() for each in (*out.logits, *out.soft_logits, *out.boxes))


def test_a_perfect_answer_costs_next_to_nothing():
    """Each branch sure of the cell that learns the person, with the person's box."""
    out = outputs(logit=-PERFECT)
    with torch.no_grad():
        out.boxes[0][0, 27] = PERSON[0]
        out.logits[0][0, 27] = out.soft_logits[0][0, 27] = PERFECT
    terms = values(out, People(PERSON, NO_BOXES))
    for name in ("class", "l1", "giou", "soft:certain", "soft:negative"):
        assert terms[name] < 1e-3, name
