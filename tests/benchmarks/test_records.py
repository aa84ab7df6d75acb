import json
import multiprocessing
import os
from dataclasses import replace

import pytest

from crowdrt.benchmarks.timing.records import append_records, read_records, record_line
from crowdrt.contracts import Measurement
from crowdrt.errors import BenchmarkError, CrowdRTError

ROW = Measurement(
    name="1/4-CSRNet onnxruntime int8",
    network="csrnet",
    width="1/4",
    engine="onnxruntime",
    engine_version="1.31.1",
    precision="int8",
    size=(576, 864),
    num_threads=2,
    samples_ms=(101.25, 99.5, 0.1 + 0.2),
    peak_mib=211.5,
    machine={"cpu": "Zen 3 ™", "flags": ["avx2"], "governor": None},
    verdict="valid",
    run_id="20261121T101500Z-abc123",
    sha256="ab" * 32,
)


def test_rows_come_back_as_they_went(tmp_path):
    path = tmp_path / "results" / "here.jsonl"
    other = replace(ROW, name="failed", samples_ms=(), verdict="failed: died\nbadly")
    append_records(path, [ROW])
    append_records(path, [other])
    assert read_records(path) == [ROW, other]
    assert len(path.read_text().splitlines()) == 2


def broken(**changes) -> str:
    fields = json.loads(record_line(ROW))
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v != "DROP"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (record_line(ROW)[:80], "not a whole record"),
        ("[1, 2]", "not a whole record"),
        (broken(schema="DROP"), "not a whole record"),
        (broken(size=[576]), "not a whole record"),
        (broken(samples_ms=None), "not a whole record"),
        (broken(samples_ms=["fast"]), "not a whole record"),
        (broken(surprise=1), "not a whole record"),
        (broken(network="DROP"), "not a whole record"),
        (broken(schema=2), "schema 2 is not 1"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, words):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{record_line(ROW)}\n\n{line}\n")
    with pytest.raises(BenchmarkError, match=words) as caught:
        read_records(path)
    assert "line 3" in caught.value.problem


@pytest.mark.parametrize(
    "make", [lambda _: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"\xff\xfe")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make):
    path = tmp_path / "records.jsonl"
    make(path)
    with pytest.raises(BenchmarkError, match=r"records\.jsonl cannot be read"):
        read_records(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    append_records(path, [ROW])
    before = path.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CrowdRTError, match="No space left"):
        append_records(path, [ROW, ROW])
    assert path.read_bytes() == before


def append_many(path, name):
    for _ in range(50):
        append_records(path, [replace(ROW, name=name)] * 2)


def test_two_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_records(path)) == 200
