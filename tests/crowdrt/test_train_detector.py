"""crowdrt train with a detector's recipe: from a recipe to boxes on a photograph."""

import functools
from fractions import Fraction

import pytest

from crowdrt.benchmarks.accuracy.boxes import detect_people
from crowdrt.contracts import Recipe
from crowdrt.data.synthetic.pedestrians import generate_pedestrians
from crowdrt.errors import RecipeError
from crowdrt.learning import Assignment, TrainingConfig
from crowdrt.models.weights_info import describe_weights
from crowdrt.pipeline.learning import train_stage
from crowdrt.pipeline.stages import open_any
from crowdrt.recipes import RECIPES, recipe_named
from crowdrt.verbs.networks import train

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


def test_counting_test_splits_with_a_detector_is_refused_before_it_trains(tmp_path):
    with pytest.raises(RecipeError, match="boxes") as caught:
        train("dsla-4-onenet-cpu", output=tmp_path / "out", data=tmp_path, test=True)
    assert "crowdrt detect" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_every_row_of_table_4_differs_in_what_it_is_named_for():
    rows = {row: recipe_named(f"dsla-4-{row}") for row in ("onenet", "fs", "sla", "sla-fs")}
    kinds = {(r.network, r.training.assignment.soft) for r in rows.values()}
    assert len(kinds) == 4
    assert rows["sla-fs"].training == recipe_named("dsla-6-k6").training
    assert rows["sla-fs"].training == recipe_named("dsla-7-max-0.6-min-0.4").training
    assert rows["sla-fs"].training.assignment == Assignment()  # the paper's choice
    for recipe in RECIPES:
        assert (recipe.training.assignment is not None) == (recipe.network in ("dsla", "onenet"))
