import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from crowdrt.data.heads.density import adaptive_sigma, density_map
from crowdrt.errors import DataError


@pytest.mark.parametrize("head", [(48, 32), (0, 0), (95.9, 63.9)], ids=["centre", "corner", "edge"])
def test_one_head_is_one_person(head):
    density = density_map(np.array([head]), height=64, width=96, sigma=15.0, stride=8)
    assert density.sum() == pytest.approx(1.0, abs=1e-5)


@settings(deadline=None, max_examples=150)
@example(x=95.9, y=63.9, sigma=1e-3, stride=8)  # half a pixel from the last edge, many sigmas
@given(
    x=st.floats(0, 96, exclude_max=True),
    y=st.floats(0, 64, exclude_max=True),
    sigma=st.floats(1e-3, 1e4),
    stride=st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_every_head_inside_is_one_person(x, y, sigma, stride):
    density = density_map(np.array([[x, y]]), height=64, width=96, sigma=sigma, stride=stride)
    assert density.dtype == np.float32
    assert density.shape == (64 // stride, 96 // stride)
    assert (density >= 0).all()
    assert density.sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "head", [(-0.1, 5), (5, -0.1), (96, 5), (5, 64), (-500, 5), (np.nan, 5), (np.inf, 5)]
)
def test_heads_outside_are_left_out(head):
    heads = np.array([head, (10.0, 10.0)])
    density = density_map(heads, height=64, width=96, sigma=np.array([4.0, 4.0]), stride=8)
    alone = density_map(heads[1:], height=64, width=96, sigma=4.0, stride=8)
    np.testing.assert_array_equal(density, alone)


def test_a_head_lies_in_its_own_cell():
    for x, y in [(0, 0), (7, 7), (8, 0), (3, 23), (95, 63)]:
        density = density_map(np.array([[x, y]]), height=64, width=96, sigma=0.01, stride=8)
        assert density[y // 8, x // 8] == pytest.approx(1.0)


def test_coarse_cells_are_the_sum_of_fine_ones():
    heads = np.random.default_rng(0).random((50, 2)) * [96, 64]
    fine = density_map(heads, height=64, width=96, sigma=5.0, stride=1)
    coarse = density_map(heads, height=64, width=96, sigma=5.0, stride=8)
    np.testing.assert_allclose(coarse, fine.reshape(8, 8, 12, 8).sum(axis=(1, 3)), atol=1e-6)


def test_far_from_the_border_it_is_the_filter_of_the_published_code():
    point = np.zeros((64, 96))
    point[30, 50] = 1
    density = density_map(np.array([[50, 30]]), height=64, width=96, sigma=4.0, stride=1)
    np.testing.assert_allclose(density, gaussian_filter(point, 4.0), atol=0.01 * density.max())
    assert density.max() == pytest.approx(1 / (2 * np.pi * 16), rel=0.02)


def test_each_head_has_its_own_sigma():
    heads = np.array([[20.0, 20.0], [70.0, 40.0]])
    both = density_map(heads, height=64, width=96, sigma=np.array([2.0, 9.0]), stride=4)
    first = density_map(heads[:1], height=64, width=96, sigma=2.0, stride=4)
    second = density_map(heads[1:], height=64, width=96, sigma=9.0, stride=4)
    np.testing.assert_allclose(both, first + second, atol=1e-7)
    assert first.max() > 4 * second.max()


def test_mirrored_heads_give_a_mirrored_map():
    heads = np.random.default_rng(1).random((40, 2)) * [95, 63]
    density = density_map(heads, height=64, width=96, sigma=6.0, stride=8)
    mirrored = density_map([95, 0] + [-1, 1] * heads, height=64, width=96, sigma=6.0, stride=8)
    np.testing.assert_allclose(mirrored, density[:, ::-1], atol=1e-6)


def test_nobody_is_zero():
    density = density_map(np.zeros((0, 2), np.float32), height=64, width=96, sigma=4.0, stride=8)
    assert density.shape == (8, 12)
    assert not density.any()


def test_three_thousand_heads_take_well_under_a_second():
    heads = np.random.default_rng(0).random((3000, 2)) * [1024, 768]
    start = time.perf_counter()
    density = density_map(heads, height=768, width=1024, sigma=adaptive_sigma(heads), stride=8)
    assert time.perf_counter() - start < 2  # measured 0.05 to 0.2 s; the machine may be busy
    assert density.sum() == pytest.approx(3000, abs=0.01)


@pytest.mark.parametrize(("height", "width", "stride"), [(577, 864, 8), (576, 865, 8), (0, 8, 8)])
def test_a_size_that_is_no_multiple_of_the_stride(height, width, stride):
    with pytest.raises(DataError, match=rf"{width}x{height} px .* {stride} px(.|\n)*pad"):
        density_map(np.zeros((1, 2)), height=height, width=width, sigma=4.0, stride=stride)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf, np.array([4.0, 0.0])])
def test_a_sigma_that_is_none(sigma):
    with pytest.raises(DataError, match="is no width of a Gaussian"):
        density_map(np.zeros((2, 2)), height=64, width=96, sigma=sigma, stride=8)


def test_as_many_sigmas_as_heads():
    with pytest.raises(DataError, match="2 heads"):
        density_map(np.zeros((2, 2)), height=64, width=96, sigma=np.ones(3), stride=8)


def test_adaptive_sigma_is_a_tenth_of_three_distances():
    heads = np.array([[0, 0], [30, 0], [0, 40], [-50, 0], [1000, 1000]], np.float32)
    sigma = adaptive_sigma(heads)
    assert sigma[0] == pytest.approx(0.1 * (30 + 40 + 50))
    np.testing.assert_allclose(adaptive_sigma(heads * 3 + 7), sigma * 3, rtol=1e-6)


@pytest.mark.parametrize("num_heads", [0, 1, 2, 3])
def test_too_few_heads_for_a_rule(num_heads):
    np.testing.assert_array_equal(adaptive_sigma(np.ones((num_heads, 2))), [15.0] * num_heads)


def test_heads_annotated_twice_have_a_sigma():
    np.testing.assert_array_equal(adaptive_sigma(np.ones((9, 2))), [1.0] * 9)
