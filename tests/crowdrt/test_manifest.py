import errno
import json
import os
import signal
from pathlib import Path

import pytest

from crowdrt.errors import CrowdRTError
from crowdrt.manifest import (
    cannot_write,
    fingerprint,
    manifest_path,
    read_json,
    read_manifest,
    reusable,
    sha256_file,
    sweep,
    write_folder_whole,
    write_json,
    write_manifest,
    write_whole,
)

MADE_FROM = {"weights": "abc", "size": (576, 864)}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    write_manifest(path, kind="onnx", made_from=MADE_FROM, facts={"parity": 1e-6})
    return path


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b" / "out.bin"
    with write_whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == path.parent  # so that the rename cannot cross disks
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), ValueError("broken"), MemoryError()])
def test_whatever_happens_the_old_file_stays_and_nothing_else(tmp_path, tree, reason):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    before = tree(tmp_path)
    with pytest.raises(type(reason)):
        write(path, b"half", then=reason)
    assert tree(tmp_path) == before


def test_only_old_temporary_folders_of_that_name_are_swept(tmp_path):
    for name, age_s in {".a.tmp-1": 20, ".a.tmp-2": 0, ".b.tmp-1": 20, "a": 20}.items():
        (tmp_path / name / "in").mkdir(parents=True)
        changed = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (changed, changed))
    sweep(tmp_path, ".a.tmp-*", 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.tmp-2", ".b.tmp-1", "a"]


def write(path, content, *, then=None):
    with write_whole(path) as temporary:
        temporary.write_bytes(content)
        if then is not None:
            raise then


def fail_in_the_middle(writer, path):
    with writer(path) as temporary:
        (temporary.parent / "theirs").write_bytes(b"")
        raise ValueError("x")


@pytest.mark.parametrize("writer", [write_whole, write_folder_whole])
def test_folders_made_for_a_file_that_failed_go_again(tmp_path, tree, writer):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "mine" / "new" / "deep" / "out"):
        signal.raise_signal(signal.SIGINT)
    assert tree(tmp_path) == {"mine": "folder"}


@pytest.mark.parametrize("writer", [write_whole, write_folder_whole])
def test_folders_that_others_use_meanwhile_stay(tmp_path, tree, writer):
    with pytest.raises(ValueError, match="x"):
        fail_in_the_middle(writer, tmp_path / "new" / "out")
    assert set(tree(tmp_path)) == {"new", "new/theirs"}


@pytest.mark.parametrize("writer", [write_whole, write_folder_whole])
def test_a_file_where_the_folder_should_be(tmp_path, tree, writer):
    (tmp_path / "taken").write_text("mine")
    before = tree(tmp_path)
    out = tmp_path / "taken" / "deep" / "out"
    with pytest.raises(CrowdRTError, match=r"out could not .*taken is a file, not"), writer(out):
        pass
    assert tree(tmp_path) == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_a_file_system_that_takes_nothing():
    with pytest.raises(CrowdRTError, match=r"/proc/crowdrt/out could not be written"):
        write(Path("/proc/crowdrt/out"), b"new")


def test_a_folder_of_the_same_name_is_not_replaced_by_a_file(tmp_path, tree):
    (tmp_path / "out" / "inside").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(CrowdRTError, match="out could not be written: Is a directory"):
        write(tmp_path / "out", b"new")
    assert tree(tmp_path) == before


def test_a_file_of_the_same_name_is_not_replaced_by_a_folder(tmp_path, tree):
    (tmp_path / "out").write_text("mine")
    before = tree(tmp_path)
    taken = pytest.raises(CrowdRTError, match="out could not be written: Not a directory")
    with taken, write_folder_whole(tmp_path / "out") as temporary:
        (temporary / "part").write_text("x")
    assert tree(tmp_path) == before


def test_of_two_folders_the_first_stays(tmp_path, tree):
    with write_folder_whole(tmp_path / "out") as slow:
        (slow / "who").write_text("slow")
        with write_folder_whole(tmp_path / "out") as quick:
            (quick / "who").write_text("quick")
    assert (tmp_path / "out" / "who").read_text() == "quick"
    assert set(tree(tmp_path)) == {"out", "out/who"}


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.EACCES, "choose a folder that you may write to"),
    ],
)
def test_the_fix_fits_the_reason(code, fix):
    error = cannot_write(Path("/data/my folder/out"), OSError(code, os.strerror(code)))
    assert f"/data/my folder/out could not be written: {os.strerror(code)}" == error.problem
    assert error.fix.startswith(fix)


def test_the_command_in_a_fix_can_be_run(tmp_path):
    (tmp_path / "my folder").mkdir()
    path = tmp_path / "my folder" / "new" / "out"
    error = cannot_write(path, PermissionError(errno.EACCES, "Permission denied"))
    assert error.fix.endswith(f"ls -la '{tmp_path / 'my folder'}'")


def test_a_fingerprint_knows_content_not_order():
    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 64


def test_what_was_made_from_the_same_is_reused(written):
    found = reusable(written, made_from=dict(reversed(MADE_FROM.items())))
    assert found is not None
    assert (found.path, found.kind, found.sha256, found.reused) == (
        written,
        "onnx",
        sha256_file(written),
        True,
    )


def test_what_was_made_from_something_else_is_not(written):
    assert reusable(written, made_from={**MADE_FROM, "weights": "abd"}) is None


def test_a_damaged_file_is_not_reused(written):
    written.write_bytes(b"grapf")
    assert reusable(written, made_from=MADE_FROM) is None


def test_a_file_without_its_manifest_is_not_reused(written):
    manifest_path(written).unlink()
    assert reusable(written, made_from=MADE_FROM) is None


def test_a_manifest_without_its_file_is_not_reused(written):
    written.unlink()
    assert reusable(written, made_from=MADE_FROM) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"key": 3}'])
def test_a_damaged_manifest_means_that_nothing_is_known(written, content):
    manifest_path(written).write_bytes(content)
    assert reusable(written, made_from=MADE_FROM) is None


def test_a_manifest_says_what_made_the_file(written):
    document = read_manifest(written)
    assert document is not None
    assert document["made_from"] == {"weights": "abc", "size": [576, 864]}
    assert document["facts"] == {"parity": 1e-6}
    assert document["sha256"] == sha256_file(written)
    assert {"python", "numpy", "onnx"} <= set(document["versions"])


def test_json_that_cannot_be_written_leaves_the_old(tmp_path, tree):
    write_json(tmp_path / "a.json", {"old": 1})
    before = tree(tmp_path)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {("a", "b"): 1})  # JSON has no such keys
    assert tree(tmp_path) == before
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


@pytest.mark.parametrize("text", ["", "[1]", '{"key": ', "\xff"])
def test_what_is_no_object_of_json_is_no_manifest(written, text):
    manifest_path(written).write_bytes(text.encode("latin-1"))
    assert read_manifest(written) is None
    assert read_json(manifest_path(written)) is None


def test_a_folder_that_another_process_makes_meanwhile_is_no_file(tmp_path, monkeypatch):
    """Seen once: it came between the question whether it is a folder and the next one."""
    folder, is_dir = tmp_path / "a", Path.is_dir

    def asked(self):
        answer = is_dir(self)
        if self == folder and not os.path.lexists(folder):
            os.mkdir(folder)  # noqa: PTH102 - mkdir of a Path would ask again
        return answer

    monkeypatch.setattr(Path, "is_dir", asked)
    with write_whole(folder / "file") as temporary:
        temporary.write_text("whole")
    assert (folder / "file").read_text() == "whole"
