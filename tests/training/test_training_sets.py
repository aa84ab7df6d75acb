"""Which photographs take part: never a test photograph, and never one on both sides."""

import json
import shutil

import numpy as np
import pytest
import scipy.io
from PIL import Image

from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.errors import DataError
from crowdrt.manifest import sha256_file
from crowdrt.training.counting.sets import training_set
from crowdrt.training.photographs.sources import VALIDATE_EVERY


def paths_of(found):
    learn = [sample.image for group in found.groups for sample in group.samples]
    return learn, [sample.image for sample in found.validation]


def write_photo(path, *, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def annotated_folder(folder, *, number, unknown=0):
    for index in range(number + unknown):
        image = folder / f"photo_{index}.png"
        write_photo(image, seed=index)
        if index < number:
            heads = {"heads": [[1, 2]] * index}
            image.with_name(f"{image.name}.heads.json").write_text(json.dumps(heads))
    return folder


def split_in_layout(folder, *, number, first_seed):
    """A split in ShanghaiTech's published layout, one head per image."""
    for index in range(number):
        write_photo(folder / "images" / f"IMG_{index}.jpg", seed=first_seed + index)
        cell = np.empty((1, 1), object)
        cell[0, 0] = {"location": np.ones((1, 2)), "number": 1}
        truth = folder / "ground-truth" / f"GT_IMG_{index}.mat"
        truth.parent.mkdir(exist_ok=True)
        scipy.io.savemat(truth, {"image_info": cell})


@pytest.fixture(params=["part_{}", "part_{}_final"])
def published(request, tmp_path):
    """Both parts; Part A's test IMG_1 is byte-identical with its train IMG_4."""
    for seed, part in enumerate("AB"):
        folder = tmp_path / request.param.format(part)
        split_in_layout(folder / "train_data", number=20, first_seed=1000 * seed)
        split_in_layout(folder / "test_data", number=3, first_seed=1000 * seed + 500)
    images = tmp_path / request.param.format("A")
    shutil.copy(
        images / "train_data" / "images" / "IMG_4.jpg", images / "test_data/images/IMG_1.jpg"
    )
    return tmp_path


def test_validation_and_learning_share_no_photograph(tmp_path):
    folder = annotated_folder(tmp_path / "mine", number=32)
    learn, validate = paths_of(training_set(folder, num_synthetic=0, synthetic=tmp_path))
    assert len(validate) == 3 == 1 + 31 // VALIDATE_EVERY
    assert len(learn) == 29
    assert not set(learn) & set(validate)
    assert {path.name for path in validate} == {"photo_0.png", "photo_15.png", "photo_30.png"}


def test_both_parts_take_part_and_a_copy_of_a_test_photograph_does_not(published):
    found = training_set(published, num_synthetic=0, synthetic=published / "none")
    learn, validate = paths_of(found)
    assert [group.name for group in found.groups] == ["shanghaitech-a", "shanghaitech-b"]
    assert {path.parent.parent.name for path in learn + validate} == {"train_data"}
    assert len(learn) + len(validate) == 39
    assert not (published / "none").exists()
    leaked = [p for p in learn + validate if p.name == "IMG_4.jpg" and "part_A" in str(p)]
    assert not leaked


@pytest.mark.parametrize("inside", ["", "images"])
def test_one_split_alone_leaves_out_what_the_split_beside_it_tests(published, inside):
    split = next(published.glob("part_A*")) / "train_data"
    data = split / inside
    learn, validate = paths_of(training_set(data, num_synthetic=0, synthetic=published))
    assert len(learn) + len(validate) == 19
    assert "IMG_4.jpg" not in {path.name for path in learn + validate}

    shutil.rmtree(split.parent / "test_data")  # nothing is known to be tested
    learn, validate = paths_of(training_set(data, num_synthetic=0, synthetic=published))
    assert len(learn) + len(validate) == 20


def test_the_test_split_itself_is_not_emptied(published):
    split = next(published.glob("part_A*")) / "test_data"
    learn, validate = paths_of(training_set(split, num_synthetic=0, synthetic=published))
    assert len(learn) + len(validate) == 3


def test_generated_crowds_join_with_a_smaller_share(published, crowds, monkeypatch):
    monkeypatch.setattr("crowdrt.training.counting.sets.generate", lambda *_, **__: list(crowds))
    found = training_set(published, num_synthetic=4, synthetic=published / "made")
    shares = {group.name: group.share for group in found.groups}
    assert list(shares) == ["shanghaitech-a", "shanghaitech-b", "synthetic"]
    assert 0 < shares["synthetic"] < max(shares.values())
    assert crowds[0] in found.validation


def test_generated_crowds_alone_will_do(tmp_path):
    found = training_set(None, num_synthetic=2, synthetic=tmp_path / "made")
    learn, validate = paths_of(found)
    assert [path.name for path in validate + learn] == ["crowd_0000.jpg", "crowd_0001.jpg"]
    assert [group.share for group in found.groups] == [1.0]


def test_nothing_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing to learn from") as caught:
        training_set(None, num_synthetic=0, synthetic=tmp_path)
    assert "--data" in caught.value.fix


def test_photographs_without_annotation_are_left_out_aloud(tmp_path, capsys):
    folder = annotated_folder(tmp_path / "mine", number=4, unknown=2)
    learn, validate = paths_of(training_set(folder, num_synthetic=0, synthetic=tmp_path))
    assert len(learn + validate) == 4
    assert "2 of 6 photographs are not annotated" in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_that_was_named_is_not_passed_over(tmp_path, crowds, monkeypatch):
    """Else training would go on with generated crowds alone, and nobody would notice."""
    monkeypatch.setattr("crowdrt.training.counting.sets.generate", lambda *_, **__: list(crowds))
    folder = annotated_folder(tmp_path / "mine", number=0, unknown=2)
    with pytest.raises(DataError, match="none of the 2 photographs") as caught:
        training_set(folder, num_synthetic=4, synthetic=tmp_path)
    assert ".heads.json" in caught.value.fix


def test_a_single_photograph_is_too_few(tmp_path):
    folder = annotated_folder(tmp_path / "mine", number=1)
    with pytest.raises(DataError, match="too few"):
        training_set(folder, num_synthetic=0, synthetic=tmp_path)


@pytest.mark.data
def test_part_a_alone_leaves_out_the_leaked_photograph(data_root, tmp_path):
    data = data_root / "ShanghaiTech" / "part_A" / "train_data"
    learn, validate = paths_of(training_set(data, num_synthetic=0, synthetic=tmp_path))
    assert len(learn) + len(validate) == 299
    assert "IMG_121.jpg" not in {path.name for path in learn + validate}


@pytest.mark.data
def test_no_test_photograph_of_shanghaitech_takes_part(data_root, tmp_path):
    learn, validate = paths_of(training_set(data_root, num_synthetic=0, synthetic=tmp_path))
    learned, chosen_by = set(map(sha256_file, learn)), set(map(sha256_file, validate))
    tested = [s.image for part in ("A", "B") for s in shanghaitech(data_root, part, "test")]
    hashes = set(map(sha256_file, tested))
    assert len(tested) == 182 + 316
    assert len(learn) + len(validate) == 300 + 400 - 1  # IMG_121 is test IMG_98
    assert not learned & chosen_by
    assert not (learned | chosen_by) & hashes
