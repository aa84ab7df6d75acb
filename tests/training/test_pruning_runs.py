"""Pruned networks on the training loop: what closes when, what resumes, and what ships."""

from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from crowdrt.engines.ort import OrtEngine
from crowdrt.errors import RecipeError, TrainingError, WeightsError
from crowdrt.export.complexity import complexity, complexity_of_weights
from crowdrt.int8 import TrainedInt8
from crowdrt.learning import PRUNING_SETTINGS, Pruning, Quantization, TrainingConfig, Transfer
from crowdrt.models import build_model
from crowdrt.models.weights import load_network, save_weights
from crowdrt.pipeline.inspecting import inspect_path
from crowdrt.pipeline.networks import Origin, open_eager
from crowdrt.pipeline.stages import export_stage
from crowdrt.recipes import pruning, recipe_named
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.loop import train
from crowdrt.training.pruning.budget import fitting
from crowdrt.training.pruning.groups import groups_of, mask
from crowdrt.training.pruning.shaping import GATE, GradualShaping
from crowdrt.training.run import Run
from crowdrt.training.transfer.task import TransferTask

WIDTH, HALF = Fraction(1, 8), Fraction(1, 16)
PRUNING = Pruning(method="l1", start="csrnet-quarter", macs=0.3, multiple=1)
METHODS = {"l1": {}, "cp": {"crops": 2, "points": 20}, "agp": {"every": 2}}
TINY = TrainingConfig(
    steps=6,
    batch_size=2,
    crop_px=64,
    precision="32-true",
    warm_up_steps=0,
    average=0.5,
    batch_norm=False,
    pruning=PRUNING,
)
TRANSFER = Transfer(
    teacher="csrnet-quarter", taps="code", adapter_relu=True, normalise=True, mean=True
)


@pytest.fixture
def data(crowds):
    return TrainingSet((SampleGroup("crowds", crowds[1:], 1.0),), crowds[:1])


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Weights of a network whose answer varies."""
    torch.manual_seed(7)
    model = build_model("csrnet", WIDTH)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0, 0.1)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_weights(model, path, network="csrnet", width=WIDTH)
    return path


def config_of(method, **changes):
    settings = METHODS[method] | changes
    return replace(TINY, pruning=replace(PRUNING, method=method, **settings))


def task(data, start, method, **changes):
    return DensityTask("csrnet", WIDTH, config_of(method, **changes), data, pretrained=start)


def image():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def closed_in(model):
    return {
        name.removesuffix(f".{GATE}"): int((gate == 0).sum())
        for name, gate in model.named_buffers()
        if name.endswith(GATE)
    }


@pytest.mark.parametrize("method", METHODS)
def test_pruning_nothing_leaves_the_network_as_it_is(data, start, method):
    whole, *_ = load_network(start)
    each = task(data, start, method, macs=1.0)
    shipped = each.shipped(each.build().state_dict())
    torch.testing.assert_close(shipped(image()), whole(image()), rtol=0, atol=0)
    assert not shipped.pruned


# of 8, 16, 32 and 64 in the four stages and 64, 32, 16 and 8 behind them
EVEN = [4, 4, 9, 9, *[17] * 3, *[35] * 6, 17, 9, 4]
IN_EIGHTS = [*[8] * 4, *[16] * 3, *[24] * 6, 16, 8, 8]


@pytest.mark.parametrize(
    ("method", "multiple", "channels"),
    [
        ("l1", 1, EVEN),
        ("agp", 1, EVEN),
        ("cp", 1, [3, 3, 7, 7, *[13] * 3, *[40] * 6, 20, 10, 5]),
        ("l1", 8, IN_EIGHTS),
        ("agp", 8, IN_EIGHTS),
        ("cp", 8, [*[8] * 7, *[24] * 6, 16, 8, 8]),
    ],
)
def test_what_ships_has_the_budget_before_it_has_learned(
    data, start, method, multiple, channels, tmp_path
):
    """So the best network by validation can never be one that is not pruned yet."""
    each = task(data, start, method, multiple=multiple)
    shipped = each.shipped(each.build().state_dict())
    convs = [layer for layer in shipped.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [*channels, 1]
    path = tmp_path / "pruned.safetensors"
    save_weights(shipped, path, network="csrnet", width=WIDTH)
    whole, left = complexity("csrnet", WIDTH), complexity_of_weights(path)
    assert left.width == "pruned 1/8"
    assert 0.2 * whole.macs < left.macs <= 0.3 * whole.macs
    assert left.params == sum(each.numel() for each in shipped.parameters()) < whole.params


@pytest.fixture
def quantized(start, tmp_path):
    """The same weights, with ranges as if they had learned in INT8."""
    model, *_ = load_network(start)
    ranges = {name: 1.0 for name, each in model.named_modules() if isinstance(each, nn.Conv2d)}
    model.trained_int8 = TrainedInt8(ranges=ranges, weight_scales="channel")
    path = tmp_path / "qat.safetensors"
    save_weights(model, path, network="csrnet", width=WIDTH)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_the_start_do_not_outlive_its_channels(data, quantized, method):
    assert load_network(quantized)[0].trained_int8 is not None
    each = task(data, quantized, method)
    shipped = each.shipped(each.build().state_dict())
    assert shipped.pruned
    assert shipped.trained_int8 is None


def test_uniform_pruning_to_a_narrower_networks_cost_costs_the_same(data, start, tmp_path):
    whole, narrow = complexity("csrnet", WIDTH), complexity("csrnet", HALF)
    each = task(data, start, "l1", macs=narrow.macs / whole.macs)
    path = tmp_path / "pruned.safetensors"
    save_weights(each.shipped(each.build().state_dict()), path, network="csrnet", width=WIDTH)
    left = complexity_of_weights(path)
    assert (left.params, left.macs, left.paper_flops) == (
        *(narrow.params, narrow.macs),
        narrow.paper_flops,
    )


def test_gradual_pruning_follows_its_formula(data, start):
    """s_t = s_f + (s_i - s_f) (1 - t / T)^3, here with s_i = 0 and steps of two."""
    shaping = GradualShaping(replace(config_of("agp", over=0.5, every=2), steps=21))
    model, *_ = load_network(start)
    groups = groups_of(model)
    kept = fitting(model, groups, 0.3)
    final = {group.root: group.channels - kept[group.root] for group in groups}
    shaping.begin(model)
    found = []
    for step in range(21):
        shaping.before_step(model, step)
        found.append(closed_in(model))
    assert set(found[0].values()) == {0}  # s_0 = s_i
    assert found[10] == found[20] == final  # T = 10
    for step in range(11):
        share = 1 - (1 - (step // 2 * 2) / 10) ** 3
        assert found[step] == {root: round(number * share) for root, number in final.items()}
    assert found[1] == found[0] != found[2]
    assert shaping.done(4) == pytest.approx(1 - 0.6**3)


def test_closed_channels_are_the_smallest_and_stay_closed(start):
    shaping = GradualShaping(replace(config_of("agp", over=1.0, every=1), steps=4))
    model, *_ = load_network(start)
    first = model.front_end[0]
    with torch.no_grad():
        first.weight[[2, 5]] *= 1e-3
    shaping.begin(model)
    shaping.before_step(model, 1)
    closed = torch.nonzero(first.gate == 0).flatten().tolist()
    assert {2, 5} <= set(closed)
    assert not first.weight[closed].any()
    with torch.no_grad():
        first.weight[closed] = 100.0  # as an optimiser's momentum would move them
        first.bias[closed] = 100.0
    shaping.before_step(model, 2)
    assert set(closed) <= set(torch.nonzero(first.gate == 0).flatten().tolist())
    assert not first.weight[closed].any()
    assert not first.bias[closed].any()


def test_gates_ship_as_removed_channels(start):
    """The network that ships answers what the one with closed gates does."""
    shaping = GradualShaping(replace(config_of("agp", over=0.5), steps=4))
    model, *_ = load_network(start)
    shaping.begin(model)
    for step in range(4):
        shaping.before_step(model, step)
    expected = model(image())
    shipped = shaping.ship(build_model("csrnet", WIDTH), model.state_dict())
    assert expected.std() > 1e-6
    assert not any(name.endswith(GATE) for name in shipped.state_dict())
    torch.testing.assert_close(shipped(image()), expected, rtol=1e-4, atol=1e-6)


def test_a_gate_that_is_averaged_stays_closed(start):
    """A moving average of weights averages gates, too: 1 and then 0 is neither."""
    shaping = GradualShaping(replace(config_of("agp", macs=1.0), steps=4))
    model, *_ = load_network(start)
    shaping.begin(model)
    state = dict(model.state_dict())
    state["front_end.0.gate"] = torch.tensor([1, 1, 0.998, 1, 1, 1e-30, 1, 1])
    model.front_end[0].gate.copy_(state["front_end.0.gate"])
    groups, _ = shaping.plan(model)
    shaping._plan = groups, {g.root: g.channels - 2 * (g.root == "front_end.0") for g in groups}
    shipped = shaping.ship(build_model("csrnet", WIDTH), state)
    assert shipped.front_end[0].out_channels == 6
    masked, *_ = load_network(start)
    mask(masked, groups, {"front_end.0": [2, 5]})
    torch.testing.assert_close(shipped(image()), masked(image()), rtol=1e-4, atol=1e-6)


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a run is the same to the bit with the same number
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("method", ["agp", "cp"])
def test_a_resumed_run_ends_with_the_same_bytes(data, start, method, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(task(data, start, method), whole, save_every=2, validate_every=3)

    learn = Run.learn

    def killed(run, batches):
        if run.step == 5:
            raise KeyboardInterrupt
        return learn(run, batches)

    monkeypatch.setattr(Run, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        train(task(data, start, method), broken, save_every=2, validate_every=3)
    monkeypatch.setattr(Run, "learn", learn)
    assert (broken / "checkpoint.safetensors").is_file()
    assert "resuming" not in capsys.readouterr().err
    train(task(data, start, method), broken, save_every=2, validate_every=3)
    assert "resuming at step 4" in capsys.readouterr().err

    name = "weights.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert load_network(whole / name)[0].pruned


@pytest.mark.parametrize("method", ["l1", "agp"])
def test_a_pruned_network_learns_beside_a_teacher(data, start, method, tmp_path):
    """Adapters are as wide as what is left, and the taps are where they were."""
    config = replace(config_of(method), transfer=TRANSFER, steps=2)
    each = TransferTask("csrnet", WIDTH, config, data, teacher=start, pretrained=start)
    model = each.build()
    narrow = model.adapters[0][0].in_channels
    assert narrow == (8 if method == "agp" else model.student.front_end[0].out_channels) <= 8
    losses = each.losses(model, each.batch(0, range(2)), device=torch.device("cpu"))
    assert set(losses) == {"blocks", "soft_blocks", "intra", "inter"}
    artifact = train(each, tmp_path, validate_every=2)
    shipped, network, _ = load_network(artifact.path)
    assert (network, shipped.pruned) == ("csrnet", True)


def test_what_is_exported_costs_and_counts_what_was_claimed(data, start, tmp_path):
    """The ONNX file has the parameters and MACs, and ONNX Runtime's answers are PyTorch's."""
    each = task(data, start, "cp")
    path = tmp_path / "pruned.safetensors"
    shipped = each.shipped(each.build().state_dict())
    save_weights(shipped, path, network="csrnet", width=WIDTH)
    origin = Origin(network="csrnet", width=WIDTH, weights=path)
    onnx = export_stage(origin, tmp_path / "pruned.onnx", size=(96, 128)).path

    claimed, found = complexity_of_weights(path, (96, 128)), inspect_path(onnx, None)
    assert (found["params"], found["macs"]) == (claimed.params, claimed.macs)
    assert claimed.macs < complexity("csrnet", WIDTH, (96, 128)).macs
    pixels = torch.randint(256, (1, 3, 96, 128), dtype=torch.uint8).numpy()
    ours = open_eager("csrnet", WIDTH, path, 1).run({"image": pixels})
    theirs = OrtEngine(onnx).run({"image": pixels})
    assert ours["density"].std() > 1e-6
    scale = np.abs(ours["density"]).max()
    np.testing.assert_allclose(theirs["density"], ours["density"], atol=1e-5 * scale)
    np.testing.assert_allclose(theirs["count"], ours["count"], rtol=1e-4)


def test_a_pruned_network_can_be_pruned_again(data, start, tmp_path):
    first = task(data, start, "l1", macs=0.5)
    path = tmp_path / "once.safetensors"
    save_weights(first.shipped(first.build().state_dict()), path, network="csrnet", width=WIDTH)
    for method in ("l1", "agp"):
        again = task(data, path, method, macs=0.5)
        shipped = again.shipped(again.build().state_dict())
        twice = tmp_path / f"{method}.safetensors"
        save_weights(shipped, twice, network="csrnet", width=WIDTH)
        assert complexity_of_weights(twice).macs <= 0.5 * complexity_of_weights(path).macs


def test_quantization_goes_on_with_a_pruned_network(data, start, tmp_path):
    first = task(data, start, "l1")
    path = tmp_path / "pruned.safetensors"
    save_weights(first.shipped(first.build().state_dict()), path, network="csrnet", width=WIDTH)
    config = replace(TINY, pruning=None, quantization=Quantization(method="qat", start="x"))
    each = DensityTask("csrnet", WIDTH, config, data, pretrained=path)
    state = each.build().state_dict()
    path.unlink()  # a run that has begun needs it no more
    shipped = each.shipped(state)
    assert shipped.pruned
    assert shipped.front_end[0].out_channels < 8


def test_what_cannot_be_pruned_is_refused(data, start):
    with pytest.raises(RecipeError, match="batch_norm=True"):
        replace(TINY, batch_norm=True)
    with pytest.raises(RecipeError, match="one after the other") as caught:
        replace(TINY, quantization=Quantization(method="qat", start="x"))
    assert caught.value.fix.endswith("--data DIR -o OUT")
    with pytest.raises(TrainingError, match="only a trained csrnet"):
        DensityTask("csrnet", WIDTH, TINY, data).build()
    with pytest.raises(WeightsError, match="csrnet at width 1/8, not csrnet at width 1/16"):
        DensityTask("csrnet", HALF, TINY, data, pretrained=start).build()


@pytest.mark.parametrize(
    "changes",
    [{"method": "l2"}, {"macs": 0}, {"macs": 1.5}, {"over": 0}, {"every": 0}, {"points": -1}],
    ids=str,
)
def test_settings_that_prune_nothing_are_refused(changes):
    with pytest.raises(RecipeError):
        replace(PRUNING, **changes)


@pytest.mark.parametrize(
    ("method", "unused"),
    [("l1", "deep"), ("l1", "crops"), ("agp", "points"), ("l1", "every"), ("cp", "over")],
)
def test_settings_that_a_method_would_not_look_at_are_refused(method, unused):
    for other in METHODS:
        if unused in PRUNING_SETTINGS[other]:
            replace(PRUNING, method=other, **{unused: 1})
    with pytest.raises(RecipeError, match=f"method '{method}' has no {unused}"):
        replace(PRUNING, method=method, **{unused: 1})


def test_every_setting_is_of_some_method():
    common = {"method", "start", "macs"}
    found = {name for names in PRUNING_SETTINGS.values() for name in names}
    assert {each.name for each in fields(Pruning)} == common | found


def test_recipes_begin_with_a_network_as_wide_as_theirs():
    """Their budgets of training and of multiply-accumulates: test_compression_recipes.py."""
    for method in ("l1filter", "cp", "agp"):
        published, small = (recipe_named(f"skt-5-{method}{s}") for s in ("", "-cpu"))
        assert published.training.pruning.macs == pruning.QUARTER / pruning.WHOLE
        assert small.training.pruning.macs == pruning.EIGHTH / pruning.QUARTER
        for recipe in (published, small):
            assert recipe_named(recipe.training.pruning.start).width == recipe.width
    both = recipe_named("skt-5-l1filter-skt-cpu").training
    assert both.transfer is not None
    assert both.pruning is not None
