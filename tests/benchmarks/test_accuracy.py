from dataclasses import replace

import fake_engines
import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import (
    Accuracy,
    CountRow,
    accuracy,
    count_samples,
    predict,
)
from crowdrt.benchmarks.feeds import feeds_for, normalise
from crowdrt.contracts import IMAGENET, Preprocessing, Sample, TensorSpec
from crowdrt.data.images import read_image
from crowdrt.errors import BenchmarkError, DataError, EngineError


def photo(folder, *, height=64, width=96, name="photo.png"):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / name
    Image.fromarray(pixels).save(path)
    return path, pixels


def people(pixels: np.ndarray) -> float:
    """What FakeEngine counts: the mean grey level of each 8 x 8 cell over 255."""
    return float(pixels.mean(axis=2).sum() / 64 / 255)


def test_counts_a_photograph(tmp_path):
    path, pixels = photo(tmp_path)
    assert predict(fake_engines.FakeEngine(), path).count == pytest.approx(people(pixels), rel=1e-5)


def test_a_smaller_photograph_is_padded_and_the_padding_is_not_counted(tmp_path):
    path, pixels = photo(tmp_path, height=40, width=56)
    engine = fake_engines.SizedEngine()

    prediction = predict(engine, path)

    assert prediction.density.shape == (5, 7)
    assert prediction.count == pytest.approx(people(pixels), rel=1e-5)
    padded = np.full((1, 3, 64, 96), 120, np.uint8)  # the engine's own count would hold this
    assert engine.run({"image": padded})["count"][0] > 1.5 * prediction.count


@pytest.mark.parametrize("corner", [(0, 0), (39, 55), (39, 0)])
def test_a_map_that_reaches_over_the_border_is_not_cut_there(tmp_path, corner):
    """Whoever stands at the edge counts the same in an engine that sees padding beside it."""
    pixels = np.zeros((40, 56, 3), np.uint8)
    pixels[corner] = 240
    path = tmp_path / "edge.png"
    Image.fromarray(pixels).save(path)

    free = predict(fake_engines.GrownEngine(), path)
    padded = predict(fake_engines.SizedGrownEngine(), path)

    assert free.count == pytest.approx(120)
    assert padded.count == pytest.approx(120)
    assert free.density.shape == padded.density.shape == (47, 63)
    assert free.margin_px == padded.margin_px == 3.5


def test_a_larger_photograph_is_refused_with_the_way_out(tmp_path):
    path, _ = photo(tmp_path, height=72)
    with pytest.raises(DataError, match="72x96 px") as caught:
        predict(fake_engines.SizedEngine(), path)
    assert "--size dynamic" in caught.value.fix


def test_an_engine_without_metadata_is_refused(tmp_path):
    engine = fake_engines.FakeEngine()
    engine.info = None
    path, _ = photo(tmp_path)
    with pytest.raises(EngineError, match="how to prepare"):
        predict(engine, path)


def test_a_count_that_is_no_number_is_an_error(tmp_path):
    path, _ = photo(tmp_path)
    with pytest.raises(BenchmarkError, match=r"photo\.png: the engine counts nan people"):
        predict(fake_engines.NanEngine(), path)


class NormalisedEngine(fake_engines.FakeEngine):
    """Takes normalised float32, as graphs exported with --input float32 do."""

    inputs = (TensorSpec(name="image", shape=(1, 3, "h", "w"), dtype="float32"),)
    info = replace(fake_engines.INFO, normalised_input=True)

    def outputs_for(self, image: np.ndarray):
        mean, std = (np.array(v)[:, None, None] for v in (IMAGENET.mean, IMAGENET.std))
        return super().outputs_for(image * std + mean)


def test_a_normalised_engine_counts_the_same(tmp_path):
    path, pixels = photo(tmp_path)
    assert predict(NormalisedEngine(), path).count == pytest.approx(people(pixels), rel=1e-4)


def test_samples_keep_their_order_and_their_annotations(tmp_path):
    first, _ = photo(tmp_path, name="1.png")
    second, _ = photo(tmp_path, name="2.png", height=40)
    heads = np.zeros((7, 2), np.float32)
    samples = [Sample(image=second, heads=heads), Sample(image=first, heads=None)]
    rows = count_samples(fake_engines.FakeEngine(), samples)
    assert [(row.image, row.annotated) for row in rows] == [(str(second), 7), (str(first), None)]
    assert rows[0].count < rows[1].count


def test_errors_are_those_of_the_paper():
    rows = [
        CountRow(image="a", count=13.0, annotated=10),
        CountRow(image="b", count=16.0, annotated=20),
        CountRow(image="c", count=99.0, annotated=None),
    ]
    result = accuracy(rows)
    assert result == Accuracy(num_images=2, mae=3.5, rmse=pytest.approx(12.5**0.5), bias=-0.5)
    assert accuracy(rows[2:]) is None


def test_a_grey_network_is_raced_on_the_luma_of_the_photograph(photograph, tmp_path):
    grey = Preprocessing(channels="grey", mean=(127.5,), std=(128.0,), stride=8)
    engine = fake_engines.FakeEngine()
    engine.inputs = (TensorSpec(name="image", shape=(1, 1, "h", "w"), dtype="uint8"),)
    engine.info = replace(fake_engines.INFO, preprocessing=grey)

    fed = feeds_for(engine, photograph)["image"]

    path = tmp_path / "photograph.png"
    Image.fromarray(photograph.transpose(1, 2, 0)).save(path)
    assert fed.dtype == np.uint8
    assert fed.std() > 10
    np.testing.assert_array_equal(fed[0], read_image(path, "grey"))  # what counting sees


def test_a_raced_normalised_engine_is_fed_what_the_graph_computes(photograph):
    fed = feeds_for(NormalisedEngine(), photograph)["image"]
    assert np.array_equal(fed, normalise(photograph[None], IMAGENET))
    assert abs(float(fed.mean())) < 1
    assert 0.5 < float(fed.std()) < 2


def test_a_float_engine_that_does_not_say_how_to_normalise_is_refused(photograph):
    engine = NormalisedEngine()
    engine.info = None
    with pytest.raises(EngineError, match="how to normalise"):
        feeds_for(engine, photograph)
