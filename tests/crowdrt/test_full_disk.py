"""A disk that fills up while a stage writes: one message, the old output as it was, no rests."""

import contextlib
import errno
import os
import resource
import shutil
from fractions import Fraction

import pytest

LIMIT_BYTES = 300  # less than any file that is written here


@contextlib.contextmanager
def refused_by_the_kernel():
    """No file grows beyond a few bytes, whoever writes it, native libraries too.

    Only around the command: a test runner whose own output goes to a file must stay outside.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def refused_at_the_sync():
    """What was written is refused when it is to reach the disk: late allocation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        yield


def no_space(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def old(tmp_path):
    """Where every output goes: there are older ones already."""
    (tmp_path / "photos").mkdir()
    for name in ("model.onnx", "weights.safetensors", "photos/crowd_0000.jpg"):
        (tmp_path / name).write_text("old")
    return tmp_path


COMMANDS = {
    "synthesize": "synthesize --num-images 2 --size 320x320 -o {old}/photos",
    "calibrate": "calibrate {tiny}/tiny.onnx --images {tiny}/photos --num-images 1 "
    "-o {old}/model.onnx",
    "build": "build {tiny}/tiny.onnx --store {old}/store",
    "count": "count {tiny}/tiny.onnx {tiny}/photos --store {old}/store",
    "overlay": "count {tiny}/tiny.onnx {tiny}/photos --store {tiny}/store --overlay {old}/new/o",
}


@pytest.mark.parametrize("full_disk", [refused_by_the_kernel, refused_at_the_sync])
@pytest.mark.parametrize("verb", COMMANDS)
def test_what_does_not_fit_is_not_begun(verb, full_disk, old, tiny, tree, crowdrt):
    before = tree(old)
    with full_disk():
        answer = crowdrt(*COMMANDS[verb].format(old=old, tiny=tiny.root).split(), "--json")
    check(answer)
    assert tree(old) == before


def check(answer):
    assert (answer.code, answer.out) == (1, "")
    assert "could not be written: " in answer.err
    assert answer.err.count("fix: ") == answer.err.count("fix: free some space") == 1
    assert "--opset" not in answer.err
    assert "Traceback" not in answer.err


def test_an_export_that_does_not_fit(old, tiny, tree, crowdrt, monkeypatch):
    before = tree(old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        command = ("export", "csrnet", "--weights", tiny.weights, "-o", old / "model.onnx")
        check(crowdrt(*command))
    assert tree(old) == before
    assert crowdrt(*command).code == 0  # once there is room


def test_an_import_that_does_not_fit(old, tiny, tree, crowdrt, monkeypatch):
    import torch

    from crowdrt.models import build_model

    torch.save(build_model("csrnet", Fraction(1, 16)).state_dict(), old / "old.pth")
    before = tree(old)
    monkeypatch.setattr(os, "fsync", no_space)
    command = ("import", old / "old.pth", "--network", "csrnet", "--width", "1/16")
    check(crowdrt(*command, "-o", old / "weights.safetensors"))
    assert tree(old) == before


def test_a_run_that_does_not_fit(old, tiny, tiny_recipe, tree, crowdrt, monkeypatch):
    out = old / "out"
    out.mkdir()
    for name in ("tiny.onnx", "tiny.onnx.json"):  # finished before the disk was full
        shutil.copy(tiny.root / name, out / name)
    before = tree(old)
    monkeypatch.setattr(os, "fsync", no_space)
    answer = crowdrt("run", "tiny", "--data", tiny.photos, "--out", out)
    check(answer)
    assert "tiny.int8.onnx could not be written" in answer.err
    assert tree(old) == before


def test_training_on_a_full_disk(old, tiny, tiny_recipe, crowdrt, monkeypatch):
    command = ("train", "tiny", "--data", tiny.photos, "-o", old / "trained")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        check(crowdrt(*command))
    assert not [path for path in (old / "trained").rglob("*") if ".tmp-" in path.name]
    assert crowdrt(*command).code == 0
