"""Detections outside the graph: a case worked by hand, and what is no detector's answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from crowdrt.engines.decode import decode, detections_of, sigmoid
from crowdrt.errors import EngineError


def corners(num_cells: int) -> np.ndarray:
    """Boxes that tell which cell they belong to: cell i is (i, 0, i + 1, 10)."""
    left = np.arange(num_cells, dtype=np.float32)
    return np.stack([left, 0 * left, left + 1, 0 * left + 10], axis=1)


def test_three_cells_and_two_classes_by_hand():
    logits = np.log(np.array([[1, 3], [9, 1 / 4], [1 / 3, 99]], np.float32))  # odds
    found = decode(logits, corners(3), 4)
    np.testing.assert_allclose(found.scores, [0.99, 0.9, 0.75, 0.5], rtol=1e-6)
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.boxes[:, 0].tolist() == [2, 1, 0, 0]  # one cell, twice: nothing is suppressed
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == ("f4", "f4", "i8")


def test_a_batch_and_both_forms_of_an_answer():
    logits = np.array([[[0.0], [2.0]], [[1.0], [-3.0]]], np.float32)
    boxes = np.stack([corners(2), corners(2) + 5])
    scores = np.array([[2.0, 0.0], [1.0, -3.0]], np.float32)
    order = np.array([[1, 0], [0, 1]])
    decoded = {
        "boxes": np.take_along_axis(boxes, order[..., None], axis=1),
        "scores": sigmoid(scores),
        "labels": np.zeros((2, 2), np.int32),  # TensorRT 8 has no int64
    }
    raw = detections_of({"logits": logits, "boxes": boxes})
    listed = detections_of(decoded)
    assert [each.boxes[0, 0] for each in raw] == [1, 5]
    for one, other in zip(raw, listed, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


def test_rows_that_only_fill_the_list_are_dropped():
    scores = np.array([[0.5, 0.25, 0.0, 0.0]], np.float32)
    filled = {"boxes": corners(4)[None], "scores": scores, "labels": np.zeros((1, 4), np.int64)}
    assert detections_of(filled)[0].scores.tolist() == [0.5, 0.25]
    assert detections_of(filled, num_detections=1)[0].scores.tolist() == [0.5]


def test_of_equals_at_the_end_the_first_cells_are_kept():
    logits = np.array([[0.0], [1.0], [0.0], [0.0]], np.float32)
    assert decode(logits, corners(4), 3).boxes[:, 0].tolist() == [1, 0, 2]


@given(
    arrays.arrays(np.float32, (7, 3), elements=st.floats(-8, 8, width=16)),
    st.integers(1, 30),
)
def test_it_is_a_sort_of_everything(logits, num):
    found = decode(logits, corners(7), num)
    order = np.argsort(-logits.ravel(), kind="stable")[:num]
    assert found.boxes[:, 0].tolist() == (order // 3).tolist()
    assert found.labels.tolist() == (order % 3).tolist()
    exact = 1 / (1 + np.exp(-logits.ravel()[order].astype(np.float64)))
    np.testing.assert_allclose(found.scores, exact, rtol=1e-6)


def test_sigmoid_reaches_its_limits_without_a_warning():
    with np.errstate(over="raise"):
        assert sigmoid(np.array([-1000, 0, 1000], np.float32)).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ({"density": np.zeros((1, 1, 3, 4)), "count": np.zeros(1)}, "count"),
        ({"boxes": np.zeros((1, 5, 4)), "scores": np.zeros((1, 5))}, "scores"),
        ({"boxes": np.zeros((1, 5, 4)), "logits": np.zeros((1, 6, 1))}, "6"),
        ({"boxes": np.zeros((1, 5, 3)), "logits": np.zeros((1, 5, 1))}, "5, 3"),
        ({"boxes": np.full((1, 5, 4), np.nan), "logits": np.zeros((1, 5, 1))}, "boxes that are no"),
        ({"boxes": np.zeros((1, 5, 4)), "logits": np.full((1, 5, 1), np.inf)}, "logits that are"),
    ],
    ids=["counter", "no labels", "rows", "corners", "nan", "inf"],
)  # fmt: skip
def test_what_is_no_detection_is_refused(outputs, problem):
    with pytest.raises(EngineError, match=problem):
        detections_of(outputs)
