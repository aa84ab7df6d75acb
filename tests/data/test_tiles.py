"""Tiles hold the whole image, once, whatever its size and shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crowdrt.contracts import IMAGENET, Preprocessing
from crowdrt.data.tiles import MODES, check_mode, merge_maps, tiles_of, tiling_of
from crowdrt.errors import DataError

TILE = (384, 512)
SMALL = (24, 32)  # the same shape; quick
GREY = Preprocessing(channels="grey", mean=(127.5,), std=(128.0,), stride=8)


def noise(height, width, channels=3):
    return np.random.default_rng(1).integers(0, 256, (channels, height, width), dtype=np.uint8)


def joined(tiles, tiling):
    """The tiles laid side by side again: (C, rows * h, columns * w)."""
    _, c, h, w = tiles.shape
    grid = tiles.reshape(tiling.rows, tiling.columns, c, h, w).transpose(2, 0, 3, 1, 4)
    return grid.reshape(c, tiling.rows * h, tiling.columns * w)


def all_tiles(image, tiling, preprocessing=IMAGENET, batch=3):
    return np.concatenate(list(tiles_of(image, tiling, preprocessing, batch=batch)))


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((384, 512), 1, 1),
        ((768, 1024), 2, 2),  # ShanghaiTech B: nothing is stretched
        ((720, 1280), 2, 3),  # 2.5 columns: halves go up
        ((577, 865), 2, 2),
        ((32, 32), 1, 1),
        ((33, 900), 1, 2),  # never without a row
        ((900, 33), 36, 1),  # the shape is kept: 33 px become 512
        ((2032, 2912), 6, 6),
    ],
)
def test_the_papers_geometry(size, rows, columns):
    tiling = tiling_of(size, TILE)
    assert (tiling.rows, tiling.columns) == (rows, columns)
    assert len(tiling) == rows * columns
    assert tiling.span == size


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_width_and_shape_change_by_a_third_at_most(height, width):
    """Once they fill three quarters of a tile."""
    tiling = tiling_of((height, width), TILE)
    across = tiling.columns * TILE[1] / width
    down = tiling.rows * TILE[0] / height
    if width >= 0.75 * TILE[1]:
        assert 0.66 < across < 1.34
    else:
        assert tiling.columns == 1
    if height * across >= 0.75 * TILE[0]:
        assert 0.66 < down / across < 1.34
    else:
        assert tiling.rows == 1


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 9))
@settings(deadline=None)
def test_padding_keeps_every_pixel_and_adds_less_than_a_tile(height, width, batch):
    image = noise(height, width)
    tiling = tiling_of((height, width), SMALL, "pad")
    whole = joined(all_tiles(image, tiling, batch=batch), tiling)

    assert whole.shape[1:] == tiling.span
    assert np.array_equal(whole[:, :height, :width], image)
    level = np.array(IMAGENET.pad_value)[:, None, None]
    assert (whole[:, height:] == level).all()
    assert (whole[:, :, width:] == level).all()
    assert 0 <= tiling.span[0] - height < SMALL[0]
    assert 0 <= tiling.span[1] - width < SMALL[1]


@given(st.integers(1, 100), st.integers(1, 100))
@settings(deadline=None)
def test_stretched_tiles_are_cut_from_one_stretched_image(height, width):
    image = noise(height, width)
    tiling = tiling_of((height, width), SMALL)
    size = (tiling.columns * SMALL[1], tiling.rows * SMALL[0])
    expected = np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in image]
    )
    whole = joined(all_tiles(image, tiling), tiling)
    assert np.abs(whole.astype(int) - expected).max() <= 2  # Pillow rounds after each axis


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_whole_tiles_is_only_cut(mode):
    image = noise(768, 512)
    tiling = tiling_of((768, 512), TILE, mode)
    assert np.array_equal(joined(all_tiles(image, tiling), tiling), image)


@pytest.mark.parametrize("mode", MODES)
def test_grey_images_and_batches(mode):
    image = noise(60, 90, channels=1)
    tiling = tiling_of((60, 90), SMALL, mode)
    batches = list(tiles_of(image, tiling, GREY, batch=4))
    assert {batch.shape[1:] for batch in batches} == {(1, *SMALL)}
    assert all(batch.flags.c_contiguous and batch.dtype == np.uint8 for batch in batches)
    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == len(tiling)
    assert set(sizes[:-1]) <= {4}
    one_by_one = np.concatenate(list(tiles_of(image, tiling, GREY)))
    assert np.array_equal(np.concatenate(batches), one_by_one)


def test_maps_lie_as_their_tiles_do():
    """Each tile answers its own grey levels, so the merged map is the image again."""
    image = noise(70, 100)
    tiling = tiling_of((70, 100), SMALL, "pad")
    tiles = all_tiles(image, tiling)
    merged = merge_maps(tiles[:, :1].astype(np.float32), tiling)
    assert merged.shape == tiling.span
    assert np.array_equal(merged[:70, :100], image[0])


def test_an_unknown_way_of_tiling_is_refused_with_the_known_ones():
    assert [check_mode(mode) for mode in ("resize", "pad")] == ["resize", "pad"]
    with pytest.raises(DataError, match="nonsense") as caught:
        check_mode("nonsense")
    assert "--tiles resize or --tiles pad" in caught.value.fix
