"""PSNR and SSIM of density maps: worked by hand, against a loop, against torchmetrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdrt.benchmarks.accuracy.maps import (
    MAX_PSNR_DB,
    SIGMA,
    WINDOW,
    map_quality,
    psnr_db,
    range_of,
    ssim,
)

SEEDS = st.integers(0, 2**32 - 1)


def crowd(seed: int, shape: tuple[int, int] = (24, 33)) -> np.ndarray:
    """A map like a network's: nearly empty, with people here and there, some cells negative."""
    draw = np.random.default_rng(seed)
    people = np.where(draw.random(shape) > 0.8, draw.random(shape), 0)
    return (people + draw.normal(0, 0.01, shape)).astype(np.float32)


def noisy(density: np.ndarray, seed: int, size: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, size, density.shape)
    return (density + noise).astype(np.float32)


def test_psnr_by_hand():
    reference = np.array([[-1, 1], [2, 3]], np.float32)  # a range of 4
    assert psnr_db(reference + np.float32(0.5), reference) == pytest.approx(
        10 * np.log10(16 / 0.25)
    )
    one_cell = reference + np.array([[0, 0], [0, 0.8]], np.float32)  # MSE 0.16
    assert psnr_db(one_cell, reference) == pytest.approx(20)


def test_equal_maps_are_perfect():
    density = crowd(0)
    assert map_quality(density, density) == (MAX_PSNR_DB, pytest.approx(1, abs=1e-12))


@given(SEEDS)
def test_twice_the_noise_is_6_db(seed):
    reference = crowd(seed).astype(np.float64)
    noise = np.random.default_rng(seed).normal(0, 0.1, reference.shape)
    once, twice = (psnr_db(reference + k * noise, reference) for k in (1, 2))
    assert once - twice == pytest.approx(20 * np.log10(2), abs=1e-6)
    assert ssim(reference + noise, reference) > ssim(reference + 2 * noise, reference)


@given(SEEDS, st.sampled_from([0.125, 4.0, 1024.0]))
def test_the_unit_of_a_map_does_not_matter(seed, factor):
    reference = crowd(seed)
    density = noisy(reference, seed + 1, 0.05)
    scaled = map_quality(density * np.float32(factor), reference * np.float32(factor))
    assert scaled == pytest.approx(map_quality(density, reference), rel=1e-6)


def test_a_map_of_twice_as_many_people_is_no_copy():
    reference = crowd(1)  # normalised each by itself, both maps would be equal
    quality = map_quality(2 * reference, reference)
    assert quality.psnr_db < 15
    assert quality.ssim < 0.9


def test_ssim_of_one_window_by_hand():
    reference = crowd(2, (WINDOW, WINDOW)).astype(np.float64)
    offset = 0.3  # the variances and the covariance stay: what differs is the luminance alone
    weights = np.exp(-((np.arange(WINDOW) - 5) ** 2) / (2 * SIGMA**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    mean = float((weights * reference).sum())
    c1 = (0.01 * range_of(reference)) ** 2
    luminance = (2 * mean * (mean + offset) + c1) / (mean**2 + (mean + offset) ** 2 + c1)
    assert luminance < 0.9
    assert ssim(reference + offset, reference) == pytest.approx(luminance, rel=1e-9)


def ssim_by_loop(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al., window by window."""
    weights = np.array(
        [
            [np.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
            for i in range(11)
        ]
    )
    weights /= weights.sum()
    span = y.max() - y.min()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for i in range(y.shape[0] - 10):
        for j in range(y.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [0.01, 0.2, 2.0])
def test_ssim_is_that_of_the_paper(noise):
    reference = crowd(3, (14, 19)).astype(np.float64)
    density = noisy(reference, 4, noise).astype(np.float64)
    expected = ssim_by_loop(density, reference)
    assert ssim(density, reference) == pytest.approx(expected, rel=1e-9)
    assert expected < 1


def test_both_are_those_of_torchmetrics():
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("torchmetrics.functional.image")
    reference = crowd(5, (40, 52)).astype(np.float64)
    density = noisy(reference, 6, 0.1).astype(np.float64)
    pair = [torch.from_numpy(each)[None, None] for each in (density, reference)]
    span = range_of(reference)
    _, full = image.structural_similarity_index_measure(
        *pair, gaussian_kernel=True, sigma=1.5, data_range=span, return_full_image=True
    )
    theirs = full[..., 5:-5, 5:-5].mean()  # theirs goes on over borders, on mirrored cells
    assert ssim(density, reference) == pytest.approx(float(theirs), rel=1e-6)
    theirs = image.peak_signal_noise_ratio(*pair, data_range=span)
    assert psnr_db(density, reference) == pytest.approx(float(theirs), rel=1e-6)


@given(SEEDS, st.floats(0.001, 10))
def test_no_map_is_better_than_the_reference_itself(seed, noise):
    reference = crowd(seed)
    quality = map_quality(noisy(reference, seed + 1, noise), reference)
    assert -1 <= quality.ssim < 1
    assert quality.psnr_db < 100


def test_what_has_no_contrast_or_no_partner_is_not_judged():
    density = crowd(7)
    flat = np.full_like(density, 0.25)
    assert map_quality(density, flat) == (None, None)
    assert map_quality(density, None) == map_quality(None, density) == (None, None)
    assert map_quality(density[:, :-1], density) == (None, None)
    small = crowd(8, (WINDOW - 1, 40))
    assert map_quality(noisy(small, 9, 0.1), small).psnr_db > 0
    assert map_quality(noisy(small, 9, 0.1), small).ssim is None
