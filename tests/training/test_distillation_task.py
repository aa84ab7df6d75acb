"""Students of the other distillation papers: their terms, their stages, and what ships."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from crowdrt.errors import RecipeError, TrainingError
from crowdrt.learning import Distillation, TrainingConfig, Transfer
from crowdrt.manifest import sha256_file
from crowdrt.models import build_model
from crowdrt.models.taps import TappedStudent
from crowdrt.models.weights import load_network, save_weights
from crowdrt.training import loop
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.distillation.task import distillation_task
from crowdrt.training.loop import steps, train
from crowdrt.training.run import Run

NARROW, WIDE = Fraction(1, 16), Fraction(1, 8)
TINY = TrainingConfig(
    steps=2, batch_size=2, crop_px=64, precision="32-true", warm_up_steps=0, average=0
)
METHODS = {
    "fitnets": {"first_stage": 0.5, "mean": True},
    "dml": {},
    "nst": {"weight": 5.0},
    "at": {"weight": 2.0, "mean": True},
    "ab": {"first_stage": 0.5, "mean": True},
}
TERMS = {
    "fitnets": ({"fitnets"}, {"blocks", "soft_blocks"}),
    "dml": ({"blocks", "soft_blocks", "peer_blocks", "peer_soft_blocks"},) * 2,
    "nst": ({"blocks", "nst"},) * 2,
    "at": ({"blocks", "at"},) * 2,
    "ab": ({"ab"}, {"blocks"}),
}
every_method = pytest.mark.parametrize("method", METHODS)


def task(data, teacher_path, method, network="csrnet", *, config=TINY, **changes):
    settings = METHODS[method] | changes
    taught = {} if method == "dml" else {"teacher": "csrnet-quarter"}
    config = replace(config, distillation=Distillation(method=method, **taught, **settings))
    path = None if method == "dml" else teacher_path
    return distillation_task(network, NARROW, config, data, teacher=path)


@every_method
def test_every_method_learns_by_its_terms_and_the_student_ships_alone(
    data, teacher, tmp_path, method
):
    run = Run(task(data, teacher(), method))
    found = list(steps(run))
    for terms, names in zip(found, TERMS[method], strict=True):
        assert set(terms) == {*names, "loss"}
        assert all(value > 0 for value in terms.values())
        assert terms["loss"] == pytest.approx(sum(terms[name] for name in names), rel=1e-5)
    shipped = run.shipped()
    save_weights(shipped, tmp_path / "student.safetensors", network="csrnet", width=NARROW)
    model, *_ = load_network(tmp_path / "student.safetensors")
    image = torch.randn(1, 3, 64, 64)
    run.module.eval()
    torch.testing.assert_close(model(image), run.module(image))


@pytest.mark.parametrize("network", ["bl", "sanet"])
@every_method
def test_every_network_of_skt_learns(data, teacher, method, network):
    loss = {"bl": "bayesian", "sanet": "sanet"}[network]
    stages = 2 if "first_stage" in METHODS[method] else 1
    config = replace(TINY, loss=loss, steps=stages)
    learning = task(data, teacher(network), method, network, config=config)
    found = list(steps(run := Run(learning)))
    soft = {name for name in found[-1] if "soft_" in name}
    assert bool(soft) == (method in ("fitnets", "dml"))
    assert not any("heads" in name for name in soft)  # a map has none
    assert list(run.shipped().state_dict()) == list(build_model(network, NARROW).state_dict())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dml"])
def test_gradients_reach_the_student_and_never_the_teacher(data, teacher, method):
    learning = task(data, teacher(), method)
    before = {k: v.clone() for k, v in learning.teacher.state_dict().items()}
    run = Run(learning)
    run.descend(run.batches(0))
    first = run.module.student.front_end[0]
    assert sum(p.grad.abs().sum() for p in first.parameters()) > 0
    assert all(p.grad is None for p in learning.teacher.parameters())
    list(steps(run))
    assert all(torch.equal(v, before[k]) for k, v in learning.teacher.state_dict().items())
    assert not any("teacher" in name for name, _ in run.module.named_parameters())


@pytest.mark.parametrize("method", ["fitnets", "nst", "at", "ab"])
def test_a_student_comes_nearer_to_its_teacher(data, teacher, method):
    """What the distances are for: they sink, by more than from batch to batch."""
    config = replace(TINY, steps=20, learning_rate=0.01)
    weight = {"nst": 100.0, "at": 100.0}.get(method, 1.0)
    stages = {"first_stage": 0.97} if method in ("fitnets", "ab") else {}
    run = Run(task(data, teacher(), method, config=config, weight=weight, **stages))
    found = [terms[method] for terms in steps(run) if method in terms]
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def test_a_peers_map_is_learned_from_and_does_not_learn_from_it(data):
    run = Run(task(data, None, "dml"))
    terms = run.task.losses(run.model, run.batches(0)[0], device=torch.device("cpu"))
    student, peer = (list(each.parameters()) for each in (run.module.student, run.module.peer))
    for name, learns, stays in (
        ("soft_blocks", student, peer),
        ("peer_soft_blocks", peer, student),
    ):
        grads = torch.autograd.grad(
            terms[name], learns + stays, retain_graph=True, allow_unused=True
        )
        assert grads[0].abs().sum() > 0
        assert all(each is None for each in grads[len(learns) :])


def test_ab_sees_values_before_the_relu_and_at_behind_it(data, teacher):
    path = teacher()
    for method, below in (("ab", True), ("at", False)):
        learning = task(data, path, method)
        image, _ = learning.on_device(learning.batch(0, range(2)), torch.device("cpu"))
        _, theirs = learning.ask_teacher(image)
        student = learning.build()
        student.adapters = nn.ModuleList(nn.Identity() for _ in theirs)
        for ours in (student.forward_train(image).features, theirs):
            assert [bool((each < 0).any()) for each in ours] == [below] * 6


@pytest.mark.parametrize("method", ["fitnets", "ab"])
def test_an_answer_that_is_not_learned_from_is_not_returned(data, teacher, monkeypatch, method):
    """Several devices would wait for the gradients of its layers."""
    run = Run(task(data, teacher(), method))
    returned = []
    forward = TappedStudent.forward_train

    def watched(student, image, **options):
        returned.append(forward(student, image, **options))
        return returned[-1]

    monkeypatch.setattr(TappedStudent, "forward_train", watched)
    list(steps(run))
    assert [answer.density for answer in returned] == [None]
    assert forward(run.module, torch.randn(1, 3, 64, 64)).density.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dml"])
def test_a_weight_multiplies_the_distance_alone(data, teacher, method):
    path = teacher()
    plain, heavy = (
        run.learn(run.batches(0))
        for run in (Run(task(data, path, method, weight=weight)) for weight in (1.0, 3.0))
    )
    assert heavy.pop(method) == pytest.approx(3 * plain.pop(method), rel=1e-4)
    assert heavy.pop("loss") != plain.pop("loss")
    assert heavy == pytest.approx(plain, rel=1e-4)


def test_peers_come_nearer_to_each_other(data):
    """On one batch, far more than two that learn from the annotation alone."""
    config = replace(TINY, steps=20, learning_rate=1e-3, schedule="constant")

    def apart(soft_weight):
        run = Run(task(data, None, "dml", config=config, soft_weight=soft_weight))
        batches = run.batches(0)
        for _ in range(20):
            run.learn(batches)
        image, _ = run.task.on_device(batches[0], torch.device("cpu"))
        with torch.no_grad():
            mine, other = run.module.forward_train(image)
        assert mine.std() > 1e-3
        return (mine - other).square().mean().item()

    assert 0 < apart(5.0) < 0.5 * apart(0.0)


@pytest.mark.parametrize(("method", "last"), [("fitnets", "front_end.16"), ("ab", "back_end.7")])
def test_each_stage_leaves_the_others_layers_as_they_are(data, teacher, method, last):
    """The first what is behind the last tap, whatever decays; the second the adapters."""
    config = replace(TINY, steps=4, optimizer="adam", weight_decay=0.1)
    run = Run(task(data, teacher(), method, config=config, taps="code"))
    states = [state_of(run)]
    for _ in range(4):
        run.learn(run.batches(run.step))
        states.append(state_of(run))
    changed = {
        stage: {name for name in states[0] if not torch.equal(one[name], two[name])}
        for stage, one, two in (("first", states[0], states[2]), ("second", *states[2::2]))
    }
    order = [name.rpartition(".")[0] for name in states[0] if name.startswith("student.")]
    behind = [name for name in order if place(name) > place(f"student.{last}")]
    assert "student.density_head" in behind
    assert not any(name.startswith(tuple(behind)) for name in changed["first"])
    assert any(name.startswith("adapters.") for name in changed["first"])
    assert any(name.startswith("student.front_end.0") for name in changed["first"])
    assert not any(name.startswith("adapters.") for name in changed["second"])
    assert {"student.density_head.weight", "student.front_end.0.0.weight"} < changed["second"]


def state_of(run):
    """The parameters: statistics of batch normalisation move wherever something is computed."""
    return {name: value.detach().clone() for name, value in run.module.named_parameters()}


def place(name):
    """front_end.4.0 -> its place in a CSRNet's order."""
    stack, *rest = name.split(".")[1:]
    stacks = ["front_end", "back_end", "density_head"]
    return stacks.index(stack), int(rest[0]) if rest and rest[0].isdigit() else 0


def test_the_first_stage_is_a_share_of_the_steps(data, teacher):
    path = teacher()
    for number, share, first in ((8, 0.25, 2), (2, 0.01, 1), (2, 0.99, 1), (6, 0.5, 3)):
        config = replace(TINY, steps=number)
        assert task(data, path, "ab", config=config, first_stage=share).first_steps == first


def test_the_weight_of_the_teachers_map_is_linear_over_the_second_stage(data, teacher):
    config = replace(TINY, steps=6)
    learning = task(data, teacher(), "fitnets", config=config, soft_weight=4.0, soft_last=1.0)
    weights = []
    for step in range(3, 6):
        weights.append(learning.soft_weight(step))
    assert weights == [4.0, 2.5, 1.0]


@pytest.mark.parametrize(("method", "stop"), [("fitnets", 1), ("ab", 3)])
def test_a_run_killed_in_either_stage_ends_with_the_same_bytes(
    data, teacher, tmp_path, monkeypatch, method, stop
):
    """The optimiser has no moments yet of layers that the first stage leaves out."""
    config = replace(TINY, steps=4, average=0.9)
    path = teacher()
    whole = train(task(data, path, method, config=config), tmp_path / "whole", save_every=1)
    save = loop.save

    def save_and_stop(run, *args, **named):
        save(run, *args, **named)
        if run.step == stop:
            raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(task(data, path, method, config=config), out, save_every=1)
    assert (out / "checkpoint.safetensors").is_file()
    resumed = train(task(data, path, method, config=config), out, save_every=1)
    assert sha256_file(resumed.path) == sha256_file(whole.path)


def test_every_method_begins_with_the_student_that_learns_alone(data, teacher):
    alone = Run(DensityTask("csrnet", NARROW, TINY, data)).module.state_dict()
    path = teacher()
    for method in METHODS:
        student = Run(task(data, path, method)).module.student.state_dict()
        assert all(torch.equal(value, student[name]) for name, value in alone.items()), method


def test_peers_begin_differently(data):
    peers = Run(task(data, None, "dml")).module
    mine, other = (each.front_end[0][0].weight for each in (peers.student, peers.peer))
    assert mine.shape == other.shape
    assert not torch.equal(mine, other)


def test_no_method_needs_more_of_the_student_than_its_adapters(data, teacher):
    path = teacher()
    kinds = {
        method: [type(m) for m in task(data, path, method).build().adapters]
        for method in ("nst", "at")
    }
    assert kinds == {"nst": [nn.Identity] * 6, "at": [nn.Identity] * 6}
    [regressor] = task(data, path, "fitnets").build().adapters
    assert [type(m) for m in regressor] == [nn.Conv2d, nn.ReLU]
    connectors = task(data, path, "ab").build().adapters
    assert [[type(m) for m in each] for each in connectors] == [[nn.Conv2d, nn.BatchNorm2d]] * 6
    assert connectors[0][0].weight.shape == (8, 4, 1, 1)


def test_a_teacher_that_cannot_teach_is_refused(data, teacher):
    with pytest.raises(TrainingError, match="cannot teach csrnet layer by layer"):
        task(data, teacher("bl"), "at")
    with pytest.raises(TrainingError, match=r"hint=4: sanet has the taps 0 to 3") as caught:
        task(data, teacher("sanet"), "fitnets", "sanet", hint=4)
    assert "distillation.hint=2" in caught.value.fix


def test_peers_that_would_begin_alike_are_refused(data, teacher):
    config = replace(TINY, distillation=Distillation(method="dml"))
    with pytest.raises(TrainingError, match="have nothing to tell each other"):
        distillation_task("csrnet", NARROW, config, data, teacher=None, pretrained=teacher())


def test_another_teacher_is_another_run(data, teacher):
    path, wider = teacher(), teacher(width=Fraction(1, 4))
    first, same, other = (task(data, each, "at").made_from() for each in (path, path, wider))
    assert first == same != other


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "kd"}, "method='kd' is unknown"),
        ({"method": "at", "teacher": None}, "with teacher=None"),
        ({"method": "dml"}, "with teacher='csrnet-quarter'"),
        ({"method": "at", "margin": 2.0}, "method 'at' has no margin"),
        ({"method": "nst", "mean": True}, "method 'nst' has no mean"),
        ({"method": "ab", "soft_last": 1.0}, "method 'ab' has no soft_last"),
        ({"method": "ab", "first_stage": 1.0}, "leaves no step"),
        ({"method": "ab", "margin": 0.0}, "margin=0.0 is no positive number"),
        ({"method": "at", "weight": -1.0}, "weight=-1.0 is no positive number"),
        ({"method": "fitnets", "soft_last": float("nan")}, "soft_last=nan"),
        ({"method": "at", "taps": "x"}, "taps='x' is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(RecipeError, match=message) as caught:
        Distillation(**{"teacher": "csrnet-quarter", **wrong})
    assert caught.value.fix


def test_two_ways_to_learn_from_a_teacher_are_refused():
    with pytest.raises(RecipeError, match="two ways"):
        TrainingConfig(
            transfer=Transfer(teacher="csrnet-quarter"),
            distillation=Distillation(method="at", teacher="csrnet-quarter"),
        )
