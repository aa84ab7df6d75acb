"""crowdrt diff: two files of records, beside each other."""

from dataclasses import replace

import pytest

from crowdrt.benchmarks.timing.records import append_records
from crowdrt.contracts import Measurement

ROW = Measurement(
    name="student",
    network="csrnet",
    width="1/4",
    engine="onnxruntime",
    engine_version="1.31.1",
    precision="fp32",
    size=(576, 864),
    num_threads=2,
    samples_ms=tuple(100 + i % 3 for i in range(40)),
    peak_mib=200.0,
    machine={"cpu": "one", "kernel": "6"},
    verdict="valid",
    sha256="ab" * 32,
)
FASTER = replace(
    ROW,
    samples_ms=tuple(each / 2 for each in ROW.samples_ms),
    sha256="cd" * 32,
    machine={"cpu": "two", "kernel": "6"},
    verdict="shared: others used 9 % of the CPU meanwhile",
)
ELSEWHERE = replace(ROW, network="bl")


@pytest.fixture
def files(tmp_path):
    """Writes rows into A and B."""

    def write(before, after):
        for name, rows in (("a", before), ("b", after)):
            append_records(tmp_path / name, rows)
        return tmp_path / "a", tmp_path / "b"

    return write


def test_what_got_faster_is_shown_with_its_doubts(crowdrt, files):
    said = crowdrt("diff", *files([ROW, ELSEWHERE], [FASTER])).out
    [line] = [line for line in said.splitlines() if line.startswith("1/4-CSRNet")]
    assert "0.500" in line
    assert line.rstrip().endswith("faster *")
    assert "after: shared: others used 9 %" in said
    assert "machines differ: cpu one before, two after" in said
    assert "only before: 1/4-BL" in said
    assert "drift is unknown" in said


def test_json_holds_all_of_it(crowdrt, files):
    found = crowdrt("diff", *files([ROW, ELSEWHERE], [FASTER, ELSEWHERE]), "--json").json()
    student, other = found["rows"]
    assert (student["change"], student["ratio"]) == ("faster", 0.5)
    assert student["interval"] == pytest.approx([0.5, 0.5], abs=0.02)
    assert (other["change"], other["same_file"]) == ("within noise", True)
    assert (found["drift"], found["drift_known"]) == (0.0, True)
    assert found["machines"] == {"cpu": ["one", "two"]}


def test_files_without_a_common_row_are_refused(crowdrt, files):
    refused = crowdrt("diff", *files([ROW], [ELSEWHERE]))
    assert refused.code == 1
    assert "no row in common" in refused.err
    assert "crowdrt profile" in refused.err


def test_a_file_that_is_no_record_is_refused(crowdrt, files, tmp_path):
    before, _ = files([ROW], [FASTER])
    (tmp_path / "c").write_text("{}\n")
    refused = crowdrt("diff", before, tmp_path / "c")
    assert refused.code == 1
    assert "not a whole record" in refused.err
    assert crowdrt("diff", before, tmp_path / "absent").code == 1


def test_twice_as_fast_in_too_few_visits_is_not_called_noise(crowdrt, files):
    few = replace(FASTER, samples_ms=FASTER.samples_ms[:5], runs_per_visit=1)
    both = files([ROW], [few])
    (row,) = crowdrt("diff", *both, "--json").json()["rows"]
    assert (row["change"], row["interval"], row["ratio"]) == ("too few visits", None, 0.5)
    assert "within noise" not in crowdrt("diff", *both).out
