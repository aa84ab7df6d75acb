"""WorldExpo'10, Mall and UCF-QNRF, from small files in their layouts."""

import itertools
import os
import shutil
import struct
import zlib
from pathlib import Path

import made_sets
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crowdrt.data.heads.datasets import open_samples
from crowdrt.data.heads.mall import mall
from crowdrt.data.heads.ucf_qnrf import ucf_qnrf
from crowdrt.data.heads.worldexpo import worldexpo
from crowdrt.errors import DataError


@pytest.fixture
def expo(tmp_path):
    return made_sets.worldexpo(tmp_path / "WorldExpo10")


@pytest.fixture
def shop(tmp_path):
    return made_sets.mall(tmp_path / "mall_dataset")


@pytest.mark.parametrize("flat", [False, True])
def test_frames_of_worldexpo_are_read_from_zero_with_their_region(tmp_path, flat):
    root = made_sets.worldexpo(tmp_path, flat=flat)
    for split, scenes in (("train", ("100100", "200247")), ("test", ("104207", "200608"))):
        samples = worldexpo(root, split)
        names = [f"{scene}_1-01-S20100821.split.{n}.jpg" for scene in scenes for n in (1, 2, 3)]
        assert [sample.image.name for sample in samples] == names
        assert [sample.annotated for sample in samples] == [1, 2, 3, 1, 2, 3]
        inside = np.array(made_sets.INSIDE, np.float32) - 1
        np.testing.assert_array_equal(samples[2].counted_heads, inside)
        assert len(samples[2].heads) == 6  # those outside are kept, and do not count
        assert samples[0].roi is samples[2].roi
        assert samples[0].roi is not samples[3].roi
        region = np.zeros(made_sets.SIZE, bool)
        region[4:40, 8:56] = True
        np.testing.assert_array_equal(samples[0].roi, region)


def test_one_scene_can_be_chosen(expo):
    samples = worldexpo(expo, "test", "200608")
    assert [sample.image.parent.name for sample in samples] == ["200608"] * 3
    with pytest.raises(DataError, match="no frames of scene 500717"):
        worldexpo(expo, "test", "500717")


@pytest.mark.parametrize(
    ("path", "num_samples"),
    [
        ("test_frame", 6),
        ("train_frame", 6),
        ("test_frame/104207", 3),
        ("test_label/104207", 3),
        ("train_label/200247", 3),
        ("test_frame/104207/104207_1-01-S20100821.split.3.jpg", 1),
        ("train_frame/100100_1-01-S20100821.split.3.jpg", 1),
    ],
)
def test_every_place_of_worldexpo_is_recognised(expo, monkeypatch, path, num_samples):
    samples = open_samples(expo / path)
    assert len(samples) == num_samples
    assert all(sample.roi is not None for sample in samples)
    assert samples[-1].annotated == 3
    monkeypatch.chdir((expo / path).parent)
    assert [s.annotated for s in open_samples(Path(Path(path).name))][-1] == 3


def test_the_root_of_worldexpo_is_not_guessed_at(expo):
    with pytest.raises(DataError, match="folders that do") as caught:
        open_samples(expo)
    assert caught.value.fix == f"choose one: {expo / 'test_frame'}, {expo / 'train_frame'}"


def refusal(reader, *args):
    """Return problem and fix of what the reader says."""
    with pytest.raises(DataError) as caught:
        reader(*args)
    return caught.value.problem, caught.value.fix


def test_a_scene_without_its_region_or_a_label_is_refused(expo):
    scene = expo / "test_label" / "104207"
    label = scene / "104207_1-01-S20100821.split.2.mat"
    content = label.read_bytes()
    label.unlink()
    assert f"{label} does not exist" in refusal(worldexpo, expo, "test")[0]
    label.write_bytes(content)
    (scene / "roi.mat").unlink()
    assert "nobody knows where on" in refusal(worldexpo, expo, "test")[0]


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([1.0, 2.0], [1.0, 2.0], "2 corners"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "3 x and 2 y"),
        ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0], "no polygon"),
        ("abc", "abc", "no polygon"),
        ([900.0, 950.0, 900.0], [900.0, 900.0, 950.0], "no pixel of the photograph"),
        ([], [], "0 corners"),
        ([1e300, -1e300, 1e300], [1e300, 5.0, -1e300], "no polygon"),
    ],
)
def test_a_region_that_is_none_is_refused(expo, x, y, said):
    path = expo / "test_label" / "104207" / "roi.mat"
    scipy.io.savemat(path, {"maskVerticesXCoordinates": x, "maskVerticesYCoordinates": y})
    problem, _ = refusal(worldexpo, expo, "test")
    assert said in problem
    assert str(path) in problem


def test_hdf5_labels_are_refused_with_what_converts_the_folder(expo):
    path = expo / "train_label" / "100100" / "100100_1-01-S20100821.split.2.mat"
    path.write_bytes(
        b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM" + bytes(9)
    )
    problem, fix = refusal(worldexpo, expo, "train")
    assert "is an HDF5 file" in problem
    assert str(path.parent) in fix
    assert "'-v7')" in fix


def test_frames_of_mall_are_split_at_800(shop):
    train, test = mall(shop, "train"), mall(shop, "test")
    assert [sample.image.name for sample in train] == ["seq_000001.jpg", "seq_000800.jpg"]
    assert [sample.image.name for sample in test] == ["seq_000801.jpg", "seq_000802.jpg"]
    assert [sample.annotated for sample in (*train, *test)] == [1, 2, 3, 1]
    assert [len(sample.heads) for sample in (*train, *test)] == [4, 5, 6, 4]
    np.testing.assert_array_equal(test[0].counted_heads, np.array(made_sets.INSIDE) - 1)
    assert train[0].roi is test[1].roi


def test_mall_is_recognised_and_a_changed_file_is_read_again(shop):
    assert [s.annotated for s in open_samples(shop / "frames")] == [1, 2, 3, 1]
    (sample,) = open_samples(shop / "frames" / "seq_000801.jpg")
    assert sample.annotated == 3
    mask = np.zeros(made_sets.SIZE)
    mask[:8] = 1
    made_sets.save(shop / "perspective_roi.mat", {"roi": {"mask": mask}})
    os.utime(shop / "perspective_roi.mat", ns=(1, 1))
    assert open_samples(shop / "frames" / "seq_000801.jpg")[0].annotated == 2


def test_without_a_region_everybody_at_the_mall_counts(shop):
    (shop / "perspective_roi.mat").unlink()
    samples = mall(shop, "test")
    assert [sample.annotated for sample in samples] == [6, 4]
    assert samples[0].roi is None


def test_a_frame_that_the_mall_does_not_know_is_refused(shop):
    made_sets.save_photo(shop / "frames" / "seq_000803.jpg", 3)
    problem, _ = refusal(mall, shop, "test")
    assert "no annotation of seq_000803.jpg: it knows 802 frames" in problem
    (shop / "frames" / "seq_000803.jpg").rename(shop / "frames" / "corridor.jpg")
    assert "corridor.jpg is no frame of Mall" in refusal(mall, shop, "test")[0]


@pytest.mark.parametrize(
    ("file", "variables", "said"),
    [
        ("mall_gt.mat", {"count": np.ones(3)}, "no variable 'frame'"),
        ("mall_gt.mat", {"frame": np.ones(3)}, "no cell of frames"),
        ("mall_gt.mat", {"frame": {"loc": np.ones((3, 2))}}, "no cell of frames"),
        ("perspective_roi.mat", {"pMapN": np.ones(3)}, "no variable 'roi'"),
        ("perspective_roi.mat", {"roi": np.ones((48, 64))}, "holds no mask"),
        ("perspective_roi.mat", {"roi": {"x": np.ones((48, 64))}}, "holds no mask"),
        ("perspective_roi.mat", {"roi": {"mask": "mask"}}, "holds no mask"),
        ("perspective_roi.mat", {"roi": {"mask": np.zeros((48, 64))}}, "no pixel"),
    ],
)
def test_files_of_mall_that_hold_something_else_are_refused(shop, file, variables, said):
    scipy.io.savemat(shop / file, variables)
    problem, fix = refusal(mall, shop, "test")
    assert said in problem
    assert str(shop / file) in problem
    assert "published data set" in fix


@pytest.mark.parametrize("loc", [{"x": np.ones(2)}, {"loc": np.ones((2, 3))}, {"loc": "text"}])
def test_a_frame_of_mall_without_points_is_refused(shop, loc):
    frames = np.empty((1, 802), object)
    frames[:] = [{"loc": np.ones((1, 2))}]
    frames[0, 800] = loc
    made_sets.save(shop / "mall_gt.mat", {"frame": frames})
    assert "'frame{801}.loc' does not hold x, y points" in refusal(mall, shop, "test")[0]


def test_ucf_qnrf_is_read_from_zero(tmp_path):
    root = made_sets.ucf_qnrf(tmp_path)
    for split, folder in (("train", "Train"), ("test", "Test")):
        samples = ucf_qnrf(root, split)
        assert [sample.image.name for sample in samples] == ["img_0001.jpg", "img_0002.jpg"]
        np.testing.assert_array_equal(samples[1].heads, [[0, 1], [2, 3]])
        assert [each.annotated for each in open_samples(root / folder)] == [1, 2]
    shutil.rmtree(root / "Test")
    assert "holds no Test/" in refusal(ucf_qnrf, root, "test")[0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Files that are damaged again and again."""
    root = tmp_path_factory.mktemp("kept")
    made_sets.worldexpo(root / "expo")
    frames = np.empty((1, 3), object)
    frames[:] = [{"loc": np.ones((2, 2))}]
    made_sets.mall(root / "mall", numbers=(1, 2))
    scipy.io.savemat(root / "mall" / "mall_gt.mat", {"frame": frames})
    path = root / "mall" / "perspective_roi.mat"
    scipy.io.savemat(path, {"roi": {"mask": np.ones((6, 8), bool)}})
    return root


DAMAGED = {
    "mall_gt.mat": ("mall/mall_gt.mat", lambda root: mall(root / "mall", "train")),
    "perspective_roi.mat": ("mall/perspective_roi.mat", lambda root: mall(root / "mall", "train")),
    "roi.mat": (
        "expo/test_label/104207/roi.mat",
        lambda root: worldexpo(root / "expo", "test", "104207"),
    ),
    "a label": (
        "expo/test_label/104207/104207_1-01-S20100821.split.2.mat",
        lambda root: worldexpo(root / "expo", "test", "104207"),
    ),
}


SERIAL = itertools.count(1)


def plain(content: bytes) -> bytes:
    """Return a .mat file without its compression."""
    found, start = content[:128], 128
    while start < len(content):
        kind, size = struct.unpack_from("<II", content, start)
        body = content[start + 8 : start + 8 + size]
        found += zlib.decompress(body) if kind == 15 else content[start : start + 8] + body
        start += 8 + size
    return found


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("compressed", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**12), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 300),
)
def test_damaged_files_give_samples_or_an_error_that_names_them(
    kept, what, compressed, changes, cut
):
    """Wrong bytes, wrong classes, huge sizes and ends that are missing."""
    name, read = DAMAGED[what]
    path = kept / name
    whole = path.read_bytes()
    content = bytearray(plain(whole))
    for where, value in changes:
        content[128 + where % (len(content) - 128)] = value
    content = content[: len(content) - cut]
    if compressed:
        body = zlib.compress(bytes(content[128:]))
        content = content[:128] + struct.pack("<II", 15, len(body)) + body
    path.write_bytes(content)
    os.utime(path, ns=(0, next(SERIAL)))
    samples, problem = [], str(path)
    try:
        samples = read(kept)
    except DataError as error:
        problem = error.problem
    finally:
        path.write_bytes(whole)
    assert str(path) in problem
    assert all(sample.heads.shape[1:] == (2,) for sample in samples)
