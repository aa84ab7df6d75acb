import shutil
import struct
import time
import zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crowdrt.data.heads.datasets import without_copies
from crowdrt.data.heads.shanghaitech import read_split, shanghaitech
from crowdrt.data.heads.ucf_cc_50 import ucf_cc_50
from crowdrt.data.images import read_image
from crowdrt.errors import DataError


@pytest.mark.parametrize("inner", ["part_B", "ShanghaiTech/part_B", "part_B_final"])
@pytest.mark.parametrize("truth", ["ground-truth", "ground_truth"])
def test_shanghaitech_is_read_in_natural_order_from_zero(tmp_path, shanghai_split, inner, truth):
    shanghai_split(tmp_path / inner / "test_data", truth=truth)
    samples = shanghaitech(tmp_path, "B", "test")
    assert [sample.image.name for sample in samples] == ["IMG_1.jpg", "IMG_2.jpg", "IMG_10.jpg"]
    assert [sample.annotated for sample in samples] == [1, 2, 10]
    np.testing.assert_array_equal(samples[1].heads, [[0, 1], [2, 3]])
    assert samples[1].heads.dtype == np.float32


def test_ucf_is_read_in_natural_order_from_zero(ucf_folder):
    for root in (ucf_folder, ucf_folder.parent):
        samples = ucf_cc_50(root)
        assert [sample.image.name for sample in samples] == ["1.jpg", "2.jpg", "10.jpg"]
        np.testing.assert_array_equal(samples[1].heads, [[0, 1], [2, 3]])


def test_copies_of_test_photographs_are_dropped(tmp_path, shanghai_split):
    train = read_split(shanghai_split(tmp_path / "train_data"))
    test = read_split(shanghai_split(tmp_path / "test_data", numbers=(7, 8)))
    assert without_copies(train, test) == train
    shutil.copy(train[1].image, test[0].image)
    assert without_copies(train, test) == [train[0], train[2]]


def test_a_missing_part_or_split_names_the_layout(tmp_path, shanghai_split):
    with pytest.raises(DataError, match=r"holds no ShanghaiTech part A(.|\n)*part_A/test_data"):
        shanghaitech(tmp_path, "A", "test")
    shanghai_split(tmp_path / "part_A" / "train_data")
    with pytest.raises(DataError, match=r"part_A/test_data is no split(.|\n)*IMG_1.jpg"):
        shanghaitech(tmp_path, "A", "test")


@pytest.fixture
def split(tmp_path, shanghai_split):
    return shanghai_split(tmp_path / "train_data")


def refusal(split):
    """Return the error's problem; every one names the annotation of IMG_2 and a fix."""
    with pytest.raises(DataError) as caught:
        read_split(split)
    assert str(split / "ground-truth" / "GT_IMG_2.mat") in caught.value.problem
    assert len(caught.value.fix) > 10
    return caught.value.problem


def test_missing_annotation(split):
    (split / "ground-truth" / "GT_IMG_2.mat").unlink()
    assert "does not exist" in refusal(split)


@pytest.mark.parametrize("content", [b"", b"text, no MATLAB file\n" * 20, b"\0" * 500])
def test_annotation_that_is_no_matlab_file(split, content):
    (split / "ground-truth" / "GT_IMG_2.mat").write_bytes(content)
    assert "no MATLAB file" in refusal(split)


def test_truncated_annotation(split):
    path = split / "ground-truth" / "GT_IMG_2.mat"
    path.write_bytes(path.read_bytes()[:200])
    assert "bytes has only" in refusal(split)


def test_compressed_annotation_with_a_wrong_byte(split):
    path = split / "ground-truth" / "GT_IMG_2.mat"
    content = path.read_bytes()
    body = bytearray(zlib.compress(content[128:]))
    body[-1] ^= 1  # of the checksum
    path.write_bytes(content[:128] + struct.pack("<II", 15, len(body)) + body)
    assert "incorrect data check" in refusal(split)


def test_annotation_without_the_variable(split):
    scipy.io.savemat(split / "ground-truth" / "GT_IMG_2.mat", {"annPoints": np.ones((3, 2))})
    assert "no variable 'image_info'" in refusal(split)


@pytest.mark.parametrize(
    "points",
    [np.ones((3, 3)), np.ones((1, 4)), np.array([[1.0, np.nan]]), np.array([[1.0, 1e300]]), "text"],
    ids=["three columns", "a box", "not a number", "overflow", "text"],
)
def test_annotation_that_holds_no_points(split, points):
    cell = np.empty((1, 1), object)
    cell[0, 0] = {"location": points}
    scipy.io.savemat(split / "ground-truth" / "GT_IMG_2.mat", {"image_info": cell})
    assert "does not hold x, y points" in refusal(split)


@pytest.mark.parametrize("value", [np.ones((3, 2)), "text", {"number": 3}])
def test_annotation_of_another_structure(split, value):
    scipy.io.savemat(split / "ground-truth" / "GT_IMG_2.mat", {"image_info": value})
    assert "does not hold x, y points" in refusal(split)


def test_an_image_with_nobody_in_it(split):
    cell = np.empty((1, 1), object)
    cell[0, 0] = {"location": np.zeros((0, 0))}
    scipy.io.savemat(split / "ground-truth" / "GT_IMG_2.mat", {"image_info": cell})
    assert read_split(split)[1].heads.shape == (0, 2)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_number_type_is_read_as_scipy_reads_it(ucf_folder, dtype, compressed):
    path = ucf_folder / "2_ann.mat"
    points = np.array([[1, 200], [30, 4], [5, 60]], dtype)
    others = {"text": "abc", "number": 3, "a": {"b": [1, 2]}}
    scipy.io.savemat(path, {**others, "annPoints": points}, do_compression=compressed)
    expected = scipy.io.loadmat(path)["annPoints"].astype(float) - 1
    np.testing.assert_array_equal(ucf_cc_50(ucf_folder)[1].heads, expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_annotation_that_claims_to_be_absurdly_large(split, compressed):
    """Sizes are not believed: nothing is allocated for what is not there."""
    path = split / "ground-truth" / "GT_IMG_2.mat"
    content = bytearray(path.read_bytes())
    structure = content.index(bytes([5, 0, 0, 0, 8, 0, 0, 0]), 200)  # its dimensions
    content[structure + 11] = 16
    if compressed:
        body = zlib.compress(bytes(content[128:]))
        content = content[:128] + struct.pack("<II", 15, len(body)) + body
    path.write_bytes(content)
    refusal(split)


def test_compressed_bomb(split):
    body = zlib.compress(bytes(1 << 27))
    path = split / "ground-truth" / "GT_IMG_2.mat"
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(body)) + body)
    assert "absurdly large" in refusal(split)


@pytest.mark.parametrize("compressed", [False, True])
def test_more_than_an_annotation_can_be(split, compressed):
    """Each variable is allowed, all of them are not."""
    path = split / "ground-truth" / "GT_IMG_2.mat"
    variables = scipy.io.loadmat(path)
    large = np.zeros(9 << 20, np.uint8)
    for others, is_read in (({"a": large}, True), ({"a": large, "b": large}, False)):
        found = {"image_info": variables["image_info"], **others}
        scipy.io.savemat(path, found, do_compression=compressed)
        if is_read:
            assert read_split(split)[1].annotated == 2
        else:
            refusal(split)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_matrix_of_millions_of_empty_elements_is_refused_at_once(split, kind):
    path = split / "ground-truth" / "GT_IMG_2.mat"
    content = struct.pack("<II", 14, 15 << 20) + struct.pack("<II", kind, 0) * (15 << 17)
    body = zlib.compress(content, 1)
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(body)) + body)
    start = time.perf_counter()
    assert "elements lie one after the other" in refusal(split)
    assert time.perf_counter() - start < 5


def test_matlab_7_3_is_named_in_the_fix(split):
    path = split / "ground-truth" / "GT_IMG_2.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(DataError, match="-v7"):
        read_split(split)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6))
def test_damaged_annotation_gives_points_or_a_data_error(ucf_folder, changes):
    path = ucf_folder / "10_ann.mat"
    scipy.io.savemat(path, {"annPoints": np.ones((10, 2))})
    content = bytearray(path.read_bytes())
    for where, value in changes:
        content[where % len(content)] = value
    path.write_bytes(content)
    problem, shape = None, ()
    try:
        shape = ucf_cc_50(ucf_folder)[-1].heads.shape
    except DataError as error:
        problem = error.problem
    assert shape[1:] == (2,) or str(path) in problem


@pytest.mark.data
@pytest.mark.parametrize(
    ("part", "split", "num_images", "num_heads"),
    [
        ("A", "train", 300, 162_707),
        ("A", "test", 182, 78_970),
        ("B", "train", 400, 49_280),
        ("B", "test", 316, 39_208),
    ],
)
def test_published_totals_of_shanghaitech(data_root, part, split, num_images, num_heads):
    samples = shanghaitech(data_root, part, split)
    assert len(samples) == num_images
    assert sum(sample.annotated for sample in samples) == num_heads


@pytest.mark.data
def test_published_totals_of_ucf(data_root):
    samples = ucf_cc_50(data_root)
    assert len(samples) == 50
    assert sum(sample.annotated for sample in samples) == 63_974


@pytest.mark.data
def test_published_points_are_what_scipy_reads(data_root):
    for sample in shanghaitech(data_root, "A", "train")[::10]:
        path = sample.image.parents[1] / "ground-truth" / f"GT_{sample.image.stem}.mat"
        info = scipy.io.loadmat(path)["image_info"][0, 0]
        expected = (info["location"][0, 0] - 1).astype(np.float32)
        np.testing.assert_array_equal(sample.heads, expected)
    for sample in ucf_cc_50(data_root)[::10]:
        path = sample.image.with_name(f"{sample.image.stem}_ann.mat")
        expected = (scipy.io.loadmat(path)["annPoints"] - 1).astype(np.float32)
        np.testing.assert_array_equal(sample.heads, expected)


@pytest.mark.data
def test_the_leak_of_part_a_is_found(data_root):
    train, test = (shanghaitech(data_root, "A", split) for split in ("train", "test"))
    kept = without_copies(train, test)
    dropped = {sample.image for sample in train} - {sample.image for sample in kept}
    assert [path.name for path in dropped] == ["IMG_121.jpg"]


@pytest.mark.data
def test_heads_lie_on_their_photographs(data_root):
    """Few of the published points lie outside, so x and y are in the right order and place."""
    outside = total = 0
    for sample in shanghaitech(data_root, "A", "test")[::6]:
        _, height, width = read_image(sample.image, "grey").shape
        x, y = sample.heads.T
        outside += int(((x < 0) | (x >= width) | (y < 0) | (y >= height)).sum())
        total += len(x)
    assert outside < 0.01 * total
