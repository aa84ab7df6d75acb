import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdrt.data.heads import targets
from crowdrt.data.heads.density import adaptive_sigma, density_map
from crowdrt.data.heads.targets import density_target, nearest_sigma, sigma_by_rule
from crowdrt.errors import CrowdRTError, RecipeError

SIZE = (44, 61)  # no multiple of a stride
HEADS = np.random.default_rng(0).uniform((0, 0), (61, 44), (12, 2)).astype(np.float32)
RULES = ["adaptive", "fixed:15", "fixed:2.5", "nearest:30", "nearest:4"]


@pytest.fixture
def drawings(monkeypatch):
    """How often a map was drawn."""
    made = []
    draw = targets.draw_target
    monkeypatch.setattr(targets, "draw_target", lambda *args: made.append(1) or draw(*args))
    return made


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_a_map_is_of_the_padded_photograph_and_adds_up_to_its_heads(rule, stride):
    drawn = density_target(HEADS, SIZE, rule=rule, stride=stride)
    assert drawn.shape == (-(-44 // stride), -(-61 // stride))
    assert drawn.sum() == pytest.approx(len(HEADS), rel=1e-5)
    assert drawn.std() > 1e-4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-90, 90, width=32), st.floats(-90, 90, width=32)), max_size=9),
    st.sampled_from(RULES),
)
def test_heads_outside_the_photograph_are_left_out(points, rule):
    """Those in the padding too: nobody is seen there."""
    heads = np.array(points, np.float32).reshape(-1, 2)
    x, y = heads.T
    inside = ((x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])).sum()
    drawn = density_target(heads, SIZE, rule=rule, stride=8)
    assert drawn.sum() == pytest.approx(inside, abs=1e-4)


def test_the_rules_are_those_of_the_papers():
    line = np.array([[0, 0], [3, 0], [7, 0], [57, 0]], np.float32)
    np.testing.assert_allclose(sigma_by_rule(line, "nearest:30"), [3, 3, 4, 30])
    np.testing.assert_allclose(sigma_by_rule(line, "fixed:15"), [15] * 4)
    np.testing.assert_allclose(sigma_by_rule(line, "adaptive"), [6.7, 6.1, 6.1, 16.1])
    np.testing.assert_array_equal(sigma_by_rule(HEADS, "adaptive"), adaptive_sigma(HEADS))


def test_the_nearest_of_few_heads():
    assert nearest_sigma(HEADS[:0], 30).shape == (0,)
    np.testing.assert_array_equal(nearest_sigma(HEADS[:1], 30), [30])
    np.testing.assert_array_equal(nearest_sigma(HEADS[[0, 0]], 30), [1, 1])  # annotated twice


def test_a_map_is_that_of_its_rule():
    expected = density_map(HEADS, height=48, width=64, sigma=15, stride=8)
    np.testing.assert_array_equal(density_target(HEADS, SIZE, rule="fixed:15", stride=8), expected)
    others = [density_target(HEADS, SIZE, rule=rule, stride=8) for rule in RULES]
    distinct = {other.tobytes() for other in others}
    assert len(distinct) == len(RULES)


@pytest.mark.parametrize(
    "rule", ["", "adaptive:3", "fixed", "fixed:", "fixed:0", "fixed:-3", "nearest:nan", "fixed:1e3"]
)
def test_what_is_no_rule_is_refused(tmp_path, rule):
    with pytest.raises(RecipeError, match="no sigma rule") as caught:
        density_target(HEADS, SIZE, rule=rule, stride=8, folder=tmp_path)
    assert "fixed:15" in caught.value.fix


def test_a_region_cuts_the_map_and_heads_beside_it_reach_in():
    left = np.zeros(SIZE, bool)
    left[:, :24] = True
    whole = density_target(HEADS, SIZE, rule="fixed:5", stride=8)
    cut = density_target(HEADS, SIZE, rule="fixed:5", stride=8, roi=left)
    np.testing.assert_allclose(cut[:, :3], whole[:, :3], rtol=1e-6)
    assert not cut[:, 3:].any()
    rest = density_target(HEADS, SIZE, rule="fixed:5", stride=8, roi=~left)
    np.testing.assert_allclose(cut + rest, whole, rtol=1e-5, atol=1e-9)


def test_a_map_is_drawn_once(tmp_path, drawings):
    first = density_target(HEADS, SIZE, rule="adaptive", stride=8, folder=tmp_path)
    again = density_target(HEADS.copy(), SIZE, rule="adaptive", stride=8, folder=tmp_path)
    assert len(drawings) == 1
    np.testing.assert_array_equal(first, again)
    again += 1  # the caller's own
    kept = density_target(HEADS, SIZE, rule="adaptive", stride=8, folder=tmp_path)
    np.testing.assert_array_equal(first, kept)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_whatever_decides_a_map_gives_another_file(tmp_path, drawings, monkeypatch):
    moved = HEADS + np.float32([0.25, 0])
    region = np.ones(SIZE, bool)
    hole = region.copy()
    hole[3, 3] = False
    ways = [
        {},
        {"heads": moved},
        {"heads": HEADS[:-1]},
        {"size": (44, 60)},
        {"rule": "fixed:5"},
        {"stride": 4},
        {"roi": region},
        {"roi": hole},
    ]
    base = {"heads": HEADS, "size": SIZE, "rule": "adaptive", "stride": 8, "folder": tmp_path}
    for way in ways:
        density_target(**base | way)
    assert len(drawings) == len(ways)
    monkeypatch.setattr(targets, "code_hash", lambda: "another")
    density_target(**base)
    assert len(drawings) == len(ways) + 1
    assert len(list(tmp_path.rglob("*.density"))) == len(ways) + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
    ids=["empty", "cut", "longer", "zeros", "a wrong value", "a wrong digest"],
)
def test_a_damaged_file_is_drawn_again(tmp_path, drawings, damage):
    first = density_target(HEADS, SIZE, rule="adaptive", stride=8, folder=tmp_path)
    (path,) = tmp_path.rglob("*.density")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = density_target(HEADS, SIZE, rule="adaptive", stride=8, folder=tmp_path)
    np.testing.assert_array_equal(first, again)
    assert len(drawings) == 2
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CrowdRTError, match="could not be written"):
        density_target(HEADS, SIZE, rule="adaptive", stride=8, folder=tmp_path / "file")


def draw_all(folder, seed):
    """What one process does: every map, in its own order."""
    order = np.random.default_rng(seed).permutation(24)
    sums = {
        int(k): float(
            density_target(HEADS[: k // 2 + 1], SIZE, rule="fixed:5", stride=8, folder=folder).sum()
        )
        for k in order
    }
    return [sums[k] for k in range(24)]


def test_processes_share_a_folder(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(draw_all, [(tmp_path, seed) for seed in range(4)])
    assert all(sums == found[0] for sums in found)
    assert found[0] == pytest.approx([k // 2 + 1 for k in range(24)], rel=1e-5)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 12
    assert all(path.suffix == ".density" for path in files)  # and no temporary one
