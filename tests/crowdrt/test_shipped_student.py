"""The weights that the project ships: sound, documented, and counting."""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from crowdrt import weights
from crowdrt.benchmarks.accuracy.counts import accuracy, count_samples
from crowdrt.benchmarks.tables.trained.skt import SKT_TABLE_6
from crowdrt.contracts import CalibrationConfig
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.data.synthetic.photographs import generate
from crowdrt.engines.ort import OrtEngine
from crowdrt.manifest import sha256_file
from crowdrt.models.weights import load_network
from crowdrt.pipeline.stages import calibrate_stage
from crowdrt.training.counting.evaluate import constant_mean_errors

ROOT = Path(__file__).resolve().parents[2]
STUDENT = weights.FOLDER / "csrnet-quarter.safetensors"


@pytest.fixture(scope="module")
def crowds(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("crowds"), num_images=6, seed=42)


def test_the_file_is_the_one_that_was_trained():
    manifest = json.loads(STUDENT.with_name(STUDENT.name + ".json").read_text())
    _, network, width = load_network(STUDENT)
    assert sha256_file(STUDENT) == manifest["sha256"]
    assert (network, width) == ("csrnet", Fraction(1, 4))


@pytest.fixture(scope="module")
def card():
    """The model card's text."""
    return (weights.FOLDER / "csrnet-quarter.md").read_text()


def row_of(card, part):
    """The cells of the FP32 row of one part's test split, by the table's headings."""
    rows = [line.strip("|\n").split("|") for line in card.splitlines() if line.startswith("|")]
    heads, *found = [[cell.strip() for cell in row] for row in rows]
    cells = next(row for row in found if f"Part {part}" in row[0])
    return dict(zip(heads, cells, strict=True))


def test_the_card_says_what_the_record_says(card):
    record = (ROOT / "results" / "accuracy.txt").read_text()
    found = re.findall(
        r"count (?:student|run/csrnet-quarter)\.\S+ \S+part_(?:A|B)\S*\n"
        r"MAE ([\d.]+), RMSE ([\d.]+)",
        record,
    )
    assert len(found) == 5  # FP32 and INT8 on both test splits, eager PyTorch on one
    for mae, rmse in found:
        assert f"{mae} / {rmse}" in card


@pytest.mark.parametrize("part", ["A", "B"])
def test_the_card_quotes_the_paper_to_the_digit(card, part):
    row = row_of(card, part)
    cells = {each.label: each.printed for each in SKT_TABLE_6.rows}
    for label in ("1/4-CSRNet", "1/4-CSRNet + SKT"):
        mae, rmse = cells[label][:2] if part == "A" else cells[label][2:]
        assert row[f"paper's {label}"] == f"{mae} / {rmse}"


@pytest.mark.data
@pytest.mark.parametrize("part", ["A", "B"])
def test_the_cards_constant_mean_is_the_training_splits(card, part, data_root):
    errors = constant_mean_errors(*(shanghaitech(data_root, part, s) for s in ("train", "test")))
    assert row_of(card, part)["constant mean"] == f"{errors.mae:.2f} / {errors.rmse:.2f}"
    record = (ROOT / "results" / "accuracy.txt").read_text()
    recorded = re.search(rf"part {part}, constant mean: .*mae=([\d.]+), rmse=([\d.]+)", record)
    assert recorded is not None
    assert [float(cell) for cell in recorded.groups()] == pytest.approx([errors.mae, errors.rmse])


def test_it_counts_generated_crowds(student_onnx, crowds):
    rows = count_samples(OrtEngine(student_onnx), crowds)
    counted = np.array([row.count for row in rows])
    annotated = np.array([row.annotated for row in rows], float)
    assert annotated.std() > 50  # otherwise one constant would do
    assert np.abs(counted - annotated).mean() < 0.2 * annotated.mean()


def test_int8_counts_the_same_people(student_onnx, crowds, tmp_path):
    path = tmp_path / "student.int8.onnx"
    calibrate_stage(student_onnx, crowds[:3], path, CalibrationConfig(num_images=3))
    exact = count_samples(OrtEngine(student_onnx), crowds[3:])
    rows = count_samples(OrtEngine(path), crowds[3:])
    for before, after in zip(exact, rows, strict=True):
        assert after.count == pytest.approx(before.count, rel=0.05, abs=5)
        assert after.count != before.count


@pytest.mark.data
def test_it_beats_the_constant_mean_on_real_streets(student_onnx, data_root):
    samples = shanghaitech(data_root, "B", "test")[::20]
    rows = count_samples(OrtEngine(student_onnx), samples)
    errors = accuracy(rows)
    annotated = np.array([sample.annotated for sample in samples], float)
    assert errors is not None
    assert errors.mae < 0.6 * np.abs(annotated - annotated.mean()).mean()
