"""Settings of the command line: every field of a recipe's training can be set, by its type."""

from dataclasses import fields

import pytest

from crowdrt.errors import RecipeError
from crowdrt.learning import TrainingConfig
from crowdrt.recipes import recipe_named
from crowdrt.recipes.settings import with_settings

SKT = recipe_named("skt-3-cosine-dense-fsp-cpu")


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("learning_rate=3e-4", "learning_rate", 3e-4),
        ("drop_at=1/3", "drop_at", 1 / 3),
        ("batch_size=16", "batch_size", 16),
        ("initial=fan-in", "initial", "fan-in"),
        ("colours=false", "colours", False),
        ("crop_ratio=0.25,0.5", "crop_ratio", (0.25, 0.5)),
    ],
)
def test_a_field_is_set_by_its_type(setting, field, value):
    found = with_settings(SKT, [setting])
    assert getattr(found.training, field) == value != getattr(SKT.training, field)
    assert found.name == f"{SKT.name} with {setting}"
    rest = {f.name for f in fields(TrainingConfig)} - {field}
    assert all(getattr(found.training, f) == getattr(SKT.training, f) for f in rest)


def test_fields_of_a_part_are_named_by_both():
    found = with_settings(SKT, ["transfer.intra=none", "transfer.soft_weight=0.5"]).training
    assert (found.transfer.intra, found.transfer.soft_weight) == (None, 0.5)
    assert found.transfer.inter == "dense"
    ablated = with_settings(recipe_named("deepcount-2-cpu"), ["fusion.branches=3x4,48x64"])
    assert ablated.training.fusion.branches == ("3x4", "48x64")


def test_what_is_so_already_is_the_recipe_itself():
    assert with_settings(SKT, [f"crop_px={SKT.training.crop_px}"]) == SKT
    assert with_settings(SKT, []) == SKT


@pytest.mark.parametrize(
    ("setting", "match", "fix"),
    [
        ("learning_rate", "sets nothing", "FIELD=VALUE"),
        ("rate=1", "no setting 'rate'", "learning_rate"),
        ("batch_size=2.5", "batch_size=2.5 cannot be set", "a whole number"),
        ("learning_rate=nan", "learning_rate=nan cannot be set", "a number"),
        ("drop_at=1/0", "drop_at=1/0 cannot be set", "a number"),
        ("initial=xavier", "initial=xavier cannot be set", "fan-in or fan-out or gaussian"),
        ("colours=1", "colours=1 cannot be set", "true or false"),
        ("crop_ratio=0.5", "crop_ratio=0.5 cannot be set", "2 values"),
        ("crop_ratio=0.9,0.1", "crop_ratio", "the smaller first"),
        ("batch_size=0", "batch_size=0", "at least 1"),
        ("steps=9", "an option of its own", "--steps 9"),
        ("seed=9", "an option of its own", "--seed 9"),
        ("transfer=none", "'transfer' is no single setting", "transfer.FIELD"),
        ("crop_px.more=1", "'crop_px.more' is no single setting", "use crop_px"),
        ("fusion.scale=1", "has no fusion", "crowdrt recipes"),
        ("pruning=foo", "pruning=foo cannot be set", "a recipe that has a pruning"),
        (f"drop_at=1{'0' * 400}/1", "cannot be set", "a number"),
        (f"batch_size=1{'0' * 400}", "cannot be set", "a whole number"),
        ("transfer.depth=1", "no setting 'depth'", "soft_weight"),
    ],
)
def test_what_cannot_be_set_is_refused(setting, match, fix):
    with pytest.raises(RecipeError, match=match) as caught:
        with_settings(SKT, [setting])
    assert fix in caught.value.fix
