"""Crops with boxes: clipped, mirrored, ignored by rule, and the same ones at every asking."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crowdrt.contracts import IMAGENET, BoxSample
from crowdrt.errors import TrainingError
from crowdrt.learning import Assignment, TrainingConfig
from crowdrt.training.detection.crops import (
    MIN_HEIGHT_PX,
    MIN_INSIDE,
    BoxCrops,
    BoxGroup,
    boxes_in,
    window_of,
)
from crowdrt.training.photographs.windows import Window

CONFIG = TrainingConfig(crop_px=64, batch_norm=False, assignment=Assignment(), seed=1)
WHOLE = Window(left=0, top=0, width=64, height=64, size=(64, 64))


def boxes_of(*boxes) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


def none_of(boxes: np.ndarray) -> np.ndarray:
    return np.zeros(len(boxes), np.bool_)


def test_boxes_follow_the_window_by_hand():
    window = Window(left=10, top=20, width=32, height=32, size=(64, 64))
    boxes = boxes_of((14, 20, 24, 40), (30, 30, 50, 60), (42, 0, 50, 90))
    found, ignore = boxes_in(boxes, none_of(boxes), window)
    assert found.tolist() == [[8, 0, 28, 40], [40, 20, 64, 64]]  # the third is right of it
    assert ignore.tolist() == [False, False]  # of the second, 12/20 x 22/30 are inside
    mirrored, _ = boxes_in(boxes, none_of(boxes), replace(window, mirrored=True))
    assert mirrored.tolist() == [[36, 0, 56, 40], [0, 20, 24, 64]]


def test_whose_part_inside_is_too_small_is_ignored():
    just, less = 64 - 20 * MIN_INSIDE - 0.1, 64 - 20 * MIN_INSIDE + 0.1
    boxes = boxes_of((just, 0, just + 20, 20), (less, 0, less + 20, 20))
    _, ignore = boxes_in(boxes, none_of(boxes), WHOLE)
    assert ignore.tolist() == [False, True]


def test_who_is_too_small_is_ignored_and_so_is_what_the_annotation_ignores():
    high = MIN_HEIGHT_PX + 0.1
    boxes = boxes_of((0, 0, 4, high), (0, 0, 4, high - 0.2), (20, 20, 40, 60))
    _, ignore = boxes_in(boxes, np.array([False, False, True]), WHOLE)
    assert ignore.tolist() == [False, True, True]


@pytest.fixture
def photograph(tmp_path) -> BoxSample:
    """Black, with one white rectangle that its box surrounds exactly."""
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[60:150, 100:160] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = boxes_of((100, 60, 160, 150))
    return BoxSample(image=tmp_path / "a.png", boxes=boxes, ignore=none_of(boxes))


def crops_of(photograph: BoxSample, config: TrainingConfig = CONFIG) -> BoxCrops:
    return BoxCrops([BoxGroup("one", (photograph,))], IMAGENET, config)


def test_the_box_stays_around_what_it_surrounds(photograph):
    config = replace(CONFIG, colours=False, short_side_px=100)
    batch = crops_of(photograph, config).batch(0, range(12))
    seen = 0
    for image, boxes in zip(batch.images, batch.boxes, strict=True):
        white = np.argwhere(image[0] > 127)
        if len(boxes) and len(white):
            x1, y1, x2, y2 = boxes[0]
            found = [white[:, 1].min(), white[:, 0].min(), *(white.max(axis=0)[::-1] + 1)]
            np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1.0)
            seen += 1
    assert seen >= 6
    assert len({boxes.tobytes() for boxes in batch.boxes}) > 6  # the crops differ


def test_a_batch_is_a_function_of_seed_step_and_member(photograph):
    whole = crops_of(photograph).batch(5, range(4))
    again = crops_of(photograph).batch(5, range(2, 4))
    np.testing.assert_array_equal(whole.images[2:], again.images)
    for one, other in zip(whole.boxes[2:], again.boxes, strict=True):
        np.testing.assert_array_equal(one, other)
    other_step = crops_of(photograph).batch(6, range(4))
    assert (whole.images != other_step.images).any()


def test_scales_are_those_of_the_short_side():
    """Of 300x200 px at a short side of 100 px, crops show half as much again, down to 0.6."""
    config = replace(CONFIG, short_side_px=100)
    rng = np.random.default_rng(0)
    scales = [window_of(rng, (300, 200), config).scale for _ in range(200)]
    assert 0.32 <= min(scales) < 0.34  # no smaller than the crop fits: 64 px of 200
    assert 0.7 < max(scales) <= 0.75
    fixed = replace(config, crops="fixed")
    assert {window_of(rng, (300, 200), fixed).scale for _ in range(5)} == {0.5}
    as_it_is = replace(fixed, short_side_px=0)
    assert window_of(rng, (300, 200), as_it_is).width == 64


def test_a_photograph_smaller_than_the_crop_is_enlarged():
    window = window_of(np.random.default_rng(0), (40, 50), CONFIG)
    assert max(window.width, window.height) <= 40
    assert window.cut(Image.new("RGB", (40, 50))).size == (64, 64)


def test_half_of_the_crops_are_mirrored():
    rng = np.random.default_rng(0)
    found = [window_of(rng, (300, 200), CONFIG).mirrored for _ in range(200)]
    assert 80 < sum(found) < 120
    never = replace(CONFIG, flip=0.0)
    assert not any(window_of(rng, (300, 200), never).mirrored for _ in range(20))


def test_shares_are_kept(photograph):
    groups = [BoxGroup("much", (photograph,), 9.0), BoxGroup("little", (nobody_on(photograph),))]
    batch = BoxCrops(groups, IMAGENET, CONFIG).batch(0, range(100))
    assert 2 <= sum(not len(boxes) for boxes in batch.boxes) < 60


def nobody_on(photograph: BoxSample) -> BoxSample:
    return replace(photograph, boxes=boxes_of(), ignore=np.zeros(0, np.bool_))


def test_a_photograph_of_nobody_is_learned_from(photograph):
    batch = crops_of(nobody_on(photograph)).batch(0, range(2))
    assert [boxes.shape for boxes in batch.boxes] == [(0, 4)] * 2


def test_what_is_not_annotated_is_refused(photograph):
    with pytest.raises(TrainingError, match=r"a\.png has no annotated boxes"):
        crops_of(BoxSample(image=photograph.image))
    with pytest.raises(TrainingError, match="no annotated photograph"):
        BoxCrops([BoxGroup("none", ())], IMAGENET, CONFIG)
