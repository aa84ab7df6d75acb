"""`crowdrt count --max-memory`: the same counts in less memory, or an error that helps."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from crowdrt.contracts import Feeds
from crowdrt.data.preprocess import load_feed
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.tiling import engine as tiling
from crowdrt.engines.tiling.engine import open_tiled
from crowdrt.errors import RecipeError
from crowdrt.onnx_file import graph_info, set_info
from crowdrt.pipeline.tiling import Limits, parse_memory

MIB = 2**20
SIDE = 1280  # px of a photograph that takes several tiles


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("1GiB", 2**30),
        ("512MiB", 512 * MIB),
        ("1.5 GiB", 3 * 2**29),
        (" 800000kib ", 800_000 * 1024),
        ("123456789", 123_456_789),
    ],
)
def test_a_memory_is_read(text, memory):
    assert parse_memory(text) == memory


@pytest.mark.parametrize(
    "text", ["", "much", "0", "0MiB", "-1GiB", "1GB", "1G", "1e9", "GiB", "1,5GiB", "٣GiB", "nan"]
)
def test_what_is_no_memory_is_refused_with_what_would_be(text):
    with pytest.raises(RecipeError, match=re.escape(repr(text))) as caught:
        parse_memory(text)
    assert "write 1GiB, 512MiB" in caught.value.fix


def test_one_of_the_two_options_chooses_the_tiles():
    with pytest.raises(RecipeError, match="--max-memory 1GiB and --tile-rows 64 exclude"):
        Limits.parse(max_memory="1GiB", tile_rows=64)
    assert not Limits.parse(max_memory=None, tile_rows=None)


@pytest.fixture
def photo(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (SIDE // 16, SIDE // 16, 3), np.uint8)
    Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(tmp_path / "square.png")
    return tmp_path / "square.png"


@pytest.fixture
def resident(monkeypatch):
    """The process takes 100 MiB, whatever else the tests loaded."""
    monkeypatch.setattr(tiling, "resident_bytes", lambda: 100 * MIB)


def answers(path: Path, photo: Path, **limits: int) -> tuple[Feeds, Feeds]:
    """What tiles and what the whole photograph give."""
    tiled, whole = open_tiled(path, num_threads=1, **limits), OrtEngine(path, num_threads=1)
    assert whole.info is not None
    feeds = {"image": load_feed(photo, whole.info.preprocessing)}
    return tiled.run(feeds), whole.run(feeds)


@pytest.mark.parametrize("kind", ["onnx", "int8"])
def test_every_cell_is_the_same_bit_for_bit(resident, capsys, tiny, photo, kind):
    """INT8 by nature: whole numbers. Float as ONNX Runtime's kernels add in one order."""
    tiled, whole = answers(getattr(tiny, kind), photo, max_memory=240 * MIB)
    assert re.search(r"in \d+(x\d+ tiles| strips) of ", capsys.readouterr().err)
    assert whole["density"].std() > 0
    assert np.array_equal(tiled["density"], whole["density"])
    assert np.array_equal(tiled["count"], whole["count"])


def test_the_command_counts_the_same_and_says_how(resident, crowdrt, tiny, photo):
    whole = crowdrt("count", tiny.onnx, photo, "--json")
    tiled = crowdrt("count", tiny.onnx, photo, "--json", "--max-memory", "200MiB")
    strips = crowdrt("count", tiny.onnx, photo, "--json", "--tile-rows", "512")
    assert tiled.json() == whole.json() == strips.json()
    assert "tiles" not in whole.err
    assert re.search(
        r"1280x1280 px \(height x width\) in \d+x\d+ tiles of \d+x\d+ px, overlaps "
        r"included: \d\.\d\d times the work; at most \d+ MiB in all",
        tiled.err,
    )
    assert "in 2 strips of 800x1280 px" in strips.err


def test_a_photograph_that_fits_is_not_tiled(resident, crowdrt, tiny):
    photo = next(tiny.photos.rglob("*.jpg"))
    answer = crowdrt("count", tiny.onnx, photo, "--json", "--max-memory", "1GiB")
    assert answer.json() == crowdrt("count", tiny.onnx, photo, "--json").json()
    assert "in one piece; at most" in answer.err


def test_overlays_are_drawn_from_tiles_too(resident, crowdrt, tiny, photo, tmp_path):
    options = ("--overlay", tmp_path / "seen", "--max-memory", "200MiB")
    assert crowdrt("count", tiny.onnx, photo, *options).code == 0
    tiled = np.asarray(Image.open(tmp_path / "seen" / "square.overlay.jpg"))
    assert crowdrt("count", tiny.onnx, photo, "--overlay", tmp_path / "whole").code == 0
    assert np.array_equal(tiled, np.asarray(Image.open(tmp_path / "whole" / "square.overlay.jpg")))


def test_too_little_names_what_is_enough(resident, crowdrt, tiny, photo):
    answer = crowdrt("count", tiny.onnx, photo, "--max-memory", "101MiB")
    assert answer.code == 1
    assert answer.out == ""
    assert "101 MiB is too little for 1280x1280 px" in answer.err
    enough = re.search(r"use --max-memory (\S+) or more", answer.err)
    assert enough is not None
    assert crowdrt("count", tiny.onnx, photo, "--max-memory", enough[1]).code == 0


@pytest.mark.parametrize(
    ("option", "value", "said", "fix"),
    [
        ("--max-memory", "lots", "'lots' is no memory", "crowdrt count model.onnx PHOTOS"),
        ("--tile-rows", "2048", "tiles of 2048 px are larger than the image", "--tile-rows 1280"),
        ("--tile-rows", "100", "need a multiple of 8", "--tile-rows 96"),
        ("--tile-rows", "0", "need a multiple of 8", "--tile-rows 8"),
    ],
)
def test_bad_limits_are_refused(crowdrt, tiny, photo, option, value, said, fix):
    answer = crowdrt("count", tiny.onnx, photo, option, value)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err
    assert fix in answer.err


def test_what_does_not_say_its_operators_is_refused(crowdrt, tiny, photo):
    built = next(tiny.store.glob("*-onnxruntime"))
    for path, what in ((built, "a built engine"), (tiny.weights, "a weights file")):
        answer = crowdrt("count", path, photo, "--max-memory", "1GiB")
        assert answer.code == 1
        assert f"is {what}" in answer.err
        assert "name the ONNX file" in answer.err


def test_a_network_of_one_size_has_its_own_tiles(crowdrt, tiny, photo, tmp_path):
    model = onnx.load(tiny.onnx)
    info = replace(graph_info(model), network="deepcount", fixed_size=(384, 512))
    set_info(model, info)
    onnx.save(model, tmp_path / "deepcount.onnx")
    answer = crowdrt("count", tmp_path / "deepcount.onnx", photo, "--max-memory", "1GiB")
    assert answer.code == 1
    assert "deepcount takes 384x512 px and no other size" in answer.err
    assert "--tiles" in answer.err


def test_a_network_of_another_tool_is_refused_as_ever(crowdrt, tiny, photo, tmp_path):
    model = onnx.load(tiny.onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    answer = crowdrt("count", tmp_path / "foreign.onnx", photo, "--max-memory", "1GiB")
    assert answer.code == 1
    assert "was not exported by crowdrt" in answer.err


PEAK = """
import sys
from crowdrt.cli import main
sys.argv = ["crowdrt", *sys.argv[1:]]
try:
    main()
finally:
    status = open("/proc/self/status").read().split("VmHWM:")[1]
    print(int(status.split()[0]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("kind", ["onnx", "int8"])
def test_the_process_stays_within(tiny, photo, kind):
    def peak(*options: str) -> int:
        command = [sys.executable, "-c", PEAK, "count", getattr(tiny, kind), photo, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    allowed = 180
    assert peak("--max-memory", f"{allowed}MiB", "--threads", "1") <= allowed
    assert peak("--threads", "1") > allowed + 20
