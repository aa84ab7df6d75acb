"""One line per validation: none twice, none torn."""

import json

import pytest

from crowdrt.errors import CrowdRTError
from crowdrt.training.metrics import append_line, read_lines, rewind


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    for step in (3, 6, 9):
        append_line(path, {"step": step, "mae": step / 2})
    return path


def test_lines_come_back_in_order(log):
    assert [json.loads(line) for line in log.read_text().splitlines()] == read_lines(log)
    assert [line["step"] for line in read_lines(log)] == [3, 6, 9]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (5, [3]), (6, [3, 6]), (99, [3, 6, 9])])
def test_what_was_logged_after_the_checkpoint_is_dropped(log, step, kept):
    rewind(log, step)
    assert [line["step"] for line in read_lines(log)] == kept


def test_a_torn_line_is_left_out(log):
    log.write_text(log.read_text()[:-5] + "\n[]\n{}\n")
    rewind(log, 99)
    assert [line["step"] for line in read_lines(log)] == [3, 6]
    assert len(log.read_text().splitlines()) == 2


def test_bytes_that_are_no_text_are_no_lines(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    assert read_lines(tmp_path / "m.jsonl") == []


def test_a_new_run_starts_an_empty_log(tmp_path):
    rewind(tmp_path / "new" / "m.jsonl", 0)
    assert (tmp_path / "new" / "m.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CrowdRTError, match=r"m\.jsonl could not be written") as caught:
        rewind(tmp_path / "file" / "m.jsonl", 0)
    assert caught.value.fix
