"""CAN: averages over uneven windows, the context they give, and batch norm that folds."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from crowdrt.export.deploy import deploy
from crowdrt.models import build_model
from crowdrt.models.can import BINS, ContextBlock, GridAverage, relative_sigmoids, windows
from crowdrt.models.weights import load_network, save_weights

EIGHTH = Fraction(1, 8)
MAPS = ((72, 108), (96, 128), (72, 90), (254, 364), (25, 37), (4, 4), (5, 3), (1, 1))


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("size", MAPS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_averages_are_pytorchs(bins, size):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = functional.adaptive_avg_pool2d(features, bins)
    got = GridAverage(bins)(features.float())
    assert expected.std() > 1e-3
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 400), st.integers(1, 12))
def test_windows_tile_the_map_as_documented(length, bins):
    rows = windows(length, bins)
    assert rows.shape == (bins, length)
    for i, row in enumerate(rows):
        first, last = i * length // bins, -(-(i + 1) * length // bins)
        expected = torch.zeros(length)
        expected[first:last] = 1 / (last - first)
        torch.testing.assert_close(row, expected)


def half_pixel_resize(values: np.ndarray, length: int) -> np.ndarray:
    """Resize the last axis linearly: output i looks at (i + 0.5) * n / length - 0.5."""
    n = values.shape[-1]
    places = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, None)
    low = np.floor(places).astype(int)
    high, part = np.minimum(low + 1, n - 1), places - low
    return values[..., low] * (1 - part) + values[..., high] * part


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tall = half_pixel_resize(values.swapaxes(-1, -2), size[0]).swapaxes(-1, -2)
    return half_pixel_resize(tall, size[1])


def average(values: np.ndarray, bins: int) -> np.ndarray:
    """(C, h, w) -> (C, bins, bins), window by window."""
    _, height, width = values.shape
    result = np.zeros((len(values), bins, bins))
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, -(-(i + 1) * height // bins))
            columns = slice(j * width // bins, -(-(j + 1) * width // bins))
            result[:, i, j] = values[:, rows, columns].mean(axis=(1, 2))
    return result


def pointwise(conv: nn.Conv2d, values: np.ndarray) -> np.ndarray:
    weight = conv.weight.detach().double().numpy()[:, :, 0, 0]
    bias = 0 if conv.bias is None else conv.bias.detach().double().numpy()[:, None, None]
    return np.einsum("oi,ihw->ohw", weight, values) + bias


def test_the_context_is_the_papers():
    """Equations 2 to 5 in numpy: what surrounds a place, weighted by its contrast to the place."""
    torch.manual_seed(0)
    block = ContextBlock(5)
    features = torch.randn(1, 5, 7, 10)
    values = features[0].double().numpy()
    weighted, weights = np.zeros_like(values), np.zeros_like(values)
    for bins, scale in zip(BINS, block.scales, strict=True):
        seen = resize(pointwise(scale, average(values, bins)), (7, 10))
        weight = 1 / (1 + np.exp(-pointwise(block.contrast, values - seen)))
        weighted, weights = weighted + weight * seen, weights + weight
    both = np.concatenate([weighted / weights, values])
    expected = np.maximum(pointwise(block.merge[0], both), 0)
    with torch.no_grad():
        got = block(features)[0].numpy()
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 30, -30, -90, -1000])
def test_weights_keep_their_ratios_however_small(level):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 5e-3)):
        logits = [(level + 4 * torch.randn(1, 3, 4, 5)).to(dtype) for _ in BINS]
        logarithms = [functional.logsigmoid(logit.double()) for logit in logits]
        expected = torch.softmax(torch.stack(logarithms), dim=0)
        weights = torch.stack(relative_sigmoids(logits)).double()
        assert 0.49 < weights.amax(dim=0).min() <= weights.max() < 1.01
        assert expected.std() > 0.1 or level > 0
        torch.testing.assert_close(weights / weights.sum(dim=0), expected, rtol=0, atol=tolerance)


def test_gradients_are_finite_where_a_weight_vanishes():
    logits = [torch.tensor([z], requires_grad=True) for z in (500.0, 0.0, -500.0)]
    first, _, last = relative_sigmoids(logits)
    (first + last).sum().backward()
    assert all(torch.isfinite(logit.grad).all() for logit in logits)


def image_for(model):
    blobs = torch.randn(2, model.preprocessing.num_channels, 4, 5)
    return functional.interpolate(blobs, size=(72, 104), mode="bilinear")


@pytest.fixture
def learned():
    """A CAN whose batch norms hold what a trained one's do."""
    torch.manual_seed(0)
    model = build_model("can", EIGHTH)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model.eval()


def test_batch_norm_folds_when_deployed(learned):
    image = image_for(learned)
    expected = learned(image)
    shipped = deploy(learned, image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(shipped(image), expected, rtol=1e-3, atol=1e-5)
    kinds = [type(module) for module in shipped.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.Conv2d) == 10 + 4 + 1 + 1 + 6 + 1
    bare = [m for m in shipped.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    assert bare == list(shipped.context.scales)


def test_weights_hold_the_statistics(learned, tmp_path):
    path = tmp_path / "can.safetensors"
    save_weights(learned, path, network="can", width=EIGHTH)
    loaded, _, _ = load_network(path)
    image = image_for(learned)
    torch.testing.assert_close(loaded(image), learned(image), rtol=0, atol=0)


def test_every_answer_depends_on_the_far_corner(learned):
    """Why CAN cannot be cut into tiles: a convolution alone does not see 900 px far."""
    image = torch.zeros(1, 3, 64, 1024)
    changed = image.clone()
    changed[..., :8, :8] = 3
    with torch.no_grad():
        moved = (learned(changed) - learned(image)).abs()
    assert learned.whole_image
    assert moved[..., -1].min() > 0
