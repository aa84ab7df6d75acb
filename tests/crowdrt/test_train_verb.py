"""crowdrt train: the recipe's network, its records, and what it refuses."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from crowdrt.contracts import Recipe
from crowdrt.data.heads.splits import KnownSet
from crowdrt.data.synthetic.photographs import generate
from crowdrt.errors import DataError, RecipeError
from crowdrt.learning import Quantization, TrainingConfig, Transfer
from crowdrt.models import NETWORKS, TRAINING_FORMS, build_model
from crowdrt.models.weights import load_network, save_weights
from crowdrt.pipeline import trained
from crowdrt.pipeline.learning import TrainOptions, start_of, train_stage, with_options
from crowdrt.recipes import RECIPES, recipe_named
from crowdrt.training.counting.evaluate import count_errors
from crowdrt.training.quantization.simulation import simulate

TINY = Recipe(
    name="tiny",
    network="csrnet",
    width=Fraction(1, 16),
    training=TrainingConfig(steps=2, batch_size=2, crop_px=64),
)
TAUGHT = replace(
    TINY, training=replace(TINY.training, transfer=Transfer(teacher="skt-3-none", mean=True))
)

QUANTIZATION = Quantization(method="qat", start="csrnet-quarter")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)


@pytest.fixture
def crowds(tmp_path):
    folder = tmp_path / "crowds"
    generate(folder, num_images=4, seed=1, size=(96, 96), people=(30, 46))
    return folder


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A test split of two photographs that passes for ShanghaiTech Part B's."""
    made = generate(tmp_path / "test", num_images=2, seed=9, size=(96, 96), people=(30, 46))
    known = KnownSet(name="shanghaitech-b", root=tmp_path / "test")
    monkeypatch.setattr(trained, "known_sets", lambda _: [known])
    monkeypatch.setattr(trained, "read_split", lambda *_: list(made))
    return made


def test_a_record_says_what_was_trained_how_long_and_how_well(crowds, published, tmp_path):
    artifact = train_stage(TINY, data=crowds, out=tmp_path / "out")
    [record] = trained.record_stage(TINY, artifact, data=crowds, teacher=None)
    model, *_ = load_network(artifact.path)
    errors = count_errors(model, published, model.preprocessing)
    assert (record["mae"], record["rmse"]) == (errors.mae, errors.rmse)
    assert (record["steps"], record["crops"], record["seed"]) == (2, 4, 0)
    assert (record["recipe"], record["width"], record["teacher"]) == ("tiny", "1/16", None)
    assert record["test"] == "ShanghaiTech part_B test"
    assert record["num_threads"] == torch.get_num_threads()
    assert 0 < record["wall_s"] < 600
    assert record["weights_sha256"] == artifact.sha256
    lines = (tmp_path / "out" / "record.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record]
    assert str(tmp_path) not in lines[0]


def test_a_network_that_learned_in_int8_is_recorded_as_its_int8_file_counts(
    crowds, published, tmp_path
):
    start = tmp_path / "start.safetensors"
    torch.manual_seed(0)
    save_weights(build_model("csrnet", TINY.width), start, network="csrnet", width=TINY.width)
    learning = replace(
        TINY.training, batch_norm=False, precision="32-true", quantization=QUANTIZATION
    )
    recipe = replace(TINY, training=learning)
    options = TrainOptions(pretrained=start)
    artifact = train_stage(recipe, data=crowds, out=tmp_path / "out", options=options)
    [record] = trained.record_stage(recipe, artifact, data=crowds, teacher=None)
    model, *_ = load_network(artifact.path)
    plain = count_errors(model, published, model.preprocessing)
    int8 = count_errors(simulate(model), published, model.preprocessing)
    assert record["mae"] == int8.mae != plain.mae


def test_weights_to_go_on_with_are_named_or_shipped(tmp_path):
    recipe = recipe_named("skt-5-qat-cpu")
    assert start_of(recipe, None).name == "csrnet-quarter.safetensors"
    assert start_of(recipe, tmp_path) == tmp_path
    assert start_of(TINY, None) is None
    with pytest.raises(RecipeError, match="goes on with 'csrnet-published'") as caught:
        start_of(recipe_named("skt-5-qat"), None)
    assert "--init" in caught.value.fix


def test_weights_that_were_counted_are_not_counted_again(crowds, published, tmp_path, monkeypatch):
    artifact = train_stage(TINY, data=crowds, out=tmp_path / "out")
    first = trained.record_stage(TINY, artifact, data=crowds, teacher=None)
    monkeypatch.setattr(trained, "errors_on", None)
    assert trained.record_stage(TINY, artifact, data=crowds, teacher=None) == first


def test_a_damaged_line_is_no_record(crowds, published, tmp_path):
    artifact = train_stage(TINY, data=crowds, out=tmp_path / "out")
    path = tmp_path / "out" / "record.jsonl"
    path.write_text('{"test": "Shanghai\n[1]\n{}\n')
    found = trained.record_stage(TINY, artifact, data=crowds, teacher=None)
    assert [json.loads(line) for line in path.read_text().splitlines()] == found


def test_a_folder_without_a_test_split_is_refused(crowds, tmp_path):
    artifact = train_stage(TINY, data=crowds, out=tmp_path / "out")
    with pytest.raises(DataError, match="no published test split"):
        trained.record_stage(TINY, artifact, data=crowds, teacher=None)


def test_seed_and_steps_of_the_command_line_are_part_of_the_recipe():
    found = with_options(TINY, TrainOptions(steps=7, seed=3))
    assert (found.training.steps, found.training.seed) == (7, 3)
    assert with_options(TINY, TrainOptions()) == TINY


def test_a_teacher_that_does_not_ship_has_to_be_named(crowds, tmp_path):
    with pytest.raises(RecipeError, match="'skt-3-none', whose weights are not shipped") as caught:
        train_stage(TAUGHT, data=crowds, out=tmp_path / "out")
    assert "--teacher" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_a_named_teacher_teaches(crowds, tmp_path):
    path, width = tmp_path / "teacher.safetensors", Fraction(1, 8)
    save_weights(build_model("csrnet", width), path, network="csrnet", width=width)
    options = TrainOptions(teacher=path)
    artifact = train_stage(TAUGHT, data=crowds, out=tmp_path / "out", options=options)
    lines = (tmp_path / "out" / "losses.jsonl").read_text().splitlines()
    assert {"blocks", "soft_blocks", "intra", "inter"} < set(json.loads(lines[-1]))
    assert load_network(artifact.path)[1:] == ("csrnet", Fraction(1, 16))


def test_every_recipe_has_its_own_name_and_says_what_it_is():
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    assert all(recipe.about for recipe in RECIPES)
    assert not set(names) & {*NETWORKS, *TRAINING_FORMS}  # crowdrt export takes either


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="unknown") as caught:
        recipe_named("skt-3-cosin")
    assert "skt-3-cosine" in caught.value.fix


def test_every_teacher_is_a_recipe_of_its_students_network():
    taught = [recipe for recipe in RECIPES if recipe.training.transfer]
    assert len(taught) >= 22
    for recipe in taught:
        teacher = recipe_named(recipe.training.transfer.teacher)
        assert teacher.network == recipe.network
        assert teacher.width > recipe.width or recipe.training.pruning


def test_rows_of_table_3_differ_in_the_transfer_alone():
    for suffix in ("", "-cpu"):
        none = recipe_named(f"skt-3-none{suffix}")
        rows = [r for r in RECIPES if r.name.startswith("skt-3-") and r.width == none.width]
        assert len(rows) == 7
        assert len({str(row.training.transfer) for row in rows}) == 7
        for row in rows:
            assert replace(row.training, transfer=None) == none.training


def test_another_width_is_table_2s_other_rows():
    found = with_options(recipe_named("skt-3-none"), TrainOptions(width=Fraction(1, 2)))
    assert (found.width, found.name) == (Fraction(1, 2), "skt-3-none")
