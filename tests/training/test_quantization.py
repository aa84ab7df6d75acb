"""Learning in simulated INT8: the grid, the gradients, the ranges, and what ships."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from crowdrt.calibration.int8 import qdq
from crowdrt.errors import RecipeError, TrainingError
from crowdrt.int8 import activation_scale
from crowdrt.learning import Quantization, TrainingConfig, Transfer
from crowdrt.models import build_model
from crowdrt.models.weights import load_network, save_weights
from crowdrt.models.weights_info import describe_weights
from crowdrt.recipes import RECIPES
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.loop import steps, train
from crowdrt.training.quantization.convolution import QuantizedConv, quantize_conv
from crowdrt.training.quantization.grid import (
    quantized_activations,
    rounded_weights,
    scales_of_weights,
)
from crowdrt.training.quantization.shaping import quantized_convs
from crowdrt.training.quantization.simulation import IntegerConv, simulate
from crowdrt.training.run import Run
from crowdrt.training.transfer.task import TransferTask

NARROW = Fraction(1, 16)
QAT = Quantization(method="qat", start="csrnet-quarter")
DOREFA = replace(QAT, method="dorefa")
TINY = TrainingConfig(
    steps=4,
    batch_size=2,
    crop_px=64,
    precision="32-true",
    warm_up_steps=0,
    learning_rate=1e-3,
    batch_norm=False,
    average=0.5,
    quantization=QAT,
)


@pytest.fixture
def data(crowds):
    return TrainingSet((SampleGroup("crowds", crowds[1:], 1.0),), crowds[:1])


@pytest.fixture
def start(tmp_path):
    """Weights that answer something; none of a real training."""

    def write(network="csrnet", width=NARROW):
        torch.manual_seed(5)
        path = tmp_path / f"{network}-{width.denominator}.safetensors"
        save_weights(build_model(network, width), path, network=network, width=width)
        return path

    return write


@pytest.fixture
def task(data, start):
    def make(config=TINY, network="csrnet"):
        return DensityTask(network, NARROW, config, data, pretrained=start(network))

    return make


def conv_of(weight, bias, options=QAT):
    out_channels, in_channels, *size = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, size, bias=bias is not None)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            conv.bias.copy_(bias)
    return quantize_conv(conv, options)


def test_activations_on_the_grid_stay_and_others_go_to_the_nearest():
    scale = float(activation_scale(2.54))
    codes = torch.arange(-128, 128)
    assert torch.equal(quantized_activations(codes * scale, scale), codes * scale)
    found = quantized_activations(torch.tensor([0.0301, 0.0299, -3.0, 9.0]), scale)
    torch.testing.assert_close(found, torch.tensor([0.04, 0.02, -2.56, 2.54]))


def test_the_gradient_passes_straight_through_inside_the_range_alone():
    features = torch.tensor([-2.7, -2.5, 0.0, 0.333, 2.5, 2.7], requires_grad=True)
    quantized_activations(features, 0.02).sum().backward()
    assert features.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_each_output_channel_has_its_scale():
    weight = torch.tensor([[1.27, -0.5], [0.1, -0.254]]).view(2, 2, 1, 1)
    scales = scales_of_weights(weight, None, 1.0, 127)
    torch.testing.assert_close(scales, torch.tensor([0.01, 0.002]))
    found = rounded_weights(weight.clone().requires_grad_(), scales)
    wanted = torch.tensor([[1.27, -0.5], [0.1, -0.254]]).view(2, 2, 1, 1)
    torch.testing.assert_close(found.detach(), wanted)
    other = rounded_weights(torch.tensor([0.0149, 0.0051]).view(2, 1, 1, 1), scales)
    torch.testing.assert_close(other.flatten(), torch.tensor([0.01, 0.006]))


def test_gradients_of_weights_pass_straight_through():
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    scales = scales_of_weights(weight, None, 1.0, 127)
    upstream = torch.randn(3, 2, 3, 3)
    (rounded_weights(weight, scales) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("limit", [64, 127])
def test_scales_are_those_that_calibration_writes(limit):
    """Also of a dead channel, and of one whose bias dwarfs its weights."""
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    weight[1], bias[1] = 0, 0
    weight[2], bias[2] = weight[2] * 1e-12, 5.0
    node = qdq.helper.make_node("Conv", ["x", "w", "b"], ["y"])
    stored = {"w": weight.numpy(), "b": bias.numpy()}
    scale = float(activation_scale(3.7))
    wanted = qdq.weight_scales(node, stored, scale, limit)
    found = scales_of_weights(weight, bias, scale, limit)
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert found[2] > 1e3 * weight[2].abs().max() / limit


def test_dorefa_by_hand():
    """Of t = tanh(w) the largest is m = tanh(1); each weight is f round(127 t / m) / 127."""
    conv = conv_of(torch.tensor([[2.0, -0.3], [0.1, 0.0]]).view(2, 2, 1, 1), None, DOREFA)
    learned = torch.tensor([1.0, -0.5, 0.1, 0.0])
    with torch.no_grad():
        conv.weight.copy_(learned.view(2, 2, 1, 1))
    codes = [127, -77, 17, 0]  # 127 x 0.46212 / 0.76159 = 77.1; 127 x 0.09967 / 0.76159 = 16.6
    wanted = torch.tensor([2 * code / 127 for code in codes])
    torch.testing.assert_close(conv.shipped_weight().flatten(), wanted)
    conv.shipped_weight().sum().backward()
    t = torch.tanh(learned)
    slope = 2 * (1 - t**2) / t[0]
    torch.testing.assert_close(conv.weight.grad.flatten()[1:], slope[1:])


def test_dorefa_begins_with_the_start_rounded_on_one_scale_per_layer():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    scale = weight.abs().max() / 127
    conv = conv_of(weight, torch.zeros(4), DOREFA)
    apart = (conv.shipped_weight() - weight).abs().max()
    assert apart < 0.501 * scale
    codes = conv.shipped_weight().detach() / scale
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    with torch.no_grad():
        conv.weight *= 2  # whatever is learned, the scale stays
    largest = conv.shipped_weight().detach().abs().max()
    torch.testing.assert_close(largest, weight.abs().max())


def test_dorefa_bears_a_layer_of_zeros():
    conv = conv_of(torch.zeros(2, 2, 1, 1), None, DOREFA)
    conv.shipped_weight().sum().backward()
    assert not conv.shipped_weight().any()
    assert torch.isfinite(conv.weight.grad).all()


def test_ranges_follow_the_largest_values_and_then_stay():
    conv = conv_of(torch.ones(1, 1, 1, 1), None, replace(QAT, range_decay=0.75))
    seen = []
    for largest, observing in ((0.0, True), (4.0, True), (-8.0, True), (100.0, False)):
        conv.observing = observing
        conv(torch.tensor([0.5, largest]).view(1, 1, 1, 2) if largest else torch.zeros(1, 1, 1, 2))
        seen.append(float(conv.input_range))
    assert seen == [0, 4, 0.75 * 4 + 0.25 * 8, 5]
    conv.observing = True
    conv.eval()(torch.full((1, 1, 1, 1), 50.0))
    assert float(conv.input_range) == 5


def test_ranges_move_for_their_share_of_the_steps(task):
    run = Run(task(replace(TINY, quantization=replace(QAT, moving=0.5))))
    moved, last = [], None
    for _ in steps(run):
        now = [float(conv.input_range) for _, conv in quantized_convs(run.module)]
        moved.append(last is None or now != last)
        last = now
    assert moved == [True, True, False, False]


def test_a_layer_computes_with_the_rounded_numbers():
    torch.manual_seed(0)
    conv = conv_of(torch.randn(3, 2, 3, 3), torch.randn(3))
    features = torch.randn(1, 2, 8, 8)
    found = conv(features)
    codes = quantized_activations(features, float(features.abs().max()) / 127)
    wanted = nn.functional.conv2d(codes, conv.shipped_weight(), conv.bias)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, nn.functional.conv2d(features, conv.weight, conv.bias))


@pytest.mark.parametrize("options", [QAT, DOREFA], ids=lambda options: options.method)
def test_what_ships_lies_on_its_grid(task, options, tmp_path):
    learning = task(replace(TINY, quantization=options))
    artifact = train(learning, tmp_path / "run")
    model, *_ = load_network(artifact.path)
    trained = model.trained_int8
    assert list(model.state_dict()) == list(build_model("csrnet", NARROW).state_dict())
    convs = {name for name, each in model.named_modules() if isinstance(each, nn.Conv2d)}
    assert set(trained.ranges) == convs - {"density_head"}
    assert trained.weight_scales == ("channel" if options is QAT else "layer")
    assert all(0 < value < 100 for value in trained.ranges.values())
    for name, largest in trained.ranges.items():
        conv = model.get_submodule(name)
        scales = scales_of_weights(conv.weight, conv.bias, float(activation_scale(largest)), 127)
        if options is DOREFA:
            scales = scales.max().expand_as(scales)
        codes = (conv.weight / scales.view(-1, 1, 1, 1)).detach()
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
        assert codes.unique().numel() > 50
    start = build_model("csrnet", NARROW)
    assert not torch.equal(model.density_head.weight, start.density_head.weight)


def test_validation_is_of_what_the_int8_file_counts(task):
    learning = task()
    run = Run(learning)
    run.learn(run.batches(0))
    shipped = run.shipped()
    assert sum(isinstance(each, IntegerConv) for each in shipped.modules()) == 16
    again = build_model("csrnet", NARROW).eval()
    again.load_state_dict(shipped.state_dict())
    image, _ = learning.on_device(learning.batch(1, range(1)), torch.device("cpu"))
    with torch.no_grad():
        float_map, int8_map = again(image), shipped(image)
        again.trained_int8 = shipped.trained_int8
        torch.testing.assert_close(simulate(again)(image), int8_map)
    change = (float_map - int8_map).norm() / float_map.norm()
    assert 1e-4 < change < 0.2


def test_training_computes_nearly_what_ships(task):
    """Sums in another order round a few codes otherwise, and no more."""
    run = Run(task(replace(TINY, average=0)))
    for _ in steps(run):
        pass
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        learning, shipped = run.module.eval()(image), run.shipped()(image)
    assert (learning - shipped).norm() < 0.05 * shipped.norm()
    assert shipped.std() > 1e-3


def test_a_killed_run_ends_in_the_same_bytes(task, tmp_path, monkeypatch, capsys):
    options = {"save_every": 1, "validate_every": 2}
    config = replace(TINY, quantization=replace(QAT, moving=0.75))
    whole = train(task(config), tmp_path / "whole", **options)

    def killed(run, *args):
        if run.step == 2:
            raise KeyboardInterrupt
        return learn(run, *args)

    learn = Run.learn
    with monkeypatch.context() as patch:
        patch.setattr(Run, "learn", killed)
        with pytest.raises(KeyboardInterrupt):
            train(task(config), tmp_path / "killed", **options)
    assert "resuming" not in capsys.readouterr().err
    again = train(task(config), tmp_path / "killed", **options)
    assert "resuming at step 2" in capsys.readouterr().err
    assert again.sha256 == whole.sha256
    assert describe_weights(again.path).trained_int8 == describe_weights(whole.path).trained_int8


def test_a_quantized_student_learns_beside_its_teacher(data, start, tmp_path):
    transfer = Transfer(
        teacher="csrnet-quarter", taps="code", adapter_relu=True, normalise=True, mean=True
    )
    config = replace(TINY, steps=2, transfer=transfer)
    learning = TransferTask(
        *("csrnet", NARROW, config, data),
        teacher=start(width=Fraction(1, 8)),
        pretrained=start(),
    )
    artifact = train(learning, tmp_path / "run")
    model, _, width = load_network(artifact.path)
    assert width == NARROW
    assert len(model.trained_int8.ranges) == 16
    assert not any("student" in name for name in model.trained_int8.ranges)


def test_mcnns_columns_have_one_range_for_the_image(data, start):
    learning = DensityTask(
        "mcnn", Fraction(1, 2), TINY, data, pretrained=start("mcnn", Fraction(1, 2))
    )
    run = Run(learning)
    run.learn(run.batches(0))
    ranges = run.shipped().trained_int8.ranges
    firsts = {ranges[f"columns.{number}.0"] for number in range(3)}
    assert len(ranges) == 12
    assert len(firsts) == 1


def test_networks_whose_file_has_more_in_int8_are_refused(task):
    with pytest.raises(TrainingError, match="cannot simulate its INT8 file") as caught:
        task(network="bl").build()
    assert "crowdrt calibrate" in caught.value.fix


def test_weights_to_begin_with_are_needed(data):
    with pytest.raises(TrainingError, match="there are no weights"):
        DensityTask("csrnet", NARROW, TINY, data).build()


@pytest.mark.parametrize("wrong", [{"batch_norm": True}, {"precision": "bf16-mixed"}])
def test_what_the_engine_would_not_compute_is_refused(wrong):
    with pytest.raises(RecipeError, match="would not compute"):
        replace(TINY, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "lsq"},
        {"weight_bits": 4},
        {"moving": 1.5},
        {"moving": 0},  # no range would ever be observed
        {"range_decay": float("nan")},
    ],
)
def test_a_quantization_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(RecipeError) as caught:
        replace(QAT, **wrong)
    assert caught.value.fix


def test_recipes_begin_with_what_there_is():
    found = {each.name: each for each in RECIPES if each.training.quantization is not None}
    widths = {name: str(each.width) for name, each in found.items()}
    assert widths == {
        "skt-5-dorefa": "1",
        "skt-5-qat": "1",
        "skt-5-dorefa-cpu": "1/4",
        "skt-5-qat-cpu": "1/4",
        "skt-5-skt-qat-cpu": "1/8",
    }
    by_name = {each.name: each for each in RECIPES}
    for recipe in found.values():
        start = by_name[recipe.training.start]
        assert (start.network, start.width) == (recipe.network, recipe.width)
        assert not recipe.training.batch_norm


def test_a_quantized_convolution_keeps_the_names_of_its_parameters():
    conv = conv_of(torch.ones(1, 1, 1, 1), torch.ones(1))
    assert isinstance(conv, QuantizedConv)
    assert list(conv.state_dict()) == ["weight", "bias", "input_range"]
