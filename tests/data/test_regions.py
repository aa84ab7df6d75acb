from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from crowdrt.contracts import Sample
from crowdrt.data.heads.regions import cell_shares, polygon_region
from crowdrt.errors import DataError

HEIGHT, WIDTH = 40, 56
SOURCE = Path("roi.mat")
BETWEEN_PIXELS = (0.3701927, 0.4113371)  # no pixel's centre lies on an edge of such corners
corner = st.tuples(st.integers(-20, 80), st.integers(-20, 80))


@settings(max_examples=150, deadline=None)
@given(st.lists(corner, min_size=3, max_size=8))
def test_a_polygon_is_filled_as_another_library_fills_it(corners):
    vertices = np.array(corners) + BETWEEN_PIXELS
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    outline = Outline([*vertices, vertices[0]])
    expected = outline.contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(HEIGHT, WIDTH)
    if expected.any():
        found = polygon_region(vertices, (HEIGHT, WIDTH), source=SOURCE)
        np.testing.assert_array_equal(found, expected)
    else:
        with pytest.raises(DataError, match=r"roi\.mat: no pixel"):
            polygon_region(vertices, (HEIGHT, WIDTH), source=SOURCE)


def test_a_rectangle_takes_its_pixels():
    square = np.array([(9.5, 4.5), (19.5, 4.5), (19.5, 24.5), (9.5, 24.5)])
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:25, 10:20] = True
    for corners in (square, square[::-1], np.roll(square, 1, axis=0)):
        found = polygon_region(corners, (HEIGHT, WIDTH), source=SOURCE)
        np.testing.assert_array_equal(found, expected)


def test_pixels_on_an_edge_are_in():
    triangle = np.array([(4, 3), (12, 3), (4, 11)])
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    expected = (x >= 4) & (y >= 3) & (x + y <= 15)
    for corners in (triangle, triangle[::-1]):
        found = polygon_region(corners, (HEIGHT, WIDTH), source=SOURCE)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_corners", [0, 1, 2])
def test_two_corners_enclose_nothing(num_corners):
    with pytest.raises(DataError, match=f"{num_corners} corners, which enclose nothing"):
        polygon_region(np.ones((num_corners, 2)), (HEIGHT, WIDTH), source=SOURCE)


@pytest.fixture
def region():
    return np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4


@pytest.mark.parametrize(
    ("cells", "span", "margin"),
    [
        ((5, 7), (40, 56), 0.0),
        ((40, 56), (40, 56), 0.0),
        ((6, 8), (48, 64), 0.0),  # the photograph was padded
        ((47, 63), (47, 63), 3.5),  # SANet's map reaches over every border
        ((6, 7), (40, 56), 0.0),  # the photograph was stretched
        ((9, 9), (72, 72), 0.0),  # whole cells lie beyond the photograph
    ],
)
def test_a_region_of_everything_leaves_every_cell_and_none_leaves_nothing(cells, span, margin):
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    shares = cell_shares(everywhere, cells, span=span, margin_px=margin)
    np.testing.assert_allclose(shares, np.ones(cells), rtol=1e-6)
    assert not cell_shares(~everywhere, cells, span=span, margin_px=margin).any()


def test_shares_are_those_of_the_area(region):
    shares = cell_shares(region, (5, 7), span=(40, 56))
    np.testing.assert_allclose(shares, region.reshape(5, 8, 7, 8).mean(axis=(1, 3)), rtol=1e-6)
    assert 0.2 < shares.min() < shares.max() < 0.6
    np.testing.assert_array_equal(cell_shares(region, (40, 56), span=(40, 56)), region)


@pytest.mark.parametrize(("cells", "margin"), [((5, 7), 0.0), ((47, 63), 3.5), ((7, 9), 0.0)])
def test_a_region_and_the_rest_share_every_cell(region, cells, margin):
    span = (40 + 2 * round(margin), 56 + 2 * round(margin))
    both = [cell_shares(each, cells, span=span, margin_px=margin) for each in (region, ~region)]
    assert all(0 < part.mean() < 1 for part in both)
    np.testing.assert_allclose(both[0] + both[1], np.ones(cells), rtol=1e-6)


def test_cells_cut_by_pixels_take_parts_of_them():
    region = np.zeros((4, 4), bool)
    region[:, :1] = True
    shares = cell_shares(region, (4, 3), span=(4, 4))  # a cell is 4/3 px wide
    np.testing.assert_allclose(shares, [[0.75, 0, 0]] * 4, rtol=1e-6)


def test_a_margin_takes_the_nearest_pixels():
    region = np.zeros((4, 4), bool)
    region[:, :1] = True
    shares = cell_shares(region, (4, 7), span=(4, 7), margin_px=1.5)
    np.testing.assert_allclose(shares[0], [1, 1, 0.5, 0, 0, 0, 0], rtol=1e-6)


def test_heads_count_where_their_pixel_is_in_the_region():
    region = np.zeros((4, 6), bool)
    region[1, 2] = True
    heads = np.array(
        [[2, 1], [2.4, 0.6], [1.6, 1.4], [2.6, 1], [2, 1.6], [-1, 1], [2, -3], [99, 1]]
    )
    sample = Sample(image=Path("a.jpg"), heads=heads.astype(np.float32), roi=region)
    assert sample.annotated == 3
    np.testing.assert_array_equal(sample.counted_heads, sample.heads[:3])
    assert len(sample.heads) == 8
    nobody = Sample(image=Path("a.jpg"), heads=np.zeros((0, 2), np.float32), roi=region)
    assert nobody.annotated == 0
    assert Sample(image=Path("a.jpg"), heads=None, roi=region).annotated is None
