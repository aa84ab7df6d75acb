"""A network of one size counts photographs of any: counts add up, maps lie side by side."""

from dataclasses import replace

import fake_engines
import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import CountRow, count_samples, predict
from crowdrt.benchmarks.overlays.density import draw_overlay
from crowdrt.contracts import IMAGENET, Feeds, Sample, TensorSpec
from crowdrt.data.tiles import tiles_of, tiling_of
from crowdrt.errors import BenchmarkError, DataError, EngineError

TILE = (64, 96)


class TileEngine(fake_engines.FakeEngine):
    """Takes 64x96 px in any batch, and remembers how many at a time."""

    inputs = (TensorSpec(name="image", shape=("n", 3, *TILE), dtype="uint8"),)
    info = replace(fake_engines.INFO, network="deepcount", fixed_size=TILE)

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def outputs_for(self, image: np.ndarray) -> Feeds:
        assert image.shape[1:] == (3, *TILE)
        self.batches.append(len(image))
        return super().outputs_for(image)


class OneTileEngine(TileEngine):
    inputs = (TensorSpec(name="image", shape=(1, 3, *TILE), dtype="uint8"),)


class CountOnlyEngine(OneTileEngine):
    outputs = (TensorSpec(name="count", shape=(1,), dtype="float32"),)

    def outputs_for(self, image: np.ndarray) -> Feeds:
        return {"count": super().outputs_for(image)["count"]}


class MapOnlyEngine(OneTileEngine):
    """As `crowdrt export model.onnx --keep-output density` cuts one."""

    outputs = (TensorSpec(name="density", shape=(1, 1, "h", "w"), dtype="float32"),)

    def outputs_for(self, image: np.ndarray) -> Feeds:
        return {"density": super().outputs_for(image)["density"]}


def photo(folder, height, width, name="photo.png"):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / name
    Image.fromarray(pixels).save(path)
    return path, pixels.transpose(2, 0, 1)


def counted(pixels: np.ndarray, mode: str) -> float:
    """What FakeEngine counts on all tiles: the mean grey level of each 8x8 cell over 255."""
    tiling = tiling_of(pixels.shape[1:], TILE, mode)
    tiles = np.concatenate(list(tiles_of(pixels, tiling, IMAGENET)))
    return float(tiles.mean(axis=1).sum() / 64 / 255)


@pytest.mark.parametrize("mode", ["resize", "pad"])
@pytest.mark.parametrize("engine", [TileEngine, OneTileEngine, CountOnlyEngine, MapOnlyEngine])
@pytest.mark.parametrize("size", [(64, 96), (33, 40), (150, 210), (65, 401), (300, 35)])
def test_counts_of_tiles_add_up(tmp_path, engine, mode, size):
    path, pixels = photo(tmp_path, *size)
    assert predict(engine(), path, mode).count == pytest.approx(counted(pixels, mode), rel=1e-5)


def test_tiles_are_stretched_unless_asked_otherwise(tmp_path):
    path, pixels = photo(tmp_path, 150, 210)
    assert counted(pixels, "resize") != pytest.approx(counted(pixels, "pad"), rel=0.01)
    assert predict(TileEngine(), path).count == pytest.approx(counted(pixels, "resize"), rel=1e-5)


def test_an_engine_that_takes_batches_gets_few_tiles_at_a_time(tmp_path):
    path, _ = photo(tmp_path, 150, 210)  # 2 x 2 stretched, 3 x 3 padded
    several, single = TileEngine(), OneTileEngine()
    assert predict(several, path, "pad").count == predict(single, path, "pad").count
    assert several.batches == [4, 4, 1]
    assert single.batches == [1] * 9


def test_the_maps_of_padded_tiles_are_one_map_of_the_photograph(tmp_path):
    path, pixels = photo(tmp_path, 152, 208)
    prediction = predict(OneTileEngine(), path, "pad")
    cells = pixels.reshape(3, 19, 8, 26, 8).mean(axis=(0, 2, 4)) / 255
    np.testing.assert_allclose(prediction.density, cells, rtol=1e-5)
    assert prediction.span == (152, 208)
    assert prediction.count > 1.2 * cells.sum()  # the grey padding is counted


def test_the_maps_of_stretched_tiles_cover_the_photograph(tmp_path):
    """A bright quarter stays a bright quarter, and the map's sum stays the count."""
    pixels = np.zeros((150, 210, 3), np.uint8)
    pixels[:75, :105] = 255
    Image.fromarray(pixels).save(tmp_path / "quarter.png")
    prediction = predict(OneTileEngine(), tmp_path / "quarter.png", "resize")
    rows, columns = prediction.density.shape
    assert prediction.span == (150, 210)
    assert (rows, columns) == (2 * 8, 2 * 12)
    assert prediction.density[: rows // 2, : columns // 2].min() > 0.49
    assert prediction.density[rows // 2 + 1 :].max() == 0
    assert prediction.density.sum() == pytest.approx(prediction.count, rel=1e-5)


@pytest.mark.parametrize("mode", ["resize", "pad"])
def test_an_overlay_shows_people_where_they_stand(tmp_path, mode):
    pixels = np.zeros((150, 210, 3), np.uint8)
    pixels[90:120, 150:180] = 255
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    prediction = predict(OneTileEngine(), tmp_path / "spot.png", mode)
    dark = np.zeros((3, 150, 210), np.uint8)
    picture = np.asarray(draw_overlay(dark, prediction).convert("L"), np.float32)
    scale = picture.shape[1] / 210
    picture = picture[: round(150 * scale)]  # without the caption
    y, x = (picture > 0.5 * picture.max()).nonzero()
    assert 85 < y.min() / scale < 95
    assert 115 < y.max() / scale < 125
    assert 145 < x.min() / scale < 155
    assert 175 < x.max() / scale < 185


def test_a_count_without_a_map_is_a_count_like_any_other(tmp_path):
    path, pixels = photo(tmp_path, 150, 210)
    engine = CountOnlyEngine()
    assert predict(engine, path).density is None
    heads = np.zeros((7, 2), np.float32)
    [row] = count_samples(engine, [Sample(image=path, heads=heads)])
    expected = pytest.approx(counted(pixels, "resize"), rel=1e-5)
    assert row == CountRow(image=str(path), count=expected, annotated=7)


def test_tiles_are_for_networks_that_take_one_size(tmp_path):
    path, _ = photo(tmp_path, 64, 96)
    with pytest.raises(DataError, match="csrnet takes a photograph whole") as caught:
        predict(fake_engines.FakeEngine(), path, "pad")
    assert caught.value.fix == "leave out --tiles"


def test_a_count_that_is_no_number_is_an_error(tmp_path):
    class Broken(CountOnlyEngine):
        def outputs_for(self, image: np.ndarray) -> Feeds:
            return {"count": super().outputs_for(image)["count"] * np.float32("nan")}

    path, _ = photo(tmp_path, 64, 96)
    with pytest.raises(BenchmarkError, match="counts nan people"):
        predict(Broken(), path)


def test_a_network_of_any_size_has_to_have_a_map(tmp_path):
    engine = CountOnlyEngine()
    engine.info = fake_engines.INFO
    path, _ = photo(tmp_path, 64, 96)
    with pytest.raises(EngineError, match=r"\['count'\]"):
        predict(engine, path)
