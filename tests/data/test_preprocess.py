from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdrt.contracts import IMAGENET, Preprocessing
from crowdrt.data.preprocess import load_feed, pad_to_stride

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
