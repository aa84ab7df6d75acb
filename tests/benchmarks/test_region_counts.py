"""Counting in a region of interest alone."""

from dataclasses import replace

import fake_engines
import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import count_samples, predict, predict_sample
from crowdrt.contracts import Sample, TensorSpec
from crowdrt.errors import DataError, EngineError

ENGINES = [
    fake_engines.FakeEngine,
    fake_engines.SizedEngine,  # sees the photograph padded
    fake_engines.GrownEngine,  # its map reaches over every border
    fake_engines.SizedGrownEngine,
]
HEIGHT, WIDTH = 40, 56


class StretchingEngine(fake_engines.FakeEngine):
    """Takes 32x48 and nothing else: photographs are stretched to its tiles."""

    inputs = (TensorSpec(name="image", shape=(1, 3, 32, 48), dtype="uint8"),)
    info = replace(fake_engines.INFO, fixed_size=(32, 48))


class CountingEngine(StretchingEngine):
    """Says how many people there are, and not where."""

    outputs = fake_engines.FakeEngine.outputs[1:]

    def outputs_for(self, image):
        return {"count": super().outputs_for(image)["count"]}


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def sample(photo, roi):
    heads = np.array([[5, 5], [50, 30], [20, 20]], np.float32)
    return Sample(image=photo, heads=heads, roi=roi)


@pytest.mark.parametrize("engine", [*ENGINES, StretchingEngine])
def test_a_region_of_everything_changes_nothing(photo, engine):
    plain = predict(engine(), photo)
    found = predict_sample(engine(), sample(photo, np.ones((HEIGHT, WIDTH), bool)))
    assert found.count == pytest.approx(plain.count, rel=1e-5)
    np.testing.assert_allclose(found.density, plain.density, rtol=1e-5)
    assert predict_sample(engine(), sample(photo, None)).count == plain.count


@pytest.mark.parametrize("engine", [*ENGINES, StretchingEngine])
def test_a_region_and_the_rest_count_everybody_once(photo, engine):
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[7:31, 11:30] = True
    whole = predict(engine(), photo).count
    parts = [predict_sample(engine(), sample(photo, each)).count for each in (region, ~region)]
    assert all(0.1 * whole < part < 0.9 * whole for part in parts)
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_who_stands_in_the_region_is_counted(tmp_path, engine):
    """Light in one corner: the region of that corner holds all of it, the others nothing."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:8, 48:] = 240
    path = tmp_path / "corner.png"
    Image.fromarray(pixels).save(path)
    here = np.zeros((HEIGHT, WIDTH), bool)
    here[:9, 47:] = True  # a grown map has half a pixel's people beside it
    whole = predict(engine(), path).count
    assert whole > 0.5
    inside, outside = (predict_sample(engine(), sample(path, r)).count for r in (here, ~here))
    assert inside == pytest.approx(whole, rel=1e-5)
    assert outside == pytest.approx(0, abs=1e-5)


def test_errors_are_of_the_region_on_both_sides(photo):
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[:, :24] = True
    [row] = count_samples(fake_engines.FakeEngine(), [sample(photo, region)])
    pixels = np.asarray(Image.open(photo))
    assert row.annotated == 2
    assert row.count == pytest.approx(float(pixels[:, :24].mean(axis=2).sum()) / 64 / 255, rel=1e-5)


def test_an_engine_that_does_not_say_where_people_are_is_refused(photo):
    assert predict(CountingEngine(), photo).density is None
    with pytest.raises(EngineError, match=r"photo\.png(.|\n)*without a density map") as caught:
        predict_sample(CountingEngine(), sample(photo, np.ones((HEIGHT, WIDTH), bool)))
    assert "--output density" in caught.value.fix


def test_a_region_of_another_photograph_is_refused(photo):
    with pytest.raises(DataError, match=r"has 40x56 px \(height x width\), its .* 56x40"):
        predict_sample(fake_engines.FakeEngine(), sample(photo, np.ones((WIDTH, HEIGHT), bool)))
