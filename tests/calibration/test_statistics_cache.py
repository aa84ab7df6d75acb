"""One pass over the images for every method: kept, gone on with, refused where it does not fit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_graphs import INFO, network

from crowdrt.calibration import calibrate as stage
from crowdrt.calibration.calibrate import calibrate
from crowdrt.calibration.ranges import cache as caching
from crowdrt.calibration.ranges.cache import (
    Progress,
    StatisticsCache,
    as_document,
    cache_key,
    from_document,
)
from crowdrt.calibration.ranges.histogram import Statistics
from crowdrt.contracts import RANGE_METHODS, CalibrationConfig
from crowdrt.errors import CalibrationError, CrowdRTError
from crowdrt.manifest import fingerprint, read_manifest
from crowdrt.onnx_file import set_info

CONFIG = CalibrationConfig(method="minmax")


@pytest.fixture
def float_onnx(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def run_images(monkeypatch):
    """Names of the photographs that went through the network."""
    ran = []
    original = stage.feeds_of

    def recorded(model, info, path):
        ran.append(path.name)
        return original(model, info, path)

    monkeypatch.setattr(stage, "feeds_of", recorded)
    return ran


def scales(path):
    return {name: each["scale"] for name, each in read_manifest(path)["facts"]["tensors"].items()}


def test_one_pass_serves_every_method(float_onnx, photographs, tmp_path, run_images):
    once, alone = tmp_path / "once", tmp_path / "alone"
    for method in RANGE_METHODS:
        config = replace(CONFIG, method=method)
        calibrate(float_onnx, photographs, once / f"{method}.onnx", config)
    assert run_images == [path.name for path in photographs]
    found = set()
    for method in RANGE_METHODS:
        out = alone / method / "out.onnx"
        calibrate(float_onnx, photographs, out, replace(CONFIG, method=method))
        assert out.read_bytes() == (once / f"{method}.onnx").read_bytes()
        found.add(tuple(scales(out).values()))
    assert len(found) == len(RANGE_METHODS)
    assert len(run_images) == 5 * len(photographs)


def test_other_weights_bits_and_float_layers_take_no_pass(
    float_onnx, photographs, tmp_path, run_images, capsys
):
    out, kept = tmp_path / "out.onnx", tmp_path / "kept"
    calibrate(float_onnx, photographs, out, CONFIG, cache=kept)
    assert [path.name for path in kept.iterdir()] == ["small.calibration.json"]
    run_images.clear()
    calibrate(float_onnx, photographs, out, replace(CONFIG, weight_bits=8), cache=kept)
    calibrate(float_onnx, photographs, out, CONFIG, ["Conv_y2"], cache=kept)
    assert not run_images
    assert "has seen 5 of 5 images" in " ".join(capsys.readouterr().err.split())
    calibrate(float_onnx, photographs, tmp_path / "a" / "out.onnx", CONFIG, ["Conv_y2"])
    assert scales(out) == scales(tmp_path / "a" / "out.onnx")
    calibrate(float_onnx, photographs, tmp_path / "a" / "out.onnx", CONFIG)
    assert len(run_images) == 5, "a pass with a layer kept float serves the plain network"


def test_the_order_of_the_images_shows_nowhere(float_onnx, photographs, tmp_path):
    written = set()
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(photographs))
        for method in RANGE_METHODS:
            out = tmp_path / str(seed) / f"{method}.onnx"
            config = replace(CONFIG, method=method, percentile=99.0)
            calibrate(float_onnx, [photographs[i] for i in order], out, config)
            written.add((method, out.read_bytes()))
    assert len(written) == len(RANGE_METHODS)


def test_a_copy_of_an_image_counts_twice(float_onnx, photographs, tmp_path, run_images):
    calibrate(float_onnx, [*photographs, photographs[0]], tmp_path / "a" / "out.onnx", CONFIG)
    assert len(run_images) == 6
    before = json.loads((tmp_path / "a" / "small.calibration.json").read_text())["content"]
    assert len(before["done"]) == 6


def other_network(path):
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = bytes(model.graph.initializer[0].raw_data[::-1])
    onnx.save(model, path)


def other_preprocessing(path):
    model = onnx.load(path)
    pixels = replace(INFO.preprocessing, mean=(90.0,) * 3, stride=8)
    set_info(model, replace(INFO, preprocessing=pixels))
    onnx.save(model, path)


MISMATCHES = {
    "another network": (lambda onnx_path, _: other_network(onnx_path), "of another network\n"),
    "preprocessing": (
        lambda onnx_path, _: other_preprocessing(onnx_path),
        r"another network, and of other preprocessing \(mean, stride\)",
    ),
    "fewer": (lambda _, images: images.pop(), "other images: 5, of which 4 are among the 4"),
    "changed": (
        lambda _, images: images[2].write_bytes(images[3].read_bytes()),
        "other images: 5, of which 4 are among the 5",
    ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_statistics_of_something_else_are_refused(
    what, float_onnx, photographs, tmp_path, run_images, capsys
):
    change, reason = MISMATCHES[what]
    out, kept = tmp_path / "out.onnx", tmp_path / "kept"
    calibrate(float_onnx, photographs, out, CONFIG, cache=kept)
    beside = tmp_path / "beside" / "out.onnx"
    calibrate(float_onnx, photographs, beside, CONFIG)
    before = (kept / "small.calibration.json").read_bytes()
    change(float_onnx, photographs)
    run_images.clear()
    with pytest.raises(CalibrationError, match=reason) as caught:
        calibrate(float_onnx, photographs, out, replace(CONFIG, method="mse"), cache=kept)
    assert f"rm {kept / 'small.calibration.json'}" in caught.value.fix
    assert not run_images
    assert (kept / "small.calibration.json").read_bytes() == before

    capsys.readouterr()
    calibrate(float_onnx, photographs, beside, CONFIG)
    assert len(run_images) == len(photographs), "nobody named these: the images are run again"
    assert "the images are run again" in " ".join(capsys.readouterr().err.split())
    calibrate(float_onnx, photographs, beside, replace(CONFIG, method="mse"))
    assert len(run_images) == len(photographs)


def test_a_file_that_lacks_tensors_names_them(float_onnx, photographs, tmp_path):
    path = statistics_of(float_onnx, photographs, tmp_path)
    content = json.loads(path.read_text())["content"]
    content["key"]["tensors"].remove("p2")
    del content["tensors"]["p2"]
    with pytest.raises(CalibrationError, match="other tensors, without p2"):
        calibrate(float_onnx, photographs, tmp_path / "b.onnx", CONFIG, cache=forge(path, content))


def test_statistics_of_another_form_are_refused(float_onnx, photographs, tmp_path):
    path = statistics_of(float_onnx, photographs, tmp_path)
    content = json.loads(path.read_text())["content"]
    content["key"]["form"] += 1
    with pytest.raises(CalibrationError, match="of another version of crowdrt"):
        calibrate(float_onnx, photographs, tmp_path / "b.onnx", CONFIG, cache=forge(path, content))


def statistics_of(float_onnx, photographs, tmp_path):
    calibrate(float_onnx, photographs, tmp_path / "a.onnx", CONFIG, cache=tmp_path / "kept")
    return tmp_path / "kept" / "small.calibration.json"


def forge(path, content):
    """Write a file whose SHA-256 is right, whatever it holds."""
    path.write_text(json.dumps({"sha256": fingerprint(content), "content": content}))
    return path.parent


def edit(*steps, value):
    def change(content):
        *way, last = steps
        for step in way:
            content = content[step]
        content[last] = value(content[last]) if callable(value) else value

    return change


TENSOR = ("tensors", "p2")
FORGERIES = {
    "no key": lambda content: content.pop("key"),
    "no tensors": lambda content: content.pop("tensors"),
    "a list": edit("tensors", value=[1, 2]),
    "images beside those of the key": edit("done", value=["0" * 64]),
    "an image too often": edit("done", value=lambda done: [done[0], *done]),
    "keys of another kind": edit("key", value=[1]),
    "images of another kind": edit("key", "images", value=7),
    "nested images": edit("key", "images", value=[[["a"]]]),
    "preprocessing of another kind": edit("key", "preprocessing", value=[]),
    "fewer bins": edit(*TENSOR, "counts", value=[1, 2, 3]),
    "no bins": edit(*TENSOR, "counts", value=None),
    "bins of bins": edit(*TENSOR, "counts", value=[[1]] * 8192),
    "a negative count": edit(*TENSOR, "counts", 17, value=-1),
    "half a count": edit(*TENSOR, "counts", 17, value=0.5),
    "a count that is true": edit(*TENSOR, "counts", 17, value=True),
    "a huge count": edit(*TENSOR, "counts", 17, value=2**70),
    "one value more": edit(*TENSOR, "zeros", value=lambda zeros: zeros + 1),
    "negative zeros": edit(*TENSOR, "zeros", value=-3),
    "a larger largest": edit(*TENSOR, "largest", value=lambda largest: largest * 3),
    "a largest without end": edit(*TENSOR, "largest", value=1e999),
    "no number": edit(*TENSOR, "largest", value="nan"),
    "a negative largest": edit(*TENSOR, "largest", value=-1.0),
    "another width": edit(*TENSOR, "exponent", value=lambda exponent: exponent + 1),
    "no width": edit(*TENSOR, "exponent", value=None),
    "an absurd width": edit(*TENSOR, "exponent", value=10**9),
    "sums without end": edit(*TENSOR, "sums", 0, value=1e999),
    "a sum that is no number": edit(*TENSOR, "sums", 0, value=float("nan")),
    "a largest that is no number": edit(*TENSOR, "largest", value=float("nan")),
    "sums of another shape": edit(*TENSOR, "sums", value=[[0.0]]),
    "one channel more": edit(*TENSOR, "sums", value=lambda sums: [*sums, 0.0]),
    "other remainders": edit(*TENSOR, "rest", value=[0.0]),
}


@pytest.fixture
def kept(tmp_path):
    """A good file, as if two images had been run."""
    key = cache_key(
        model=["m"], images=["a", "b"], preprocessing={"stride": 8}, tensors=["p1", "p2"]
    )
    rng = np.random.default_rng(0)
    batch = [rng.normal(size=(1, 4, 8, 8)).astype(np.float32) for _ in "ab"]
    cache = StatisticsCache(tmp_path / "s.json", key, strict=True)
    cache.save(Progress({name: statistics_from(*batch) for name in ("p1", "p2")}, ["a", "b"]))
    assert cache.load().done == ["a", "b"]
    return cache


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_hostile_file_is_refused(forgery, kept):
    content = json.loads(kept.path.read_text())["content"]
    FORGERIES[forgery](content)
    forge(kept.path, content)
    refused(kept)


def refused(cache):
    with pytest.raises(CalibrationError, match="no statistics that can be trusted") as caught:
        cache.load()
    assert caught.value.fix.endswith(f"rm {cache.path}")


def test_calibration_trusts_no_truncated_file(float_onnx, photographs, tmp_path, run_images):
    path = statistics_of(float_onnx, photographs, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CalibrationError, match="no statistics that can be trusted"):
        calibrate(float_onnx, photographs, tmp_path / "b.onnx", CONFIG, cache=path.parent)
    assert not (tmp_path / "b.onnx").exists()
    assert len(run_images) == len(photographs)


DAMAGE = {
    "empty": b"",
    "a pickle": b"cos\nsystem\n(S'touch owned'\ntR.",
    "nested": b"[" * 200_000,
    "not a number": b'{"sha256": "", "content": NaN}',
    "a long number": b'{"content": ' + b"9" * 10_000 + b"}",
    "a list": b"[1, 2]",
    "binary": bytes(range(256)) * 40,
    "truncated": lambda data: data[: len(data) // 2],
    "another number": lambda data: re.sub(rb'(?<="sums": \[)-?', b"1", data, count=1),
    "something before": lambda data: b"PK\x03\x04" + data,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage, kept):
    change, before = DAMAGE[damage], kept.path.read_bytes()
    changed = change if isinstance(change, bytes) else change(before)
    assert changed != before
    kept.path.write_bytes(changed)
    refused(kept)


def test_a_pipe_a_folder_and_a_huge_file_are_refused(kept, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(caching, "MAX_BYTES", 1000)
        refused(kept)
    kept.path.unlink()
    os.mkfifo(kept.path)
    refused(kept)
    kept.path.unlink()
    kept.path.mkdir()
    refused(kept)


def test_copies_of_an_image_that_are_left():
    images = [(Path("1"), "a"), (Path("2"), "a"), (Path("3"), "b"), (Path("4"), "c")]
    assert Progress({}, ["a", "b"]).left_of(images) == [images[1], images[3]]


def test_a_file_in_place_of_the_folder_is_refused(float_onnx, photographs, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(CalibrationError, match="taken is a file"):
        calibrate(float_onnx, photographs, tmp_path / "out.onnx", CONFIG, cache=taken)


def test_a_disk_that_takes_no_statistics(float_onnx, photographs, tmp_path, monkeypatch, capsys):
    def full(path):
        raise CrowdRTError(f"{path} could not be written", fix="free some space")

    monkeypatch.setattr(caching, "write_whole", full)
    calibrate(float_onnx, photographs, tmp_path / "out.onnx", CONFIG)
    assert "statistics are not kept" in capsys.readouterr().err
    with pytest.raises(CrowdRTError, match="could not be written"):
        calibrate(float_onnx, photographs, tmp_path / "b.onnx", CONFIG, cache=tmp_path / "kept")


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from crowdrt.calibration import calibrate as stage
from crowdrt.calibration.ranges import cache
from crowdrt.contracts import CalibrationConfig

cache.EVERY_S, cache.MAX_SHARE = 0, 1e9  # saved after every image
original = stage.feeds_of

def slow(model, info, path):
    if path.name == "IMG_3.png":
        yield from original(model, info, path)  # one that is seen, but not wholly
        print("fourth", flush=True)
        time.sleep(600)
    yield from original(model, info, path)

stage.feeds_of = slow
photographs = [Path({folder!r}) / f"IMG_{{i}}.png" for i in range(5)]
stage.calibrate(Path({model!r}), photographs, Path({out!r}), CalibrationConfig(), num_threads=1)
"""


def test_a_killed_process_is_gone_on_with(float_onnx, photographs, tmp_path, run_images):
    out = tmp_path / "killed" / "out.onnx"
    code = KILLED.format(
        here=str(Path(__file__).parent),
        folder=str(photographs[0].parent),
        model=str(float_onnx),
        out=str(out),
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "fourth\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert [path.name for path in out.parent.iterdir()] == ["small.calibration.json"]

    config = CalibrationConfig()
    calibrate(float_onnx, photographs, out, config, num_threads=1)
    assert run_images == ["IMG_3.png", "IMG_4.png"]
    whole = tmp_path / "whole" / "out.onnx"
    calibrate(float_onnx, photographs, whole, config, num_threads=1)
    assert scales(out) == scales(whole)
    assert out.read_bytes() == whole.read_bytes()
    kept, anew = (path.with_name("small.calibration.json").read_bytes() for path in (out, whole))
    assert kept == anew


def test_saving_takes_two_per_cent_of_the_time_at_most(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    cache = StatisticsCache(tmp_path / "a.json", {"tensors": []}, strict=True)
    saved = []

    def slow_save(_):
        saved.append(clock[0])
        clock[0] += 0.5
        cache._saved_at, cache._cost_s = clock[0], 0.5

    monkeypatch.setattr(cache, "save", slow_save)
    while clock[0] < 1000:
        clock[0] += 1
        cache.save_now_and_then(None)
    assert 0.5 * len(saved) <= 0.02 * clock[0]
    assert len(saved) > 30


values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 5), st.integers(1, 5)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def statistics_from(*batches):
    statistics = Statistics()
    for batch in batches:
        statistics.add(batch)
    return statistics


@settings(max_examples=30, deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_statistics_depend_on_neither_batches_nor_order(batch, random):
    order = list(range(len(batch)))
    random.shuffle(order)
    whole = as_document(statistics_from(batch))
    single = as_document(statistics_from(*(batch[i : i + 1] for i in order)))
    sums, others = (
        np.add(document.pop("sums"), document.pop("rest")) for document in (whole, single)
    )
    assert whole == single
    size = np.abs(batch).sum(axis=(0, 2, 3), dtype=np.float64)
    assert (np.abs(sums - others) <= 1e-15 * size).all()
    np.testing.assert_allclose(
        sums, batch.sum(axis=(0, 2, 3), dtype=np.float64), atol=1e-15 * size.max(), rtol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(values)
def test_statistics_come_back_from_disk_exactly(batch):
    document = as_document(statistics_from(batch, batch[:1]))
    again = from_document(json.loads(json.dumps(document)))
    assert as_document(again) == document
    again.add(batch)
    assert as_document(again) == as_document(statistics_from(batch, batch[:1], batch))
