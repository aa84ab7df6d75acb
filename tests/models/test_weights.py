"""Weights files: what is written comes back, and everything else is refused with a fix."""

import contextlib
import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from crowdrt.contracts import METADATA_KEY
from crowdrt.errors import CrowdRTError, WeightsError
from crowdrt.manifest import read_manifest, reusable, sha256_file
from crowdrt.models import build_model
from crowdrt.models.weights import load_into, load_network, save_weights

EIGHTH = Fraction(1, 8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("mcnn", EIGHTH).eval()


@pytest.fixture
def written(model, tmp_path):
    path = tmp_path / "mcnn.safetensors"
    save_weights(model, path, network="mcnn", width=EIGHTH, facts={"mae": 1.5})
    return path


def rewritten(path, *, tensors=None, **changes):
    """Write the file again with other tensors or other words about itself."""
    text = {"format": 1, "network": "mcnn", "width": "1/8", "facts": {}} | changes
    content = load_file(path) if tensors is None else tensors
    save_file(content, path, metadata={METADATA_KEY: json.dumps(text)})
    return path


def test_what_is_saved_comes_back(model, written):
    loaded, network, width = load_network(written)
    image = torch.randn(1, 1, 64, 64)
    expected = model(image)
    assert (network, width) == ("mcnn", EIGHTH)
    assert expected.std() > 0
    assert not loaded.training
    torch.testing.assert_close(loaded(image), expected, rtol=0, atol=0)


def test_the_manifest_names_the_weights(model, tmp_path):
    made_from = {"recipe": "r", "seed": 1}
    path = tmp_path / "new" / "w.safetensors"
    artifact = save_weights(
        model, path, network="mcnn", width=EIGHTH, facts={"mae": 2}, made_from=made_from
    )
    manifest = read_manifest(path)
    assert artifact.kind == manifest["kind"] == "weights"
    assert artifact.sha256 == sha256_file(path)
    assert manifest["facts"] == {"mae": 2}
    assert reusable(path, made_from=made_from)
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.safetensors", "w.safetensors.json"]


def test_a_model_that_is_not_what_it_is_called_is_not_saved(model, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match="saved as csrnet at width 1/8 does not fit"):
        save_weights(model, path, network="csrnet", width=EIGHTH)
    assert list(tmp_path.iterdir()) == []


def test_equal_weights_are_equal_files_in_another_process(written, tmp_path):
    code = (  # safetensors itself writes several metadata keys in random order
        "import sys; from pathlib import Path\n"
        "from crowdrt.models.weights import load_network, save_weights\n"
        "model, network, width = load_network(Path(sys.argv[1])); target = Path(sys.argv[2])\n"
        "save_weights(model, target, network=network, width=width, facts={'mae': 1.5})"
    )
    again = tmp_path / "again.safetensors"
    subprocess.run([sys.executable, "-c", code, str(written), str(again)], check=True)
    assert again.read_bytes() == written.read_bytes()


def test_a_file_is_described_without_pytorch(written):
    code = (
        "import sys; from pathlib import Path\n"
        "from crowdrt.models.weights_info import describe_weights\n"
        "print(describe_weights(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(written)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "mcnn at width 1/8 False\n"


def test_load_into_fills_the_model_it_is_given(model, written):
    other = build_model("mcnn", EIGHTH)
    load_into(other, written, network="mcnn", width=EIGHTH)
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(other(image), model(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "width"), [("csrnet", EIGHTH), ("mcnn", Fraction(1))], ids=["network", "width"]
)
def test_another_network_or_width_names_both_and_the_fix(written, network, width):
    with pytest.raises(WeightsError) as caught:
        load_into(build_model(network, width), written, network=network, width=width)
    assert "mcnn at width 1/8" in caught.value.problem
    assert f"{network} at width {width}" in caught.value.problem
    assert f"crowdrt export mcnn --width 1/8 --weights {written}" in caught.value.fix


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="does not exist"):
            load_network(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(written, keep):
    written.write_bytes(written.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged"):
        load_network(written)


@pytest.mark.parametrize(
    "content",
    [
        b"hello, I am a text file",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\xff" * 8 + b"{}",  # a header longer than any file
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (8).to_bytes(8, "little") + b"[[[[[[[[",
        (50_000).to_bytes(8, "little") + b"[" * 50_000,  # deeper than any parser's stack
    ],
    ids=["text", "lfs", "endless header", "huge header", "empty", "no json", "deep json"],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        load_network(path)


def test_a_header_that_claims_terabytes_is_refused(tmp_path):
    size = 2**42
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"columns.0.0.weight": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(WeightsError, match="damaged"):
        load_network(path)


def test_a_foreign_safetensors_is_refused(written):
    for metadata in (None, {"format": "pt"}, {METADATA_KEY: "no json"}, {METADATA_KEY: "[1]"}):
        save_file(load_file(written), written, metadata=metadata)
        with pytest.raises(WeightsError, match="does not say which network"):
            load_network(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "vgg"},
        {"network": ["mcnn"]},
        {"width": "3/2"},
        {"width": "1/0"},
        {"width": "1/100"},
        {"width": "1e999999999"},  # as a number it would never be done
        {"width": 0.125},
        {"width": "1" * 10_000},
        {"facts": 3},
        {"format": 2},
        {"format": None},
    ],
    ids=str,
)
def test_words_about_itself_that_make_no_sense_are_refused(written, changes):
    with pytest.raises(WeightsError):
        load_network(rewritten(written, **changes))


def test_missing_left_over_and_misshaped_tensors_are_named(written):
    whole = load_file(written)
    name = "density_head.bias"
    without = {k: v for k, v in whole.items() if k != name}
    for tensors, message in (
        (without, f"{name} is missing"),
        (whole | {"extra": torch.zeros(1)}, "extra is not part of the network"),
        (whole | {name: torch.zeros(2)}, rf"{name} is \(2,\) instead of \(1,\)"),
        ({}, r"is missing; .* and \d+ more"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_network(rewritten(written, tensors=tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(model, written, tmp_path, value):
    tensors = load_file(written)
    tensors["density_head.bias"][0] = value
    with pytest.raises(WeightsError, match=r"density_head.bias holds NaN or infinity"):
        load_network(rewritten(written, tensors=tensors))

    broken = build_model("mcnn", EIGHTH)
    torch.nn.init.constant_(broken.density_head.bias, value)
    target = tmp_path / "never.safetensors"
    with pytest.raises(WeightsError, match="NaN or infinity"):
        save_weights(broken, target, network="mcnn", width=EIGHTH)
    assert not target.exists()


def test_integer_weights_are_refused(written):
    tensors = load_file(written)
    tensors["density_head.bias"] = torch.zeros(1, dtype=torch.int8)
    with pytest.raises(WeightsError, match="not floating point"):
        load_network(rewritten(written, tensors=tensors))


def test_a_refused_file_leaves_the_model_as_it_was(written):
    tensors = load_file(written)
    tensors["density_head.bias"] = torch.tensor([float("nan")])
    model = build_model("mcnn", EIGHTH)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_into(model, rewritten(written, tensors=tensors), network="mcnn", width=EIGHTH)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_folder_in_the_way_leaves_nothing_behind(model, tmp_path):
    path = tmp_path / "w.safetensors"
    path.mkdir()
    with pytest.raises(CrowdRTError, match="could not be written"):
        save_weights(model, path, network="mcnn", width=EIGHTH)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_one_wrong_byte_is_refused_or_harmless(written, place, byte):
    """A flipped byte in the header never ends in anything but a network or a WeightsError."""
    content = bytearray(written.read_bytes())
    content[place % len(content)] = byte
    path = written.with_name("flipped.safetensors")
    path.write_bytes(content)
    with contextlib.suppress(WeightsError):
        load_network(path)
