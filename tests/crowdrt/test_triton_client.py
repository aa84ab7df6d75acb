"""The client beside the repository: fed as crowdrt feeds, and counting what crowdrt counts."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from PIL import Image
from stand_in_triton import serving

from crowdrt.contracts import IMAGENET, Preprocessing
from crowdrt.data.preprocess import load_feed
from crowdrt.engines.trt.building.options import PlanOptions
from crowdrt.engines.trt.graphs.graph import at_largest
from crowdrt.pipeline.serving import client
from crowdrt.pipeline.serving.config import client_facts, read_config
from crowdrt.pipeline.serving.served import from_onnx

GREY = Preprocessing(channels="grey", mean=(100.0,), std=(50.0,), stride=16)
ANY_SIZE = [3, -1, -1]


def photograph(kind):
    noise = np.random.default_rng(5).integers(0, 256, (45, 83, 4), np.uint8)
    return Image.fromarray(noise[:, :, : len(kind)], kind)


@pytest.fixture
def facts(tiny):
    return json.loads(client_facts(from_onnx(tiny.onnx)))


@pytest.mark.parametrize("preprocessing", [IMAGENET, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA", "P", "rotated", "jpeg"])
def test_the_client_feeds_what_crowdrt_feeds(tmp_path, facts, kind, preprocessing):
    path = tmp_path / ("a.jpg" if kind == "jpeg" else "a.png")
    image = photograph(kind if kind in ("RGB", "RGBA", "LA") else "RGB")
    exif = Image.Exif()
    if kind == "rotated":
        exif[0x0112] = 6
    image = image.convert(kind) if kind in ("L", "P") else image
    image.save(path, exif=exif)
    said = facts | {
        "channels": preprocessing.channels,
        "pad_value": preprocessing.pad_value,
        "stride": preprocessing.stride,
    }
    fed, own = client.prepare(path, said, ANY_SIZE)
    expected = load_feed(path, preprocessing)
    assert fed.dtype == expected.dtype == np.uint8
    assert own == expected.shape[2:]
    assert own[0] > own[1] if kind == "rotated" else own[0] < own[1]
    np.testing.assert_array_equal(fed, expected)


@pytest.mark.data
def test_the_client_feeds_a_real_photograph(data_root, facts):
    path = next((data_root / "ShanghaiTech").rglob("*.jpg"))
    fed, _ = client.prepare(path, facts, ANY_SIZE)
    np.testing.assert_array_equal(fed, load_feed(path, IMAGENET))


def counted(crowdrt, model, photos):
    rows = crowdrt("count", model, photos, "--json").json()
    counts = {row["image"]: row["count"] for row in rows}
    assert max(counts.values()) - min(counts.values()) > 0.02  # else anything would agree
    return counts


def asked(repository, url, model, photos):
    """What the client that lies in the repository prints."""
    images = sorted(map(str, photos.glob("*.jpg")))
    command = [sys.executable, str(repository / "client.py"), model, *images, "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def printed(ended):
    assert ended.returncode == 0, ended.stderr
    lines = [line.split("\t") for line in ended.stdout.splitlines()]
    return {image: float(count) for image, count in lines}


def test_triton_counts_whom_crowdrt_counts(crowdrt, tiny, tmp_path):
    repository = tmp_path / "repo"
    crowdrt("triton", tiny.onnx, "-o", repository, "--json").json()
    reference = counted(crowdrt, tiny.onnx, tiny.photos)
    with serving(repository) as url:
        answers = printed(asked(repository, url, "tiny", tiny.photos))
        assert answers == pytest.approx(reference, abs=2e-3)
        counter = client.Counter(url, "tiny-density")
        answers = {image: counter.count(image) for image in reference}
        assert answers == pytest.approx(reference, abs=2e-3)
        with pytest.raises(Exception, match="no model 'nobody'"):
            client.Counter(url, "nobody")


def test_int8_counts_whom_crowdrt_counts(crowdrt, tiny, tmp_path):
    crowdrt("triton", tiny.int8, "-o", tmp_path / "repo", "--json").json()
    reference = counted(crowdrt, tiny.int8, tiny.photos)
    with serving(tmp_path / "repo") as url:
        counter = client.Counter(url, "tiny.int8")
        answers = {image: counter.count(image) for image in reference}
    assert answers == pytest.approx(reference, abs=2e-3)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_network_of_one_size_and_batch(crowdrt, tiny, tmp_path, batch):
    size = (128, 160)  # larger than the photographs
    for number in (1, batch):
        options = PlanOptions(shape=(size,) * 3, batch=number)
        fixed = at_largest(onnx.load(tiny.onnx), options.shape, options)
        path = tmp_path / str(number) / "fixed.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(fixed, path)
    crowdrt("triton", path, "-o", tmp_path / "repo", "--json").json()
    # by crowdrt's own rule for the padding
    reference = counted(crowdrt, tmp_path / "1" / "fixed.onnx", tiny.photos)
    with serving(tmp_path / "repo") as url:
        counter = client.Counter(url, "fixed-density")
        assert counter.dims == [batch, 3, *size]
        answers = {image: counter.count(image) for image in reference}
        with pytest.raises(SystemExit, match="ends in -density"):
            client.Counter(url, "fixed").count(next(iter(reference)))
        wide = tmp_path / "wide.png"
        Image.new("RGB", (168, 64)).save(wide)
        with pytest.raises(SystemExit, match="64x168 px, the model takes 128x160"):
            counter.count(wide)
    assert answers == pytest.approx(reference, abs=2e-3)


def test_a_batch_is_counted_like_its_images(crowdrt, tiny, tmp_path, facts):
    import tritonclient.http as triton

    crowdrt("triton", tiny.onnx, "-o", tmp_path / "repo", "--max-batch", 2, "--json").json()
    images = sorted(tiny.photos.glob("*.jpg"))
    feeds = [client.prepare(path, facts, ANY_SIZE)[0] for path in images]
    with serving(tmp_path / "repo") as url:
        counter = client.Counter(url, "tiny")
        apart = [counter.count(path) for path in images[:2]]

        def infer(number):
            batch = triton.InferInput("image", [number, *feeds[0].shape[1:]], "UINT8")
            batch.set_data_from_numpy(np.concatenate(feeds[:number]))
            wanted = [triton.InferRequestedOutput("count")]
            return counter.server.infer("tiny", [batch], outputs=wanted).as_numpy("count")

        together = infer(2)
        with pytest.raises(Exception, match="unexpected shape"):
            infer(3)
    assert together.shape == (2, 1)  # Triton's tensors have an axis beside the batch
    assert apart[0] != pytest.approx(apart[1], abs=2e-3)
    assert together[:, 0].tolist() == pytest.approx(apart, abs=2e-3)


def test_a_network_that_is_shown_tiles_refuses_other_sizes(facts, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    tiled = facts | {"fixed_size": [96, 96]}
    with pytest.raises(SystemExit, match="counts tiles of that size"):
        client.prepare(tmp_path / "a.png", tiled, [3, 96, 96])


def test_pixels_are_normalised_where_the_network_wants_that(facts):
    pixels = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8), np.uint8)
    from crowdrt.benchmarks.feeds import normalise

    said = facts | {"normalised_input": True}
    np.testing.assert_array_equal(
        client.as_type(pixels, "TYPE_FP32", said), normalise(pixels, IMAGENET)
    )
    floats = client.as_type(pixels, "TYPE_FP32", facts)  # a plan with --float-input
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, pixels)


def test_a_photograph_that_cannot_be_counted_costs_its_line(crowdrt, tiny, tmp_path):
    crowdrt("triton", tiny.onnx, "-o", tmp_path / "repo", "--only", "count", "--json").json()
    good = sorted(tiny.photos.glob("*.jpg"))[:2]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "grey16.png")
    paths = [good[0], tmp_path / "bad.jpg", tmp_path / "gone.jpg", tmp_path / "grey16.png", good[1]]
    with serving(tmp_path / "repo") as url:
        command = [sys.executable, str(tmp_path / "repo" / "client.py"), "tiny", *map(str, paths)]
        ended = subprocess.run(
            [*command, "--url", url], capture_output=True, text=True, check=False
        )
    assert ended.returncode == 1
    assert [line.split("\t")[0] for line in ended.stdout.splitlines()] == list(map(str, good))
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == [
        str(path) for path in paths[1:4]
    ]
    assert "Traceback" not in ended.stderr


def test_a_model_of_somebody_else_is_refused_in_words(crowdrt, tiny, tmp_path):
    crowdrt("triton", tiny.onnx, "-o", tmp_path / "repo", "--only", "count", "--json").json()
    path = tmp_path / "repo" / "tiny" / "config.pbtxt"
    config = read_config(path)
    del config.parameters["crowdrt"]
    path.write_text(text_format.MessageToString(config))
    with (
        serving(tmp_path / "repo") as url,
        pytest.raises(SystemExit, match="in the parameter `crowdrt`"),
    ):
        client.Counter(url, "tiny")


def test_a_server_that_is_not_there(tiny, tmp_path, crowdrt):
    crowdrt("triton", tiny.onnx, "-o", tmp_path / "repo", "--json").json()
    ended = asked(tmp_path / "repo", "127.0.0.1:9", "tiny", tiny.photos)
    assert ended.returncode == 1
    assert ended.stderr.startswith("127.0.0.1:9: ")
    assert "Traceback" not in ended.stderr
