from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdrt.contracts import IMAGENET, Preprocessing
from crowdrt.data.preprocess import load_feed, pad_to_stride, resize_short_side

GREY = Preprocessing(channels="grey", mean=(127.5,), std=(128.0,), stride=4)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    stride=st.integers(1, 33),
    base=st.sampled_from([IMAGENET, GREY]),
)
def test_padding_keeps_the_picture_and_adds_less_than_a_stride(height, width, stride, base):
    preprocessing = replace(base, stride=stride)
    shape = (preprocessing.num_channels, height, width)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    padded = pad_to_stride(image, preprocessing)

    assert padded.dtype == np.uint8
    assert padded.shape[1] % stride == padded.shape[2] % stride == 0
    assert 0 <= padded.shape[1] - height < stride
    assert 0 <= padded.shape[2] - width < stride
    np.testing.assert_array_equal(padded[:, :height, :width], image)
    for channel, level in zip(padded, preprocessing.pad_value, strict=True):
        assert (channel[height:] == level).all()
        assert (channel[:, width:] == level).all()


def test_padding_normalises_to_nearly_nothing():
    padded = pad_to_stride(np.zeros((3, 1, 1), np.uint8), IMAGENET)[:, -1, -1]
    assert (np.abs((padded - np.array(IMAGENET.mean)) / IMAGENET.std) < 0.01).all()


def test_nothing_is_copied_where_nothing_is_added():
    image = np.zeros((3, 16, 24), np.uint8)
    assert pad_to_stride(image, IMAGENET) is image


def test_a_photograph_becomes_a_feed(tmp_path, photo):
    path = photo(tmp_path / "a.png", size=(65, 48))
    assert load_feed(path, IMAGENET).shape == (1, 3, 48, 72)
    assert load_feed(path, GREY).shape == (1, 1, 48, 68)
    assert load_feed(path, GREY)[0, 0, 0, -1] == 128


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((1080, 1920), 800, (788, 1400)),  # the long side's limit
        ((480, 640), 800, (800, 1067)),
        ((1920, 1080), 540, (960, 540)),
        ((40, 3000), 800, (19, 1400)),
    ],
)
def test_a_resized_image_keeps_its_shape(size, short, expected):
    image = np.zeros((3, *size), np.uint8)
    assert resize_short_side(image, short, long_side_px=1400).shape == (3, *expected)


def test_resizing_keeps_places_and_levels():
    image = np.zeros((1, 60, 90), np.uint8)
    image[:, 20:40, 30:60] = 200
    small = resize_short_side(image, 30, long_side_px=1400)
    assert small.shape == (1, 30, 45)
    assert (small[0, 11:19, 16:29] == 200).all()
    assert small.sum() == pytest.approx(image.sum() / 4, rel=0.01)
    np.testing.assert_array_equal(resize_short_side(image, 60, long_side_px=1400), image)
