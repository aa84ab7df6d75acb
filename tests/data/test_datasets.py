import subprocess
import sys
from pathlib import Path

import pytest

from crowdrt.data.heads.datasets import open_samples
from crowdrt.data.heads.folder import heads_path
from crowdrt.errors import DataError


@pytest.fixture
def shanghai(tmp_path, shanghai_split):
    """Part A with both splits, Part B with one."""
    root = tmp_path / "ShanghaiTech"
    for name in ("part_A/train_data", "part_A/test_data", "part_B/test_data"):
        shanghai_split(root / name)
    return root


@pytest.mark.parametrize("inner", ["", "images"])
def test_a_split_is_recognised_with_and_without_its_images_folder(shanghai, inner):
    path = shanghai / "part_A" / "train_data" / inner
    samples = open_samples(path)
    assert [sample.annotated for sample in samples] == [1, 2, 10]
    assert all(sample.image.is_relative_to(path) for sample in samples)


@pytest.mark.parametrize("where", ["", "images"])
def test_the_working_folder_is_recognised(shanghai, monkeypatch, where):
    monkeypatch.chdir(shanghai / "part_A" / "train_data" / where)
    assert [sample.annotated for sample in open_samples(Path())] == [1, 2, 10]


def test_ucf_is_recognised(ucf_folder):
    assert [sample.annotated for sample in open_samples(ucf_folder)] == [1, 2, 10]


def test_an_image_finds_its_annotation_in_every_layout(shanghai, ucf_folder, photo, monkeypatch):
    images = shanghai / "part_A" / "train_data" / "images"
    plain = photo(shanghai / "a.jpg")
    assert open_samples(plain)[0].heads is None
    heads_path(plain).write_text('{"heads": [[1, 2], [3, 4], [5, 6]]}')

    paths = [images / "IMG_10.jpg", ucf_folder / "2.jpg", plain]
    assert [open_samples(path)[0].annotated for path in paths] == [10, 2, 3]
    monkeypatch.chdir(images)
    (sample,) = open_samples(Path("IMG_2.jpg"))
    assert (sample.image, sample.annotated) == (Path("IMG_2.jpg"), 2)


def test_a_plain_folder_need_not_be_annotated(tmp_path, photo):
    photo(tmp_path / "images" / "a.jpg")
    (sample,) = open_samples(tmp_path / "images")
    assert sample.heads is None


def test_several_sets_are_not_guessed_at(shanghai, ucf_folder):
    def choices(path):
        with pytest.raises(DataError, match="folders that do") as caught:
            open_samples(path)
        return caught.value.fix.removeprefix("choose one: ").split(", ")

    part_a = [str(shanghai / "part_A" / f"{split}_data") for split in ("test", "train")]
    part_b = [str(shanghai / "part_B" / "test_data")]
    assert choices(shanghai / "part_A") == part_a
    assert choices(shanghai) == part_a + part_b
    assert choices(shanghai.parent) == [*part_a, *part_b, str(ucf_folder)]
    for choice in choices(shanghai.parent):
        assert len(open_samples(Path(choice))) == 3


def test_missing_and_empty_paths(tmp_path):
    with pytest.raises(DataError, match=r"none does not exist\n  fix: "):
        open_samples(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        open_samples(tmp_path)
    (tmp_path / "train_data" / "images").mkdir(parents=True)
    (tmp_path / "train_data" / "ground-truth").mkdir()
    with pytest.raises(DataError, match="images holds no images"):
        open_samples(tmp_path / "train_data")


def test_a_name_that_the_system_refuses(tmp_path):
    with pytest.raises(DataError, match="too long"):
        open_samples(tmp_path / ("a" * 300))


def test_reading_data_needs_neither_torch_nor_scipy_at_import():
    modules = ("heads.datasets", "heads.density", "preprocess")
    imports = ", ".join(f"crowdrt.data.{module}" for module in modules)
    heavy = "print([m for m in ('torch', 'scipy', 'onnxruntime') if m in sys.modules])"
    code = f"import sys, {imports}; {heavy}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
