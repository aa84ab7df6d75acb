"""crowdrt train with a detector's recipe: from a recipe to boxes on a photograph."""

import functools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from crowdrt.benchmarks.accuracy.boxes import detect_people
from crowdrt.benchmarks.tables.trained.records import read_training_records
from crowdrt.contracts import Detections, Recipe
from crowdrt.data.boxes.datasets import open_box_samples
from crowdrt.data.synthetic.pedestrians import generate_pedestrians
from crowdrt.errors import DataError
from crowdrt.learning import Assignment, TrainingConfig
from crowdrt.models.weights_info import describe_weights
from crowdrt.pipeline.learning import train_stage
from crowdrt.pipeline.stages import open_any
from crowdrt.pipeline.trained import record_stage
from crowdrt.recipes import RECIPES, recipe_named

TINY = Recipe(
    name="tiny",
    network="onenet",
    width=Fraction(1, 32),
    sizes=((96, 128),),
    training=TrainingConfig(
        steps=1,
        batch_size=2,
        crop_px=64,
        batch_norm=False,
        num_synthetic=2,
        precision="32-true",
        assignment=Assignment(),
    ),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small = functools.partial(generate_pedestrians, size=(96, 112), people=(2, 5))
    monkeypatch.setattr("crowdrt.training.detection.sets.generate_pedestrians", small)
    monkeypatch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)


def test_what_a_recipe_trains_detects(tmp_path):
    artifact = train_stage(TINY, data=None, out=tmp_path / "out")
    assert describe_weights(artifact.path).network == "onenet"
    photograph = next((tmp_path / "out" / "photographs" / "Images").glob("*.jpg"))
    engine = open_any(artifact.path, None, num_threads=1)
    found = detect_people(engine, photograph)
    assert found.size == (96, 112)
    assert len(found.detections.scores) > 10  # unsure of everything, after one step
    assert found.detections.scores.std() > 0


@pytest.fixture
def crowdhuman(tmp_path):
    """Generated pedestrians in CrowdHuman's layout: six to learn from, two to be judged on."""
    folder = tmp_path / "CrowdHuman"
    generate_pedestrians(folder, num_images=8, seed=3, size=(96, 112), people=(2, 5))
    [annotation] = folder.glob("*.odgt")
    lines = annotation.read_text().splitlines(keepends=True)
    annotation.unlink()
    (folder / "annotation_train.odgt").write_text("".join(lines[:6]))
    (folder / "annotation_val.odgt").write_text("".join(lines[6:]))
    return folder


def all_but_the_first(_model, samples, *, short_side_px):
    """Stand in for `detect`: everybody is found exactly, but the first person of a photograph."""
    assert short_side_px == 64
    found = []
    for sample in samples:
        boxes = sample.boxes[1:]
        scores = np.linspace(1, 0.5, len(boxes), dtype=np.float32)
        people = Detections(boxes=boxes, scores=scores, labels=np.zeros(len(boxes), np.int64))
        found.append((people, sample))
    return found


def test_a_record_says_how_well_people_are_found(crowdhuman, tmp_path, monkeypatch):
    recipe = replace(TINY, training=replace(TINY.training, num_synthetic=0, short_side_px=64))
    samples = open_box_samples(crowdhuman / "annotation_val.odgt")
    artifact = train_stage(recipe, data=crowdhuman, out=tmp_path / "out")
    monkeypatch.setattr("crowdrt.training.detection.evaluate.detect", all_but_the_first)
    [record] = record_stage(recipe, artifact, data=crowdhuman, teacher=None)
    assert (record["test"], record["num_images"]) == ("CrowdHuman val", 2)
    assert record["train"] == "CrowdHuman train"
    people = sum(len(sample.boxes) for sample in samples)
    assert record["num_people"] == people
    assert record["recall"] == pytest.approx(1 - 2 / people)
    assert 0.5 < record["ap50"] == record["ap75"] == record["ap"] < 1
    [read] = read_training_records(tmp_path / "out" / "record.jsonl")
    assert read.metrics["ap50"] == record["ap50"]
    assert record_stage(recipe, artifact, data=crowdhuman, teacher=None) == [record]


def test_a_folder_without_what_papers_test_on_is_refused(crowdhuman, tmp_path):
    artifact = train_stage(TINY, data=crowdhuman, out=tmp_path / "out")
    (crowdhuman / "annotation_val.odgt").unlink()
    with pytest.raises(DataError, match="no published test split") as caught:
        record_stage(TINY, artifact, data=crowdhuman, teacher=None)
    assert "CrowdHuman val" in caught.value.fix


def test_every_row_of_table_4_differs_in_what_it_is_named_for():
    rows = {row: recipe_named(f"dsla-4-{row}") for row in ("onenet", "fs", "sla", "sla-fs")}
    kinds = {(r.network, r.training.assignment.soft) for r in rows.values()}
    assert len(kinds) == 4
    assert rows["sla-fs"].training == recipe_named("dsla-6-k6").training
    assert rows["sla-fs"].training == recipe_named("dsla-7-max-0.6-min-0.4").training
    assert rows["sla-fs"].training.assignment == Assignment()  # the paper's choice
    for recipe in RECIPES:
        assert (recipe.training.assignment is not None) == (recipe.network in ("dsla", "onenet"))
