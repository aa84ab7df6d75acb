"""The loop: it learns, keeps the best, is done once, and refuses what it cannot train."""

import json
import math
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from crowdrt.errors import CrowdRTError, DataError, TrainingError
from crowdrt.learning import Pruning, TrainingConfig
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.models import DENSITY_NETWORKS, NETWORKS
from crowdrt.models.weights import load_network
from crowdrt.models.weights_info import describe_weights
from crowdrt.training import loop
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.evaluate import count_errors
from crowdrt.training.counting.losses import density_loss
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask, target_border
from crowdrt.training.loop import identity_of, steps, train
from crowdrt.training.metrics import read_lines
from crowdrt.training.run import Run
from crowdrt.training.schedules import learning_rate

NARROW = Fraction(1, 16)
TINY = TrainingConfig(steps=2, batch_size=2, crop_px=64)


@pytest.fixture
def data(crowds):
    return TrainingSet((SampleGroup("crowds", crowds[1:], 1.0),), crowds[:1])


def tiny_task(data, config=TINY, *, network="csrnet"):
    return DensityTask(network, NARROW, config, data)


def tiny_run(data, out, config=TINY, *, network="csrnet", **options):
    return train(tiny_task(data, config, network=network), out, **options)


def test_forty_steps_learn(crowds):
    """From worse than answering nobody everywhere to half of that answer's loss."""
    config = replace(TINY, steps=40, batch_size=4, learning_rate=0.05)
    data = TrainingSet((SampleGroup("crowds", crowds, 1.0),), crowds[:1])
    run = Run(tiny_task(data, config))
    losses = [terms["loss"] for terms in steps(run)]
    last = [torch.from_numpy(run.batches(step)[0].density) for step in range(32, 40)]
    nobody = np.mean([density_loss(torch.zeros_like(target), target) for target in last])
    assert len(losses) == run.step == 40
    assert np.mean(losses[:4]) > nobody
    assert np.mean(losses[-8:]) < 0.6 * nobody


def test_a_cosine_warms_up_and_sinks_to_a_hundredth():
    config = TrainingConfig(steps=1000, learning_rate=0.5)
    warm = config.warm_up_steps
    rates = np.array([learning_rate(step, config) for step in range(1001)])
    assert rates[0] == pytest.approx(0.5 / warm, rel=1e-3)
    assert rates[-1] == pytest.approx(0.005)
    peak = rates.argmax()
    assert 0.9 * 0.5 < rates[peak] <= 0.5
    assert 0 < peak <= warm
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()


def test_what_ships_is_what_was_validated(data, tmp_path):
    artifact = tiny_run(data, tmp_path / "run", replace(TINY, steps=4), validate_every=2)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    best = min(lines, key=lambda line: line["mae"])
    model, network, width = load_network(artifact.path)
    errors = count_errors(model, data.validation, model.preprocessing)

    assert [line["step"] for line in lines] == [2, 4]
    assert (network, width) == ("csrnet", NARROW)
    assert errors.mae == pytest.approx(best["mae"], rel=1e-5)
    facts = read_manifest(artifact.path)["facts"]
    assert facts["validation_mae"] == best["mae"]
    assert 0 < facts["seconds"] < 600
    assert describe_weights(artifact.path).facts["step"] == best["step"]
    assert not any("." in name and "running" in name for name in model.state_dict())
    assert artifact.sha256 == sha256_file(artifact.path)


def test_the_best_network_is_kept_when_later_ones_are_worse(data, tmp_path, monkeypatch):
    maes = iter([9.0, 5.0, 7.0])
    validate = Run.validate

    def scripted(run):
        return {**validate(run), "mae": next(maes)}

    monkeypatch.setattr(Run, "validate", scripted)
    artifact = tiny_run(data, tmp_path / "run", replace(TINY, steps=3), validate_every=1)
    assert describe_weights(artifact.path).facts["step"] == 2
    assert read_manifest(artifact.path)["facts"]["validation_mae"] == 5.0


def test_a_finished_run_is_not_done_again(data, tmp_path, monkeypatch):
    first = tiny_run(data, tmp_path / "run")
    monkeypatch.setattr(loop, "Run", None)
    second = tiny_run(data, tmp_path / "run")
    assert not first.reused
    assert second.reused
    assert second.sha256 == first.sha256


def test_other_photographs_or_another_recipe_are_another_run(data, crowds, tmp_path):
    tiny_run(data, tmp_path / "run")
    fewer = TrainingSet((SampleGroup("crowds", crowds[2:], 1.0),), crowds[:1])
    assert not tiny_run(fewer, tmp_path / "run").reused
    assert not tiny_run(fewer, tmp_path / "run", replace(TINY, seed=1)).reused
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 1


@pytest.mark.parametrize("part", ["groups", "validation"])
@pytest.mark.parametrize("change", ["pixels", "heads"])
def test_a_changed_photograph_of_the_same_name_is_another_run(plain_photo, tmp_path, part, change):
    def data(**changed):
        samples = {
            name: plain_photo(f"{name}.png", size=(64, 64), **(changed if name == part else {}))
            for name in ("groups", "validation")
        }
        group = SampleGroup("photos", (samples["groups"],), 1.0)
        return TrainingSet((group,), (samples["validation"],))

    first = {"level": 100, "heads": [(20, 30)]}
    other = {"pixels": {"level": 101}, "heads": {"heads": [(21, 30)]}}[change]
    one = replace(TINY, steps=1)
    assert not tiny_run(data(**first), tmp_path / "run", one).reused
    assert tiny_run(data(**first), tmp_path / "run", one).reused
    assert not tiny_run(data(**first | other), tmp_path / "run", one).reused


def test_a_photograph_that_is_gone_is_named(plain_photo, tmp_path):
    sample = plain_photo("gone.png", size=(64, 64))
    sample.image.unlink()
    data = TrainingSet((SampleGroup("photos", (sample,), 1.0),), (sample,))
    with pytest.raises(DataError, match=r"gone\.png cannot be opened"):
        tiny_run(data, tmp_path / "run")


def test_a_checkpoint_of_another_recipe_is_not_resumed(data, tmp_path, monkeypatch, capsys):
    stopped = replace(TINY, steps=4)
    stop_at(monkeypatch, step=3)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(data, tmp_path / "run", stopped, save_every=1, validate_every=1)
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    (tmp_path / "run" / ".checkpoint.safetensors.tmp-x").touch()  # as a killed write leaves it
    artifact = tiny_run(data, tmp_path / "run")
    assert "starting from step 0" in capsys.readouterr().err.replace("\n", " ")
    assert describe_weights(artifact.path).facts["step"] <= 2
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [2]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {
        "losses.jsonl",
        "metrics.jsonl",
        "weights.safetensors",
        "weights.safetensors.json",
    }


def stop_at(monkeypatch, *, step):
    """Ctrl-C in the middle of a step."""
    learn = Run.learn

    def stopping(run, batches):
        if run.step == step:
            raise KeyboardInterrupt
        return learn(run, batches)

    monkeypatch.setattr(Run, "learn", stopping)


def test_a_lost_best_network_is_not_made_up(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "finish", lambda *_: None)
    tiny_run(data, tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(TrainingError, match="is gone") as caught:
        tiny_run(data, tmp_path / "run")
    assert "rm" in caught.value.fix


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_every_network_trains(data, tmp_path, network):
    artifact = tiny_run(data, tmp_path / "run", network=network)
    model, name, _ = load_network(artifact.path)
    image = torch.randn(1, model.preprocessing.num_channels, 64, 64)
    assert name == network
    assert torch.isfinite(model(image)).all()


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - set(DENSITY_NETWORKS)))
def test_a_network_without_a_map_is_refused_before_training(network):
    with pytest.raises(TrainingError, match=f"{network} does not learn from density") as caught:
        DensityTask(network, NARROW, TINY, TrainingSet((), ()))
    assert "csrnet" in caught.value.fix


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_a_target_has_the_size_of_the_answer_and_keeps_its_count(data, network):
    """SANet's map reaches 3.5 px over every border of its input; its target must do so too."""
    task = tiny_task(data, network=network)
    image = torch.zeros(1, task.preprocessing.num_channels, 64, 64)
    batch = task.batch(0, range(2))
    _, target = task.on_device(batch, torch.device("cpu"))
    assert target.shape[2:] == task.build().eval()(image).shape[2:]
    assert target.sum().item() == pytest.approx(batch.density.sum())
    assert target.sum() > 1
    assert task.border == ((3, 4, 3, 4) if network == "sanet" else (0, 0, 0, 0))


def test_a_border_is_not_looked_for_with_the_networks_own_state(data):
    model = tiny_task(data).build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    target_border(model, 64)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("network", "crop_px", "fix"),
    [("csrnet", 60, 64), ("bl", 72, 64), ("csrnet", 16, 32), ("bl", 33, 32), ("mcnn", 30, 32)],
)
def test_a_crop_that_does_not_divide_is_refused(data, network, crop_px, fix):
    with pytest.raises(TrainingError, match=f"crop_px={crop_px}") as caught:
        tiny_task(data, replace(TINY, crop_px=crop_px), network=network)
    assert caught.value.fix == f"use crop_px={fix}"
    tiny_task(data, replace(TINY, crop_px=fix), network=network)


def test_divergence_is_refused_before_it_reaches_the_weights(data, tmp_path):
    config = replace(TINY, steps=20, learning_rate=1e38)
    with pytest.raises(TrainingError, match=r"step \d+: the .* is (nan|inf)") as caught:
        tiny_run(data, tmp_path / "run", config)
    assert "learning_rate" in caught.value.fix
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(data, what):
    task = tiny_task(data)

    def broken(predicted, truth):
        zero = (predicted * 0).sum()
        return {"map": zero * math.nan if what == "loss" else zero.sqrt()}  # d sqrt(x) / dx at 0

    task.count_loss = broken
    run = Run(task)
    before = [parameter.clone() for parameter in run.model.parameters()]
    with pytest.raises(TrainingError, match=f"step 0: the {what} is"):
        run.learn(run.batches(0))
    assert all(map(torch.equal, before, run.model.parameters()))
    assert run.step == 0


def test_a_validation_error_that_is_not_finite_is_refused(data, tmp_path, monkeypatch):
    validate = Run.validate
    monkeypatch.setattr(Run, "validate", lambda run: {**validate(run), "mae": math.nan})
    with pytest.raises(TrainingError, match="step 2: the validation error is nan"):
        tiny_run(data, tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(Run, "learn", None)
    (tmp_path / "file").touch()
    with pytest.raises(CrowdRTError, match="could not be written") as caught:
        tiny_run(data, tmp_path / "file" / "run")
    assert caught.value.fix
    assert (tmp_path / "file").read_bytes() == b""


def test_a_folder_that_is_not_there_is_made(data, tmp_path):
    """Also when the first validation comes before the first checkpoint."""
    assert tiny_run(data, tmp_path / "a" / "b", validate_every=1).path.is_file()


def test_what_cannot_choose_the_best_network_is_refused(data, plain_photo, tmp_path):
    with pytest.raises(TrainingError, match="no annotated photograph to choose"):
        tiny_run(TrainingSet(data.groups, ()), tmp_path)
    unknown = plain_photo("unknown.png", heads=None)
    with pytest.raises(TrainingError, match=r"unknown\.png has no annotated heads"):
        tiny_run(TrainingSet(data.groups, (unknown,)), tmp_path)


def test_a_manifest_names_photographs_and_no_folder(data, tmp_path):
    artifact = tiny_run(data, tmp_path / "run")
    manifest = read_manifest(artifact.path)
    validation = data.validation[0]
    [found] = manifest["made_from"]["images"]["validation"]
    name, annotated, content = found.split(":")
    assert (name, annotated) == (validation.image.name, str(validation.annotated))
    assert len(content) == 16
    assert str(tmp_path) not in json.dumps(manifest)
    assert str(validation.image.parent) not in json.dumps(manifest)


def test_a_part_that_a_recipe_lacks_is_no_part_of_what_decides_its_weights():
    going_on = replace(TINY, batch_norm=False)
    pruned = replace(going_on, pruning=Pruning(method="l1", start="csrnet-quarter", macs=0.25))
    plain = identity_of(going_on)
    assert "pruning" not in plain
    assert None not in plain.values()
    assert plain["num_synthetic"] == 0  # what is nought decides, too
    assert identity_of(pruned) == plain | {"pruning": asdict(pruned)["pruning"]}
