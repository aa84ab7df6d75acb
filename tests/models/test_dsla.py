"""DSLA: pyramid, Feature Shuffle, boxes by hand, and detections that follow the image."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from crowdrt.contracts import NUM_DETECTIONS
from crowdrt.engines.decode import detections_of
from crowdrt.errors import ExportError
from crowdrt.export.deploy import deploy
from crowdrt.models import build_model
from crowdrt.models.dsla import (
    DSLA,
    STRIDES,
    best_detections,
    cell_centres,
    feature_shuffle,
    group_norm,
)
from crowdrt.models.weights import load_network, save_weights

EIGHTH = Fraction(1, 8)


@pytest.fixture
def model() -> DSLA:
    torch.manual_seed(0)
    return DSLA(EIGHTH, num_classes=3).eval()


def images(*, batch: int = 2, height: int = 128, width: int = 192) -> torch.Tensor:
    """Random blobs, which like photographs differ on every scale."""
    blobs = torch.randn(batch, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(blobs, size=(height, width), mode="bilinear")


def upset(module: nn.Module) -> None:
    """Give a normalisation the statistics of one that has learned."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.running_mean, std=0.2)
        nn.init.uniform_(module.running_var, 0.5, 2.0)


def test_the_pyramid_at_the_papers_size():
    """1280x800 has 21,330 cells; levels 6 and 7 round 12.5 and 6.5 rows up."""
    model = DSLA(Fraction(1, 32)).eval()
    with torch.no_grad():
        levels = model.pyramid(model.backbone(torch.zeros(1, 3, 800, 1280)))
    assert [tuple(level.shape[2:]) for level in levels] == [
        (100, 160), (50, 80), (25, 40), (13, 20), (7, 10),
    ]  # fmt: skip
    assert sum(level.shape[2] * level.shape[3] for level in levels) == 21_330


def test_a_stage_halves_the_resolution_in_its_first_convolution():
    """Caffe's form; in PyTorch's, the 3x3 behind it does, which costs 4.8 G more at 1280x800."""
    stages = DSLA(EIGHTH).backbone.stages
    first = [next(iter(stage)) for stage in stages]
    assert [block.reduce[0].stride[0] for block in first] == [1, 2, 2, 2]
    assert {block.middle[0].stride[0] for block in first} == {1}
    assert [len(stage) for stage in stages] == [3, 4, 6, 3]


def test_levels_6_and_7_read_the_level_below():
    torch.manual_seed(0)
    pyramid = DSLA(EIGHTH).pyramid
    stages = [
        torch.randn(1, lateral.in_channels, n, n)
        for lateral, n in zip(pyramid.lateral, (8, 4, 2), strict=True)
    ]
    levels = pyramid(stages)
    torch.testing.assert_close(levels[3], pyramid.level_6(levels[2]))
    torch.testing.assert_close(levels[4], pyramid.level_7(levels[3].clamp(min=0)))
    top = pyramid.lateral[2](stages[2])
    below = pyramid.lateral[1](stages[1]) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(levels[1], pyramid.smooth[1](below))


def slow_resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with aligned corners, cell by cell."""
    result = np.empty(size)
    for i, j in np.ndindex(size):
        places = []
        for index, have, want in zip((i, j), plane.shape, size, strict=True):
            place = index * (have - 1) / (want - 1) if want > 1 else 0.0
            low = min(math.floor(place), have - 1)
            places.append((low, min(low + 1, have - 1), place - low))
        (top, bottom, down), (left, right, across) = places
        upper = plane[top, left] * (1 - across) + plane[top, right] * across
        lower = plane[bottom, left] * (1 - across) + plane[bottom, right] * across
        result[i, j] = upper * (1 - down) + lower * down
    return result


def slow_shuffle(levels: list[np.ndarray]) -> list[np.ndarray]:
    """Feature Shuffle channel by channel, for one image of 8 channels: two go either way."""
    shuffled = []
    for i, own in enumerate(levels):
        coarser, finer = levels[min(i + 1, len(levels) - 1)], levels[max(i - 1, 0)]
        taken = (coarser[6], coarser[7], finer[4], finer[5])
        planes = [*own[:4], *(slow_resize(plane, own.shape[1:]) for plane in taken)]
        shuffled.append(np.stack(planes))
    return shuffled


def test_feature_shuffle_against_a_slow_one():
    sizes = ((10, 16), (5, 8), (3, 4), (2, 2), (1, 1))  # odd ones, and a single cell
    levels = [torch.randn(1, 8, *size) for size in sizes]
    expected = slow_shuffle([level[0].double().numpy() for level in levels])
    shuffled = feature_shuffle(levels)
    for level, slow, own in zip(shuffled, expected, levels, strict=True):
        np.testing.assert_allclose(level[0], slow, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(level[:, :4], own[:, :4])
    torch.testing.assert_close(shuffled[0][:, 6:], levels[0][:, 4:6])  # nothing is finer
    torch.testing.assert_close(shuffled[-1][:, 4:6], levels[-1][:, 6:])  # nothing is coarser


def test_onenet_is_the_same_network_without_the_shuffle(tmp_path):
    torch.manual_seed(0)
    plain, shuffled = build_model("onenet", EIGHTH).eval(), DSLA(EIGHTH).eval()
    shuffled.load_state_dict(plain.state_dict())
    levels = plain.pyramid(plain.backbone(images()))
    torch.testing.assert_close(plain.features(images())[0][1], plain.class_tower(levels[1]))
    answers = [each.forward_train(images()).logits[1] for each in (plain, shuffled)]
    assert (answers[0] - answers[1]).abs().max() > 0.01
    save_weights(plain, tmp_path / "a.safetensors", network="onenet", width=EIGHTH)
    loaded, name, _ = load_network(tmp_path / "a.safetensors")  # the file knows which of the two
    assert name == "onenet"
    torch.testing.assert_close(loaded.forward_train(images()).logits[1], answers[0])


def test_cell_centres_row_by_row():
    centres = cell_centres(torch.zeros(1, 1, 2, 3), 8)
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_boxes_by_hand():
    """Heads that answer their biases: left 0.5, top -1 (none), right 2, bottom 3 cells."""
    model = DSLA(Fraction(1, 32)).eval()
    nn.init.zeros_(model.box_head.weight)
    model.box_head.bias.data = torch.tensor([0.5, -1.0, 2.0, 3.0])
    model.scales[1].data.fill_(2.0)
    model.keep("raw")
    with torch.no_grad():
        _, boxes = model(torch.zeros(1, 3, 64, 96))
        unclipped = model.forward_train(torch.zeros(1, 3, 64, 96)).boxes
    assert boxes.shape == (1, 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1, 4)
    assert boxes[0, 0].tolist() == [0, 4, 20, 28]  # its centre is (4, 4), its cells have 8 px
    assert boxes[0, 13].tolist() == [8, 12, 28, 36]  # second row, second column: (12, 12)
    assert boxes[0, 96].tolist() == [0, 8, 72, 64]  # 16 px cells, scaled by 2: bottom at 104
    assert unclipped[1][0, 0].tolist() == [-8, 8, 72, 104]
    assert boxes[0, -1].tolist() == [0, 64, 96, 64]  # (64, 64) in one 128 px cell: on the border


def test_the_best_pairs_of_cell_and_class_by_hand():
    logits = torch.tensor([[[0.0, 2.0], [3.0, -1.0]]])
    boxes = torch.tensor([[[1.0, 1, 2, 2], [5, 5, 9, 9]]])
    chosen, scores, labels = best_detections(logits, boxes, 6)
    assert labels[0, :4].tolist() == [0, 1, 0, 1]
    assert chosen[0, :4, 0].tolist() == [5, 1, 1, 5]
    torch.testing.assert_close(scores[0, :4], torch.tensor([3.0, 2, 0, -1]).sigmoid())
    assert not scores[0, 4:].any()  # two cells of two classes have no more to say
    assert not chosen[0, 4:].any()


@pytest.mark.parametrize("size", [(128, 192), (32, 64)], ids=["more than K", "fewer than K"])
def test_both_outputs_give_the_same_detections(model, size):
    image = images(height=size[0], width=size[1])
    with torch.no_grad():
        decoded = dict(zip(model.output_names, model(image), strict=True))
        model.keep("raw")
        raw = dict(zip(model.output_names, model(image), strict=True))
    assert decoded["boxes"].shape == (2, NUM_DETECTIONS, 4)
    assert raw["logits"].shape == (*raw["boxes"].shape[:2], 3)
    inside, beside = (
        detections_of({name: tensor.numpy() for name, tensor in each.items()})
        for each in (decoded, raw)
    )
    for one, other in zip(inside, beside, strict=True):
        assert len(one.scores) == min(NUM_DETECTIONS, 3 * raw["boxes"].shape[1])
        assert one.scores.std() > 1e-3
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
        clear = np.flatnonzero(-np.diff(one.scores, prepend=2, append=-1) > 1e-6)
        alone = clear[:-1][np.diff(clear) == 1]  # of ties, either may come first
        assert len(alone) > len(one.scores) / 2
        np.testing.assert_array_equal(one.boxes[alone], other.boxes[alone])
        np.testing.assert_array_equal(one.labels[alone], other.labels[alone])


@pytest.mark.parametrize("width", [Fraction(1, 4), EIGHTH, Fraction(1, 32)], ids=str)
def test_a_fresh_network_looks_at_its_image(width):
    for seed in range(3):
        torch.manual_seed(seed)
        model = DSLA(width).eval()
        model.keep("raw")
        with torch.no_grad():
            logits, boxes = model(images())
        assert abs(logits.mean().item() + math.log(99)) < 1
        assert logits.std() > 0.05
        assert (logits[0] - logits[1]).abs().mean() > 0.05
        assert (boxes[0] - boxes[1]).abs().mean() > 0.3  # px
        best = logits[..., 0].topk(20).indices
        assert len(set(best[0].tolist()) & set(best[1].tolist())) < 15


def test_boxes_lie_on_the_image_and_scores_fall(model):
    with torch.no_grad():
        boxes, scores, labels = model(images())
    assert boxes.min() >= 0
    assert boxes[..., 0::2].max() == 192
    assert boxes[..., 1::2].max() == 128
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (scores.diff() <= 0).all()
    assert set(labels.unique().tolist()) == {0, 1, 2}
    assert labels.dtype == torch.int64


def test_training_sees_every_branch_level_by_level(model):
    answers = model.forward_train(images())
    cells = [16 * 24, 8 * 12, 4 * 6, 2 * 3, 1 * 2]
    for name, channels in (("logits", 3), ("soft_logits", 3), ("boxes", 4), ("centerness", 1)):
        shapes = [tuple(level.shape) for level in getattr(answers, name)]
        assert shapes == [(2, num, channels) for num in cells], name
    assert [tuple(level.shape) for level in answers.centres] == [(num, 2) for num in cells]
    with torch.no_grad():
        model.keep("raw")
        logits, _ = model(images())
    torch.testing.assert_close(torch.cat(answers.logits, dim=1), logits)
    assert (answers.logits[0] - answers.soft_logits[0]).abs().max() > 0.01  # heads of their own


def test_every_parameter_learns(model):
    model.train()
    answers = model.forward_train(images())
    sum(
        level.square().mean() for name in answers._fields[:4] for level in getattr(answers, name)
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "bias" in name, name


def test_deploying_leaves_no_training_branch_and_no_batch_norm(model):
    model.apply(upset)
    image = images(batch=1)
    shipped = deploy(model, image)
    names = {name.split(".")[0] for name in shipped.state_dict()}
    assert not names & {"sla_head", "centerness_head"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in shipped.modules())
    shipped.keep("raw")
    model.keep("raw")
    with torch.no_grad():
        for one, other in zip(model(image), shipped(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    with pytest.raises(AttributeError):
        shipped.forward_train(image)


def test_weights_hold_what_batch_norm_has_seen(tmp_path):
    torch.manual_seed(0)
    model = build_model("dsla", EIGHTH).apply(upset).eval()
    save_weights(model, tmp_path / "dsla.safetensors", network="dsla", width=EIGHTH)
    loaded, name, width = load_network(tmp_path / "dsla.safetensors")
    assert (name, width) == ("dsla", EIGHTH)
    with torch.no_grad():
        for one, other in zip(model(images()), loaded(images()), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("width", [Fraction(1, 3), Fraction(1, 7), Fraction(2, 99)], ids=str)
def test_any_width(width):
    model = DSLA(width).eval()
    with torch.no_grad():
        boxes, scores, _ = model(images(batch=1, height=64, width=64))
    assert torch.isfinite(boxes).all()
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (128, 16), (32, 4), (85, 5), (43, 1), (5, 1)]
)
def test_group_norm_keeps_about_eight_channels_together(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_sizes_are_padded_to_what_level_5_halves_exactly():
    assert DSLA.preprocessing.stride == STRIDES[2] == 32
    assert 800 % DSLA.preprocessing.stride == 1280 % DSLA.preprocessing.stride == 0


def test_an_output_that_is_not_offered_is_refused(model):
    with pytest.raises(ExportError, match="no output 'density'") as caught:
        model.keep("density")
    assert "--output boxes or --output raw" in caught.value.fix
