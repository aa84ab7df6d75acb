"""`crowdrt count` on cameras that watch a region: people elsewhere are not counted."""

import sys
from pathlib import Path

import numpy as np
import pytest

from crowdrt.benchmarks.accuracy.counts import predict
from crowdrt.engines.ort import OrtEngine
from crowdrt.pipeline.photographs import photographs

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import made_sets


@pytest.fixture
def expo(tmp_path):
    return made_sets.worldexpo(tmp_path / "WorldExpo10")


@pytest.mark.parametrize("folder", ["test_frame/104207", "test_label/104207"])
def test_a_test_scene_is_counted_in_its_region(crowdrt, tiny, expo, tmp_path, folder):
    pictures = tmp_path / "seen"
    rows = crowdrt("count", tiny.onnx, expo / folder, "--overlay", pictures, "--json").json()

    assert [Path(row["image"]).name[-5:] for row in rows] == ["1.jpg", "2.jpg", "3.jpg"]
    assert [row["annotated"] for row in rows] == [1, 2, 3]
    engine = OrtEngine(tiny.onnx)
    for row in rows:
        density = predict(engine, Path(row["image"])).density
        per_pixel = np.kron(density, np.ones((8, 8))) / 64
        assert row["count"] == pytest.approx(per_pixel[4:40, 8:56].sum(), rel=1e-4)
        assert 0.3 < row["count"] / density.sum() < 0.9
    assert len(list(pictures.iterdir())) == 3


def test_a_reference_is_counted_in_the_region_too(crowdrt, tiny, expo):
    scene = expo / "test_frame" / "200608"
    alone = crowdrt("count", tiny.onnx, scene, "--json").json()
    beside = crowdrt("count", tiny.int8, scene, "--against", tiny.onnx, "--json").json()
    references = [row["reference"] for row in beside["photographs"]]
    assert references == pytest.approx([row["count"] for row in alone], rel=1e-5)


def test_a_frame_of_the_mall_is_counted_in_its_region(crowdrt, tiny, tmp_path):
    frames = made_sets.mall(tmp_path / "mall_dataset") / "frames"
    (row,) = crowdrt("count", tiny.onnx, frames / "seq_000801.jpg", "--json").json()
    assert row["annotated"] == 3
    (tmp_path / "mall_dataset" / "perspective_roi.mat").unlink()
    (whole,) = crowdrt("count", tiny.onnx, frames / "seq_000801.jpg", "--json").json()
    assert whole["annotated"] == 6
    assert 0.3 < row["count"] / whole["count"] < 0.9


@pytest.mark.parametrize(
    ("write", "num_train", "num_test"),
    [(made_sets.worldexpo, 6, 6), (made_sets.mall, 2, 2), (made_sets.ucf_qnrf, 2, 2)],
)
def test_a_run_keeps_the_splits_of_a_published_set_apart(tmp_path, write, num_train, num_test):
    found = photographs(write(tmp_path / "set"), tmp_path, num_test=99)
    assert (len(found.calibration), len(found.test)) == (num_train, num_test)
    assert "test split" in found.source
    assert not {s.image for s in found.calibration} & {s.image for s in found.test}


def test_the_root_names_what_can_be_counted(crowdrt, tiny, expo):
    said = crowdrt("count", tiny.onnx, expo)
    assert said.code == 1
    assert str(expo / "test_frame") in said.err.replace("\n", "")
