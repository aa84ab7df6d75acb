import shutil
from collections import Counter
from pathlib import Path

import made_sets
import pytest

from crowdrt.data.heads.datasets import open_samples, without_copies
from crowdrt.data.heads.splits import SET_NAMES, KnownSet, held_out_beside, known_sets, open_split
from crowdrt.errors import DataError


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every set in one folder, as somebody who downloads them keeps them; only read."""
    root = tmp_path_factory.mktemp("data")
    made_sets.shanghaitech(root / "ShanghaiTech" / "part_A_final")
    made_sets.shanghaitech(root / "ShanghaiTech" / "part_B_final")
    made_sets.ucf_qnrf(root / "UCF-QNRF_ECCV18")
    made_sets.worldexpo(root / "WorldExpo10")
    made_sets.mall(root / "mall_dataset")
    made_sets.ucf_cc_50(root / "UCF_CC_50")
    (root / ".cache").mkdir()
    return root


FOLDERS = {
    "shanghaitech-a": "ShanghaiTech/part_A_final",
    "shanghaitech-b": "ShanghaiTech/part_B_final",
    "ucf-qnrf": "UCF-QNRF_ECCV18",
    "worldexpo10": "WorldExpo10",
    "mall": "mall_dataset",
    "ucf-cc-50": "UCF_CC_50",
}
COUNTS = {
    "shanghaitech-a": ([1, 2], [1, 2]),
    "shanghaitech-b": ([1, 2], [1, 2]),
    "ucf-qnrf": ([1, 2], [1, 2]),
    "worldexpo10": ([1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 2, 3]),
    "mall": ([1, 2], [3, 1]),
    "ucf-cc-50": ([3, 4, 5, 6, 7, 8, 9, 10], [1, 2]),
}


def test_every_published_set_is_found(everything):
    found = {each.name: each.root for each in known_sets(everything)}
    assert found == {name: everything / folder for name, folder in FOLDERS.items()}
    assert set(found) == set(SET_NAMES)


@pytest.mark.parametrize("name", SET_NAMES)
@pytest.mark.parametrize("whole", [True, False])
def test_both_splits_of_every_set_are_opened(everything, name, whole):
    data = everything if whole else everything / FOLDERS[name]
    for split, counts in zip(("train", "test"), COUNTS[name], strict=True):
        samples = open_split(data, split, part=name if whole else None)
        assert [sample.annotated for sample in samples] == counts
        assert all(sample.image.is_relative_to(everything / FOLDERS[name]) for sample in samples)


def test_the_working_folder_is_recognised(everything, monkeypatch):
    monkeypatch.chdir(everything / FOLDERS["shanghaitech-b"])
    assert [each.name for each in known_sets(Path())] == ["shanghaitech-b"]
    assert len(open_split(Path(), "train")) == 2


def test_five_folds_test_on_every_image_once(everything):
    folds = [
        [{s.image.name for s in open_split(everything, split, part="ucf-cc-50", fold=fold)}
         for split in ("train", "test")]
        for fold in range(1, 6)
    ]  # fmt: skip
    assert all(len(train) == 8 and len(test) == 2 for train, test in folds)
    assert not any(train & test for train, test in folds)
    tested = Counter(name for _, test in folds for name in test)
    assert set(tested.values()) == {1}
    assert len(tested) == 10
    with pytest.raises(DataError, match="no fold 6"):
        open_split(everything, "test", part="ucf-cc-50", fold=6)


@pytest.mark.parametrize(
    ("write", "original", "copy"),
    [
        (made_sets.shanghaitech, "test_data/images/IMG_2.jpg", "train_data/images/IMG_1.jpg"),
        (made_sets.ucf_qnrf, "Test/img_0001.jpg", "Train/img_0001.jpg"),
    ],
)
def test_copies_of_test_photographs_are_not_trained_on(tmp_path, write, original, copy):
    root = write(tmp_path / "part_A")
    assert len(open_split(root, "train")) == 2
    shutil.copy(root / original, root / copy)
    (left,) = open_split(root, "train")
    assert left.annotated == 2
    assert len(open_split(root, "test")) == 2


@pytest.mark.parametrize(
    ("inside", "held_out"),
    [
        ("ShanghaiTech/part_A_final/train_data", "shanghaitech-a"),
        ("ShanghaiTech/part_B_final/train_data/images", "shanghaitech-b"),
        ("UCF-QNRF_ECCV18/Train", "ucf-qnrf"),
        ("WorldExpo10/train_frame", "worldexpo10"),
        ("WorldExpo10/train_label/100100", "worldexpo10"),
        ("mall_dataset/frames", "mall"),
        ("ShanghaiTech/part_A_final/test_data", None),
        ("UCF-QNRF_ECCV18/Test", None),
        ("WorldExpo10/test_frame/104207", None),
        ("UCF_CC_50", None),
        ("", None),
    ],
)
def test_what_a_part_of_a_set_must_not_be_trained_with(everything, inside, held_out):
    found = held_out_beside(everything / inside)
    expected = open_split(everything, "test", part=held_out) if held_out else []
    assert [sample.image for sample in found] == [sample.image for sample in expected]


def test_training_on_all_frames_of_the_mall_leaves_out_those_that_test(everything):
    frames = everything / "mall_dataset" / "frames"
    learn = without_copies(open_samples(frames), held_out_beside(frames))
    assert [sample.image.name for sample in learn] == ["seq_000001.jpg", "seq_000800.jpg"]


def test_what_is_not_there_or_not_clear_is_said(everything, tmp_path):
    with pytest.raises(DataError, match="holds several data sets: shanghaitech-a") as caught:
        open_split(everything, "train")
    choices = caught.value.fix.removeprefix("name the folder of one: ").split(", ")
    assert all(open_split(Path(choice), "train") for choice in choices)

    with pytest.raises(DataError, match=r"holds no mall; what was found there: ucf-cc-50"):
        open_split(everything / "UCF_CC_50", "train", part="mall")
    with pytest.raises(DataError, match="holds no published data set"):
        open_split(tmp_path, "train")
    with pytest.raises(DataError, match="no set is called 'trancos'"):
        open_split(everything, "train", part="trancos")
    with pytest.raises(DataError, match="is no folder"):
        known_sets(tmp_path / "nothing")


def test_half_of_a_set_is_not_taken_for_it(tmp_path):
    root = made_sets.shanghaitech(tmp_path / "part_B")
    made_sets.ucf_qnrf(tmp_path / "qnrf")
    assert len(known_sets(tmp_path)) == 2
    shutil.rmtree(root / "test_data")
    shutil.rmtree(tmp_path / "qnrf" / "Train")
    assert known_sets(tmp_path) == []


@pytest.mark.data
def test_published_splits_without_the_leak(data_root):
    found = {each.name for each in known_sets(data_root)}
    assert {"shanghaitech-a", "shanghaitech-b", "ucf-cc-50"} <= found
    sizes = {
        (part, split): len(open_split(data_root, split, part=part))
        for part in ("shanghaitech-a", "shanghaitech-b", "ucf-cc-50")
        for split in ("train", "test")
    }
    assert sizes == {
        ("shanghaitech-a", "train"): 299,
        ("shanghaitech-a", "test"): 182,
        ("shanghaitech-b", "train"): 400,
        ("shanghaitech-b", "test"): 316,
        ("ucf-cc-50", "train"): 40,
        ("ucf-cc-50", "test"): 10,
    }
    assert KnownSet(name="ucf-cc-50", root=data_root / "UCF_CC_50") in known_sets(data_root)
