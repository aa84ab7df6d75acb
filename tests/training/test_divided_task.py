"""DeepCount as a task: whose gradients reach the backbone, what ships, how a run goes on."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from crowdrt.contracts import Sample
from crowdrt.engines.base import open_engine
from crowdrt.errors import ParityError, TrainingError, WeightsError
from crowdrt.export.deploy import deploy
from crowdrt.learning import BRANCH_SIZES, GradientFusion
from crowdrt.models import build_model
from crowdrt.models.deepcount import BRANCHES, DeepCount
from crowdrt.models.weights import load_into, load_network, save_weights
from crowdrt.models.weights_info import describe_weights
from crowdrt.pipeline.learning import TrainOptions, with_options
from crowdrt.pipeline.learning import task_of as task_of_recipe
from crowdrt.pipeline.networks import Origin
from crowdrt.pipeline.stages import export_stage
from crowdrt.recipes import recipe_named
from crowdrt.recipes.deepcount import ON_A_CPU, PUBLISHED
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.divided.evaluate import divided_errors
from crowdrt.training.divided.task import DeepCountTask
from crowdrt.training.loop import train
from crowdrt.training.run import Run

NARROW, TILE = Fraction(1, 32), (384, 512)
CPU = torch.device("cpu")
ABLATED = ("3x4", "12x16")
TINY = replace(ON_A_CPU, steps=3, batch_size=2, precision="32-true")


@pytest.fixture
def data(crowds):
    return TrainingSet((SampleGroup("crowds", crowds[1:], 1.0),), crowds[:1])


def task_of(data, *, branches=BRANCH_SIZES, network="deepcount", config=TINY, **fusion):
    config = replace(config, fusion=GradientFusion(branches=branches, **fusion))
    return DeepCountTask(network, NARROW, config, data)


def scene():
    torch.manual_seed(3)
    return functional.interpolate(torch.randn(1, 3, 6, 8), size=TILE, mode="bilinear")


def gradients(task, model, term=None):
    """The gradient of one term, or of all, by the name of the part of the network."""
    found = task.losses(model, task.batch(0, range(2)), device=CPU)
    loss = sum(found.values()) if term is None else found[term]
    model.zero_grad(set_to_none=True)
    loss.backward()
    learned = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
    return {name.split(".")[0] for name, p in learned if p.grad.any()}


@pytest.mark.parametrize("cells", BRANCH_SIZES)
def test_each_branch_teaches_the_backbone_and_no_other_branch(data, cells):
    task = task_of(data)
    torch.manual_seed(0)
    model = task.build()
    taught = gradients(task, model, f"density:{cells}")
    assert {"front_end", "first", "halvings", "summary"} <= taught
    assert {name for name in taught if name.startswith("branch")} == {BRANCHES[cells]}
    assert "count_head" not in taught


def test_a_branch_that_is_left_out_neither_learns_nor_teaches(data):
    task = task_of(data, branches=("3x4", "6x8"))
    torch.manual_seed(0)
    model = task.build()
    terms = task.losses(model, task.batch(0, range(2)), device=CPU)
    assert [*terms] == ["count", "density:3x4", "density:6x8"]
    assert gradients(task, model) == {
        *("front_end", "first", "halvings", "summary", "count_head"),
        *("branch_5", "branch_4"),
    }
    for name in task.left_out:
        delattr(model, name)  # what is not there cannot be computed
    assert gradients(task, model) >= {"front_end", "count_head"}


def test_the_front_end_learns_at_half_the_rate_and_kernels_alone_decay(data):
    task = task_of(data, config=replace(TINY, backbone_rate=0.5, weight_decay=1e-5))
    model = task.build()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = task.parameter_groups(model)
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            in_front = names[id(parameter)].startswith("front_end.")
            assert group["scale"] == (0.5 if in_front else 1.0)
            assert group["weight_decay"] == (1e-5 if parameter.ndim == 4 else 0.0)


def test_a_step_of_gradient_descent_is_equation_6_with_its_l2(data):
    """w - rate * (gradient + lambda * w), and half of that in the front end."""
    config = replace(PUBLISHED, steps=1, batch_size=2, learning_rate=0.01, weight_decay=0.3)
    run = Run(DeepCountTask("deepcount", NARROW, config, data))
    kernels = run.module.front_end[0].weight, run.module.count_head.weight
    biases = run.module.front_end[0].bias, run.module.count_head.bias
    before = [p.detach().clone() for p in (*kernels, *biases)]
    run.learn(run.batches(0))
    for parameter, old, rate, decay in zip(
        (*kernels, *biases), before, (0.005, 0.01, 0.005, 0.01), (0.3, 0.3, 0, 0), strict=True
    ):
        expected = old - rate * (parameter.grad + decay * old)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-8)
        assert parameter.grad.abs().max() > 0


def test_what_ships_is_the_backbone_and_counts_as_it_was_validated(data, tmp_path):
    """Trained with normalisation, folded, saved, loaded by its name, exported: one answer."""
    task = task_of(data, network="deepcount-relu")
    artifact = train(task, tmp_path / "run")
    model, found, width = load_network(artifact.path)
    shipped = deploy(model, scene())
    origin = Origin(network=found, width=width, weights=artifact.path)
    engine = open_engine(export_stage(origin, tmp_path / "model.onnx").path)
    people = engine.run({"image": task.batch(9, range(1)).images})["count"]
    pixels = task.normalise(torch.from_numpy(task.batch(9, range(1)).images))

    assert (found, model.slope) == ("deepcount-relu", 0.0)
    assert not [name for name in shipped.state_dict() if "branch" in name or "running" in name]
    assert [output.name for output in engine.outputs] == ["count"]
    with torch.no_grad():
        np.testing.assert_allclose(people, model(pixels).numpy(), rtol=1e-4)
        torch.testing.assert_close(shipped(pixels), model(pixels))
    again = divided_errors(model, data.validation)
    assert again.mae == pytest.approx(describe_weights(artifact.path).facts["mae"], rel=1e-5)


def test_a_branch_that_never_learned_is_not_exported_unnoticed(data):
    task = task_of(data, branches=("3x4",))
    torch.manual_seed(0)
    model = task.shipped(task.build().state_dict())
    model.keep("density:48x64")
    with pytest.raises(ParityError, match="density is the same everywhere"):
        deploy(model, scene())
    model.keep("density:3x4")
    deploy(model, scene())


def test_a_killed_run_goes_on_to_the_same_weights(data, tmp_path, monkeypatch):
    """With branches left out, too, of which the optimiser has no moments."""
    options = {"save_every": 1, "validate_every": 3}
    whole = train(task_of(data, branches=ABLATED), tmp_path / "whole", **options)
    learn = Run.learn

    def dies(run, batches):
        if run.step == 2:
            raise KeyboardInterrupt
        return learn(run, batches)

    monkeypatch.setattr(Run, "learn", dies)
    with pytest.raises(KeyboardInterrupt):
        train(task_of(data, branches=ABLATED), tmp_path / "killed", **options)
    monkeypatch.setattr(Run, "learn", learn)
    resumed = train(task_of(data, branches=ABLATED), tmp_path / "killed", **options)
    assert resumed.sha256 == whole.sha256
    other = train(task_of(data, branches=ABLATED[:1]), tmp_path / "killed", **options)
    assert not other.reused


def test_the_optimiser_knows_nothing_of_a_branch_that_is_left_out(data):
    task = task_of(data, branches=("3x4", "6x8"))
    model = task.build()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(p)] for group in task.parameter_groups(model) for p in group["params"]]
    assert {name.split(".")[0] for name in names.values()} - {n.split(".")[0] for n in listed} == {
        *("branch_1", "branch_2", "branch_3")
    }


def test_weights_of_the_ablation_are_no_weights_of_the_standard_network(tmp_path):
    path = tmp_path / "relu.safetensors"
    relu = build_model("deepcount-relu", NARROW)
    save_weights(relu, path, network="deepcount-relu", width=NARROW)
    with pytest.raises(WeightsError, match="holds deepcount-relu at width 1/32, not deepcount"):
        load_into(DeepCount(NARROW), path, network="deepcount", width=NARROW)


class TenPerTile(DeepCount):
    """Sees ten people on every tile."""

    def forward(self, image):
        return torch.full((len(image),), 10.0)


def test_counts_of_tiles_add_up(tmp_path, plain_photo):
    """2 x 3 tiles, six times ten people: one too few; and one tile: three too many."""
    samples = [
        plain_photo("wide.png", size=(1536, 768), heads=[(1, 1)] * 61),
        plain_photo("small.png", size=(512, 384), heads=[(1, 1)] * 7),
    ]
    errors = divided_errors(TenPerTile(NARROW), samples)
    assert (errors.mae, errors.bias, errors.num_images) == (2.0, 1.0, 2)


def test_networks_without_branches_and_sets_without_validation_are_refused(data):
    with pytest.raises(TrainingError, match="csrnet counts without branches"):
        task_of(data, network="csrnet")
    unknown = Sample(image=data.validation[0].image, heads=None)
    for validation in ((), (unknown,)):
        with pytest.raises(TrainingError):
            task_of(TrainingSet(data.groups, validation))


def test_recipes_are_the_rows_of_the_tables():
    """The paper numbers its branches from the largest map on."""
    base = recipe_named("deepcount-2")
    for same in ("deepcount-4", "deepcount-5", "deepcount-8-leaky-relu", "deepcount-9-all"):
        recipe = recipe_named(same)
        assert (recipe.network, recipe.width) == (base.network, base.width) == ("deepcount", 1)
        assert recipe.training == base.training
    assert recipe_named("deepcount-8-relu").network == "deepcount-relu"
    left = {"1": ("3x4", "6x8", "12x16", "24x32"), "1-2": ("3x4", "6x8", "12x16"), "1-5": ()}
    for suffix in ("", "-cpu"):
        for gone, branches in left.items():
            config = recipe_named(f"deepcount-9-without-{gone}{suffix}").training
            assert config.fusion == GradientFusion(branches=branches)
    code = recipe_named("deepcount-2-code").training
    assert (code.optimizer, code.sigma_px, code.fusion.half) == ("adam", 10.0, False)


def test_a_recipe_with_fusion_is_trained_by_its_task(data, tmp_path):
    options = TrainOptions(seed=5)
    recipe = with_options(recipe_named("deepcount-8-relu-cpu"), options)
    task = task_of_recipe(
        recipe, data=data.groups[0].samples[0].image.parent, out=tmp_path, options=options
    )
    assert isinstance(task, DeepCountTask)
    assert (task.network, task.config.seed) == ("deepcount-relu", 5)
