"""A student beside its teacher: which terms it learns by, and that it ships alone."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from crowdrt.errors import RecipeError, TrainingError
from crowdrt.learning import TrainingConfig, Transfer
from crowdrt.models import build_model
from crowdrt.models.weights import load_network
from crowdrt.training.loop import steps, train
from crowdrt.training.run import Run
from crowdrt.training.transfer.task import TransferTask

NARROW, WIDE = Fraction(1, 16), Fraction(1, 8)
TRANSFER = Transfer(
    teacher="csrnet-quarter", taps="code", adapter_relu=True, normalise=True, mean=True
)
TINY = TrainingConfig(
    steps=2, batch_size=2, crop_px=64, precision="32-true", warm_up_steps=0, transfer=TRANSFER
)


def task(data, teacher_path, network="csrnet", **changes):
    config = replace(TINY, transfer=replace(TRANSFER, **changes))
    return TransferTask(network, NARROW, config, data, teacher=teacher_path)


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, {"blocks", "soft_blocks", "intra", "inter"}),
        ({"ground_truth": "hard"}, {"blocks", "intra", "inter"}),
        ({"ground_truth": "soft"}, {"soft_blocks", "intra", "inter"}),
        ({"intra": None}, {"blocks", "soft_blocks", "inter"}),
        ({"inter": None, "intra": "l2"}, {"blocks", "soft_blocks", "intra"}),
    ],
)
def test_a_recipe_chooses_the_terms(data, teacher, changes, terms):
    run = Run(task(data, teacher(), **changes))
    found = run.learn(run.batches(0))
    assert set(found) == terms | {"loss"}
    assert all(value > 0 for value in found.values())
    assert found["loss"] == pytest.approx(sum(found[name] for name in terms), rel=1e-5)


@pytest.mark.parametrize("weight", ["intra_weight", "inter_weight", "soft_weight"])
def test_a_weight_multiplies_its_term_alone(data, teacher, weight):
    path = teacher()
    plain, heavy = (
        run.learn(run.batches(0))
        for run in (Run(task(data, path)), Run(task(data, path, **{weight: 3.0})))
    )
    own = {"soft_weight": "soft_blocks"}.get(weight, weight.removesuffix("_weight"))
    for name in plain.keys() - {"loss"}:
        factor = 3 if name == own else 1
        assert heavy[name] == pytest.approx(factor * plain[name], rel=1e-4)


@pytest.mark.parametrize("network", ["csrnet", "bl", "sanet"])
@pytest.mark.parametrize("taps", ["code", "paper"])
def test_every_pair_of_the_paper_learns_and_the_student_ships_alone(
    data, teacher, tmp_path, network, taps
):
    learning = task(data, teacher(network), network, taps=taps)
    artifact = train(learning, tmp_path / "run")
    model, name, width = load_network(artifact.path)
    assert (name, width) == (network, NARROW)
    plain = build_model(network, NARROW).state_dict()
    assert list(model.state_dict()) == list(plain)


def test_the_teacher_stays_as_it_was(data, teacher):
    learning = task(data, teacher())
    before = {k: v.clone() for k, v in learning.teacher.state_dict().items()}
    run = Run(learning)
    list(steps(run))
    assert all(torch.equal(v, before[k]) for k, v in learning.teacher.state_dict().items())
    assert not any(p.requires_grad for p in learning.teacher.parameters())
    assert not any("teacher" in name for name, _ in run.module.named_parameters())


def test_a_student_comes_nearer_to_its_teacher(data, teacher):
    """What SKT is for: the distances sink, by more than from batch to batch."""
    heavy = replace(TRANSFER, intra_weight=30.0, inter_weight=30.0)
    config = replace(TINY, steps=40, learning_rate=0.01, transfer=heavy)
    run = Run(TransferTask("csrnet", NARROW, config, data, teacher=teacher()))
    terms = list(steps(run))
    for name in ("intra", "inter"):
        first, last = (sum(each[name] for each in part) for part in (terms[:5], terms[-5:]))
        assert last < 0.8 * first, (name, first, last)


def test_the_teachers_soft_map_is_what_it_answers(data, teacher):
    learning = task(data, teacher())
    image, _ = learning.on_device(learning.batch(0, range(2)), torch.device("cpu"))
    soft, features = learning.ask_teacher(image)
    with torch.no_grad():
        torch.testing.assert_close(soft, learning.teacher(image))
    assert [each.shape[1] for each in features] == [8, 8, 16, 32, 64, 32]


def test_a_loss_of_heads_still_sees_the_teachers_map(data, teacher):
    """Equation 7 for BL: its own loss knows no map, so the soft one is squared errors."""
    config = replace(TINY, loss="bayesian")
    learning = TransferTask("bl", NARROW, config, data, teacher=teacher("bl"))
    terms = Run(learning).learn([learning.batch(0, range(2))])
    assert {"heads", "background", "soft_squared"} < set(terms)
    assert terms["soft_squared"] > 0


def test_another_network_cannot_teach(data, teacher):
    with pytest.raises(TrainingError, match="cannot teach csrnet layer by layer") as caught:
        task(data, teacher("bl"))
    assert "--teacher" in caught.value.fix


def test_a_network_without_taps_is_refused(data, teacher):
    with pytest.raises(RecipeError, match="nothing of where to take features from MCNN"):
        task(data, teacher("mcnn", Fraction(1)), "mcnn")


def test_another_teacher_is_another_run(data, teacher, tmp_path):
    first = teacher()
    assert not train(task(data, first), tmp_path / "run").reused
    assert train(task(data, first), tmp_path / "run").reused
    assert not train(task(data, teacher(width=Fraction(1, 4))), tmp_path / "run").reused


@pytest.mark.parametrize(
    "wrong",
    [
        *({"intra": "cos"}, {"inter": "all"}, {"ground_truth": "none"}, {"taps": "x"}),
        *({"intra_weight": -1.0}, {"soft_weight": float("nan")}),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(RecipeError) as caught:
        Transfer(teacher="csrnet-quarter", **wrong)
    assert caught.value.fix
