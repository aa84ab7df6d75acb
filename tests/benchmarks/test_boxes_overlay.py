import numpy as np
import pytest

from crowdrt.benchmarks.overlays.boxes import DRAWN, FOUND, LEFT_OUT, draw_boxes
from crowdrt.contracts import BoxSample, Detections

GREY = np.full((3, 100, 200), 128, np.uint8)  # drawn four times as large
SCALE = 4


def found(*boxes, scores=None) -> Detections:
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores or [1.0] * len(boxes), np.float32),
        labels=np.zeros(len(boxes), np.int64),
    )


def sample(tmp_path, *boxes, ignore=None) -> BoxSample:
    return BoxSample(
        image=tmp_path / "a.jpg",
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        ignore=np.array(ignore or [False] * len(boxes), np.bool_),
    )


def drawn(*arguments) -> np.ndarray:
    return np.asarray(draw_boxes(GREY, *arguments))


def places(picture, colour) -> list[float]:
    """Left, top, right and bottom of a colour on the photograph, in its pixels."""
    rows, columns = np.nonzero((picture[: 100 * SCALE] == colour).all(axis=2))
    return [round(v / SCALE) for v in (columns.min(), rows.min(), columns.max(), rows.max())]


def test_each_kind_of_box_has_its_colour_and_place(tmp_path):
    annotation = sample(tmp_path, [110, 20, 130, 60], [150, 10, 190, 90], ignore=[False, True])
    picture = drawn(found([20, 30, 60, 80]), annotation)
    assert places(picture, FOUND) == pytest.approx([20, 30, 60, 80], abs=1)
    assert places(picture, DRAWN) == pytest.approx([110, 20, 130, 60], abs=1)
    assert places(picture, LEFT_OUT) == pytest.approx([150, 10, 190, 90], abs=1)


def test_a_doubtful_box_is_fainter(tmp_path):
    picture = drawn(found([20, 30, 60, 80], scores=[0.1]), BoxSample(image=tmp_path))
    assert (picture[: 100 * SCALE] != 128).any()
    assert not (picture[: 100 * SCALE] == FOUND).all(axis=2).any()


def test_a_small_box_has_no_room_for_its_score(tmp_path):
    large = drawn(found([20, 30, 60, 80]), BoxSample(image=tmp_path))
    small = drawn(found([20, 30, 24, 80]), BoxSample(image=tmp_path))
    inside = np.s_[31 * SCALE : 50 * SCALE, 21 * SCALE : 23 * SCALE]
    assert (large[inside] != 128).any()
    assert (small[inside] == 128).all()


def test_the_caption_names_what_is_drawn(tmp_path):
    bars = [
        drawn(found([20, 30, 60, 80]), each)[100 * SCALE :]
        for each in (BoxSample(image=tmp_path), sample(tmp_path), sample(tmp_path, [1, 2, 30, 40]))
    ]
    assert not np.array_equal(bars[0], bars[1])
    assert not np.array_equal(bars[1], bars[2])
    assert [(bar == DRAWN).all(axis=2).any() for bar in bars] == [False, True, True]


def test_nobody_there_is_a_picture_too(tmp_path):
    picture = drawn(found(), sample(tmp_path))
    assert (picture[: 100 * SCALE] == 128).all()
