"""The picture of a run: drawn from what was logged, whole, and of no run at all."""

import json

import numpy as np
import pytest
from PIL import Image

from crowdrt.training.curves import draw_curves, smoothed


def log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    """Losses that fall a hundredfold, and three validations."""
    terms = [(step, 100 * 0.95**step) for step in range(1, 101)]
    losses = [{"step": s, "loss": 2 * v, "map": v, "soft": v, "rate": 0.1} for s, v in terms]
    log(tmp_path / "losses.jsonl", losses)
    log(tmp_path / "metrics.jsonl", [{"step": s, "loss": 1.0, "mae": m} for s, m in RUNS])
    return tmp_path


RUNS = ((30, 90.0), (60, 40.0), (100, 45.0))


def test_a_run_is_drawn(run):
    draw_curves(run, score="mae")
    with Image.open(run / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] > 900
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)
    assert red[:, pixels.shape[1] // 2 :].any()  # the best validation
    assert not [path for path in run.iterdir() if ".tmp-" in path.name]


def test_a_run_that_has_only_begun_is_drawn(tmp_path):
    draw_curves(tmp_path, score="mae")
    assert (tmp_path / "curves.png").is_file()


def test_what_is_drawn_lies_among_what_was_logged():
    """On the way down a mean of what came before lies above everything around."""
    values = [100 * 0.8**i for i in range(40)]
    for i, middle in enumerate(smoothed(values)):
        around = values[max(0, i - 4) : i + 5]
        assert min(around) <= middle <= max(around)
    assert smoothed(values)[4:-4] == values[4:-4]


def test_one_outlier_is_not_drawn():
    assert smoothed([1.0] * 10 + [500.0] + [1.0] * 10) == [1.0] * 21
