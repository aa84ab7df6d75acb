"""DeepCount from the command line: exported, calibrated and counted by tiles."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from crowdrt.data.synthetic.photographs import generate


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photographs of other sizes than a tile."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(240, 320), (400, 640), (200, 700)]):
        made = generate(folder / str(number), num_images=1, seed=number, size=size, people=(5, 40))
        Image.open(made[0].image).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """DeepCount with one branch at width 1/16."""
    from crowdrt.pipeline.networks import Origin
    from crowdrt.pipeline.stages import export_stage

    path = tmp_path_factory.mktemp("deepcount") / "maps.onnx"
    origin = Origin(
        network="deepcount", width=Fraction(1, 16), weights=None, output="density:12x16"
    )
    export_stage(origin, path)
    return path


@pytest.fixture(autouse=True)
def store(monkeypatch, maps):
    """Engines that one test has built serve the next."""
    monkeypatch.setenv("CROWDRT_STORE", str(maps.parent / "store"))


def test_the_count_alone_is_exported_and_counted_as_pytorch_does(crowdrt, tmp_path, photos):
    import torch

    from crowdrt.models import build_model
    from crowdrt.models.weights import save_weights

    torch.manual_seed(3)
    width = Fraction(1, 16)
    weights, model = tmp_path / "weights.safetensors", tmp_path / "count.onnx"
    save_weights(build_model("deepcount", width), weights, network="deepcount", width=width)
    assert crowdrt("export", "deepcount", "--weights", weights, "-o", model).code == 0

    rows = crowdrt("count", model, photos, "--json").json()
    counts = [row["count"] for row in rows]
    assert len(counts) == 3
    assert np.std(counts) > 0.05 * np.mean(counts) > 0
    by_torch = crowdrt("count", weights, photos, "--json").json()
    assert [row["count"] for row in by_torch] == pytest.approx(counts, rel=1e-4)

    refused = crowdrt("count", model, photos, "--overlay", tmp_path / "overlays")
    assert refused.code == 1
    assert "without a density map" in refused.err
    assert "--output density:48x64" in refused.err
    assert not (tmp_path / "overlays").exists()


def test_both_ways_of_tiling_and_their_overlays(crowdrt, tmp_path, maps, photos):
    found = {}
    for mode in ("resize", "pad"):
        command = ("count", maps, photos, "--tiles", mode, "--overlay", tmp_path / mode, "--json")
        found[mode] = [row["count"] for row in crowdrt(*command).json()]
        assert len(list((tmp_path / mode).glob("*.overlay.jpg"))) == 3
    assert found["resize"] != pytest.approx(found["pad"], rel=0.01)
    assert found["resize"] == [
        row["count"] for row in crowdrt("count", maps, photos, "--json").json()
    ]


def test_int8_counts_like_float(crowdrt, tmp_path, maps, photos):
    int8 = tmp_path / "maps.int8.onnx"
    assert crowdrt("calibrate", maps, "--images", photos, "-o", int8).code == 0
    exact, quantized = (
        np.array([row["count"] for row in crowdrt("count", path, photos, "--json").json()])
        for path in (maps, int8)
    )
    assert exact.std() > 0.05 * exact.mean()
    np.testing.assert_allclose(quantized, exact, rtol=0.1)


BAD = {
    "no such branch": ("export deepcount --random --output density:5x5 -o {out}", "density:48x64"),
    "another size": ("export deepcount --random --size 576x864 -o {out}", "--size 384x512"),
    "no such tiling": ("count {maps} {photos} --tiles nonsense", "--tiles resize or --tiles pad"),
    "cost at another size": ("complexity deepcount --size 576x864", "--size 384x512"),
    "race at another size": ("profile {maps} --size 576x864 --seconds 1", "--size 384x512"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_what_would_do(crowdrt, tmp_path, maps, photos, name):
    command, fix = BAD[name]
    out = tmp_path / "model.onnx"
    words = [word.format(out=out, maps=maps, photos=photos) for word in command.split()]
    answer = crowdrt(*words)
    assert (answer.code, answer.out) == (1, "")
    assert fix in answer.err
    assert "Traceback" not in answer.err
    assert not out.exists()
