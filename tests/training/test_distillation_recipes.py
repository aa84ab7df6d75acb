"""The recipes of SKT's Table 5 that distil: what sets them apart, and that they can be trained."""

from dataclasses import replace
from fractions import Fraction

import pytest

from crowdrt.data.synthetic.photographs import generate
from crowdrt.errors import RecipeError
from crowdrt.learning import TrainingConfig
from crowdrt.models.weights_info import describe_weights
from crowdrt.pipeline.learning import TrainOptions, task_of, train_stage
from crowdrt.pipeline.trained import teacher_name
from crowdrt.recipes import recipe_named
from crowdrt.recipes.settings import with_settings

METHODS = ("fitnets", "dml", "nst", "at", "ab")


@pytest.mark.parametrize("suffix", ["", "-cpu"])
def test_a_method_is_all_that_sets_a_row_apart(suffix):
    none = recipe_named(f"skt-3-none{suffix}")
    for method in METHODS:
        row = recipe_named(f"skt-5-{method}{suffix}")
        assert row.training.distillation.method == method
        assert replace(row.training, distillation=None) == none.training
        assert (row.network, row.width) == (none.network, none.width)


@pytest.mark.parametrize("suffix", ["", "-cpu"])
def test_the_teacher_is_skts(suffix):
    skt = recipe_named(f"skt-3-cosine-dense-fsp{suffix}").training.teacher
    assert skt is not None
    for method in METHODS:
        row = recipe_named(f"skt-5-{method}{suffix}")
        assert row.training.teacher == (None if method == "dml" else skt)
        assert teacher_name(row, None) == row.training.teacher


def test_settings_of_a_method_can_be_set():
    row = with_settings(recipe_named("skt-5-ab-cpu"), ["distillation.first_stage=1/3"])
    assert row.training.distillation.first_stage == pytest.approx(1 / 3)
    with pytest.raises(RecipeError, match="method 'at' has no margin"):
        with_settings(recipe_named("skt-5-at-cpu"), ["distillation.margin=2"])


def test_a_teacher_whose_weights_are_not_shipped_is_asked_for(tmp_path):
    generate(tmp_path / "crowds", num_images=4, seed=1, size=(96, 96), people=(30, 46))
    with pytest.raises(RecipeError, match="learns from 'csrnet-published'") as caught:
        task_of(
            recipe_named("skt-5-at"), data=tmp_path / "crowds", out=tmp_path, options=TrainOptions()
        )
    assert "--teacher" in caught.value.fix


def test_recipes_train_to_a_student_and_name_what_they_learned_by(tmp_path, monkeypatch):
    monkeypatch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)
    generate(tmp_path / "crowds", num_images=4, seed=1, size=(96, 96), people=(30, 46))
    tiny = TrainingConfig(steps=2, batch_size=2, crop_px=64)
    for method in ("ab", "dml"):
        row = recipe_named(f"skt-5-{method}-cpu")
        training = replace(tiny, distillation=row.training.distillation)
        row = replace(row, width=Fraction(1, 16), training=training)
        artifact = train_stage(row, data=tmp_path / "crowds", out=tmp_path / method)
        about = describe_weights(artifact.path)
        assert (about.network, about.width) == ("csrnet", Fraction(1, 16))
