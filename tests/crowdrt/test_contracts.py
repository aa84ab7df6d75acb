from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdrt.contracts import (
    IMAGENET,
    MAX_DENOMINATOR,
    MAX_PIXELS,
    CalibrationConfig,
    GraphInfo,
    Preprocessing,
    Sample,
    check_image_size,
    parse_size,
    parse_width,
)
from crowdrt.errors import DataError, ExportError, RecipeError
from crowdrt.learning import TrainingConfig

INFO = GraphInfo(
    network="csrnet", width="1/4", preprocessing=IMAGENET, density_stride=8, precision="int8",
    weight_bits=7, normalised_input=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "width"),
    [("1", 1), ("1/4", Fraction(1, 4)), ("0.25", Fraction(1, 4)), (".5", Fraction(1, 2)),
     ("2/3", Fraction(2, 3)), ("1/64", Fraction(1, 64)), ("1.0", 1), ("2/2", 1)],
)  # fmt: skip
def test_widths(text, width):
    assert parse_width(text) == width


@given(st.integers(1, MAX_DENOMINATOR), st.integers(1, MAX_DENOMINATOR))
def test_every_fraction_is_read_as_it_is_written(one, other):
    fraction = Fraction(min(one, other), max(one, other))
    assert parse_width(str(fraction)) == fraction


@pytest.mark.parametrize(
    "text",
    ["", "0", "0/4", "1/0", "-1/4", "2", "5/4", "quarter", "1/4x", " 1/4", "1/400", "0.33", "nan",
     "1e-1", "1e999999999", "1/99999999999999999999", "１/４"],
)  # fmt: skip
def test_other_widths_are_refused(text):
    with pytest.raises(RecipeError) as caught:
        parse_width(text)
    assert repr(text) in caught.value.problem
    assert "1/4" in caught.value.fix


def test_sizes_have_their_height_first():
    assert parse_size("576x864") == (576, 864)
    assert parse_size("1X20000") == (1, 20000)


@pytest.mark.parametrize(
    "text",
    ["", "576", "576x", "x864", "576x864x3", "0x864", "576x-8", "5_76x864", "576 x 864", "576*864",
     "1e3x1e3", "５７６x８６４", "dynamic", "9" * 5000 + "x1"],
)  # fmt: skip
def test_other_sizes_are_refused(text):
    with pytest.raises(RecipeError, match="is not HEIGHTxWIDTH") as caught:
        parse_size(text)
    assert "576x864" in caught.value.fix


def test_a_size_beyond_every_photograph_is_refused():
    side = int(MAX_PIXELS**0.5)
    assert parse_size(f"{side}x{side}") == (side, side)
    with pytest.raises(RecipeError, match="more pixels"):
        parse_size(f"{side + 1}x{side + 1}")


@given(
    st.text(max_size=20),
    st.sampled_from(["1", "1/4"]),
    st.sampled_from(["fp32", "int8"]),
    st.booleans(),
    st.lists(st.floats(0, 255), min_size=1, max_size=3),
)
def test_graph_info_survives_the_file(network, width, precision, normalised, levels):
    pixels = Preprocessing(channels="rgb", mean=tuple(levels), std=tuple(levels), stride=8)
    info = GraphInfo(
        network=network, width=width, preprocessing=pixels, density_stride=8,
        precision=precision, normalised_input=normalised,
    )  # fmt: skip
    assert GraphInfo.from_json(info.to_json(), source="x") == info


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"network": "csrnet"}', '{"preprocessing": 3}',
     '{"preprocessing": {"mean": 1, "std": [1]}}',
     INFO.to_json().replace('"stride"', '"strides"'),
     INFO.to_json().replace('"network"', '"net"')],
)  # fmt: skip
def test_damaged_graph_info_names_its_file(text):
    with pytest.raises(ExportError, match=r"model\.onnx: its crowdrt metadata") as caught:
        GraphInfo.from_json(text, source="model.onnx")
    assert "crowdrt export" in caught.value.fix


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("method", "median", "'median'"), ("percentile", 50, "percentile=50"),
     ("percentile", 100.1, "percentile=100.1"), ("percentile", float("nan"), "percentile=nan"),
     ("num_images", 0, "num_images=0"), ("weight_bits", 4, "weight_bits=4")],
)  # fmt: skip
def test_calibration_that_makes_no_sense(field, value, shown):
    with pytest.raises(RecipeError) as caught:
        CalibrationConfig(**{field: value})
    assert shown in caught.value.problem


@pytest.mark.parametrize("field", ["steps", "batch_size", "crop_px"])
def test_training_that_trains_nothing(field):
    with pytest.raises(RecipeError, match=f"{field}=0"):
        TrainingConfig(**{field: 0})


def test_an_empty_annotation_is_a_count_and_a_missing_one_is_none(tmp_path):
    nobody = np.zeros((0, 2), np.float32)
    assert Sample(image=tmp_path, heads=nobody).annotated == 0
    assert Sample(image=tmp_path, heads=None).annotated is None


def test_padding_is_what_normalises_to_nearly_nothing():
    padded = np.array(IMAGENET.pad_value)
    assert np.abs((padded - IMAGENET.mean) / IMAGENET.std).max() < 0.01
    assert IMAGENET.num_channels == len(IMAGENET.pad_value) == 3


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (31, 32), (32, 31)])
def test_a_photograph_without_room_for_a_head(size):
    with pytest.raises(DataError) as caught:
        check_image_size(size, source="a.jpg")
    assert f"a.jpg: {size[1]}x{size[0]} px" in caught.value.problem
    check_image_size((32, 32), source="a.jpg")
