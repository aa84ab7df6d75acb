import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import Prediction
from crowdrt.benchmarks.overlays.density import draw_overlay, heat, save_overlay
from crowdrt.errors import BenchmarkError

GREY = np.full((3, 50, 90), 128, np.uint8)  # 50x90 is no multiple of the stride


def crowd_at(row: int, column: int) -> Prediction:
    density = np.zeros((7, 12), np.float32)
    density[row, column] = 4
    return Prediction(count=4.0, density=density, stride=8)


def drawn(prediction, **options) -> np.ndarray:
    return np.asarray(draw_overlay(GREY, prediction, **options), np.float32)


def test_the_colours_lie_where_the_people_are():
    picture = drawn(crowd_at(2, 9))
    scale = 800 / 90
    red = picture[: round(50 * scale), :, 0]
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert row / scale == pytest.approx(2.5 * 8, abs=3)
    assert column / scale == pytest.approx(9.5 * 8, abs=3)
    assert red[5, 5] < 100  # empty ground stays a photograph


def test_a_map_that_reaches_over_the_border_lies_where_the_people_are():
    density = np.zeros((57, 97), np.float32)  # as SANet's, 7 px larger than the photograph
    density[33:35, 73:75] = 1  # around pixel 30, 70
    picture = drawn(Prediction(count=4.0, density=density, stride=1, margin_px=3.5))
    scale = 800 / 90
    changed = picture[: round(50 * scale)] - picture[5, 5]
    rows, columns = np.nonzero(changed[..., 0] > 50)
    assert rows.mean() / scale == pytest.approx(30.5, abs=0.3)
    assert columns.mean() / scale == pytest.approx(70.5, abs=0.3)


def test_nobody_there_is_a_picture_too():
    empty = Prediction(count=0.0, density=np.zeros((7, 12), np.float32), stride=8)
    assert np.isfinite(drawn(empty, annotated=0)).all()


def test_each_head_has_a_ring():
    plain = drawn(crowd_at(2, 9))
    ringed = drawn(crowd_at(2, 9), heads=np.array([[20, 30], [-5, 400]], np.float32))
    changed = np.argwhere((plain != ringed).any(axis=2))
    centre = changed.mean(axis=0) / (800 / 90)
    assert centre == pytest.approx([30, 20], abs=0.5)


def test_the_caption_tells_counts_and_error():
    height = drawn(crowd_at(2, 9)).shape[0]
    captions = [
        drawn(crowd_at(2, 9), annotated=annotated)[round(height * 0.9) :]
        for annotated in (None, 4, 40)
    ]
    assert not np.array_equal(captions[0], captions[1])
    assert not np.array_equal(captions[1], captions[2])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_written_whole(tmp_path, suffix):
    path = tmp_path / "new" / f"overlay.{suffix}"
    save_overlay(draw_overlay(GREY, crowd_at(1, 1)), path)
    with Image.open(path) as image:
        assert image.size[0] == 800
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_format_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="PNG or JPEG"):
        save_overlay(draw_overlay(GREY, crowd_at(1, 1)), tmp_path / "overlay.txt")


def test_a_huge_photograph_is_drawn_smaller():
    photograph = np.random.default_rng(0).integers(0, 256, (3, 400, 3200), dtype=np.uint8)
    density = np.ones((50, 400), np.float32)
    picture = draw_overlay(photograph, Prediction(count=2e4, density=density, stride=8))
    assert picture.width == 1600


def test_colours_run_from_dark_to_bright():
    brightness = heat(np.linspace(0, 1, 64, dtype=np.float32)).sum(axis=1)
    assert (np.diff(brightness.astype(int)) > -12).all()
    assert brightness[-1] > 2 * brightness[0]
