"""DeepCount's tiles and crops: heads stay on their pixels, none is lost, none is shared."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from crowdrt.contracts import IMAGENET, Sample
from crowdrt.data.images import read_image
from crowdrt.data.tiles import tiles_of, tiling_of
from crowdrt.errors import DataError, TrainingError
from crowdrt.learning import GradientFusion, TrainingConfig
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.divided.tiles import PassOver, TileSource, corner_of, cut_heads, cut_image

TILE, STRIDE = (384, 512), 8
CONFIG = TrainingConfig(batch_size=4, sigma_px=5.0, colours=False)
PAPER = GradientFusion()
MARGIN = 24  # px from a cut's edge, within which a dot may be seen in part


def source(samples, *, config=CONFIG, fusion=PAPER):
    group = SampleGroup("all", tuple(samples), 1.0)
    return TileSource([group], TILE, STRIDE, IMAGENET, config, fusion)


def dotted(path, *, size, pitch=90):
    """A white dot per head on black."""
    width, height = size
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(0)
    grid = np.mgrid[pitch // 2 : width : pitch, pitch // 2 : height : pitch].reshape(2, -1).T
    heads = grid + rng.integers(-12, 13, grid.shape)
    for x, y in heads:
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill="white")
    image.save(path)
    return Sample(image=path, heads=heads.astype(np.float32))


def coloured(path, colour, size):
    Image.new("RGB", size, colour).save(path)
    return Sample(image=path, heads=np.zeros((0, 2), np.float32))


def lit(pixels):
    """Mean brightness of every cell of the finest map, 0 to 1."""
    height, width = pixels.shape[1:]
    cells = pixels.mean(0).reshape(height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    return cells.mean((1, 3)) / 255


def around(cells):
    """The sum over each cell's 3x3 neighbourhood."""
    padded = np.pad(cells, 1)
    rows, columns = cells.shape
    return sum(padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3))


@pytest.mark.parametrize("size", [(1024, 768), (512, 384), (700, 300), (901, 1203)])
def test_every_person_lies_on_a_dot_and_every_dot_is_a_person(tmp_path, size):
    """Of tiles, crops and mirrors, however the photograph was stretched."""
    photo = dotted(tmp_path / "dots.png", size=size)
    batch = source([photo], config=replace(CONFIG, sigma_px=1.0)).batch(0, range(16))
    inner = np.s_[MARGIN // STRIDE : -MARGIN // STRIDE, MARGIN // STRIDE : -MARGIN // STRIDE]
    people = 0
    for pixels, (density,) in zip(batch.images, batch.density, strict=True):
        light = lit(pixels)
        assert (around(light)[inner][density[inner] > 0.4] > 0.5).all()
        assert (around(density)[inner][light[inner] > 0.5] > 0.7).all()
        people += density[inner].sum()
    assert people > 50


@given(
    st.integers(40, 3000),
    st.integers(40, 3000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=20),
)
def test_the_tiles_of_a_photograph_share_no_head_and_lose_none(height, width, places):
    tiling = tiling_of((height, width), TILE)
    rows = np.linspace(0, height, tiling.rows + 1) - 0.5  # heads on the very borders of tiles
    columns = np.linspace(0, width, tiling.columns + 1) - 0.5
    borders = [(x, y) for x in columns[1:-1] for y in rows[1:-1]]
    drawn = [(x * (width - 0.501), y * (height - 0.501)) for x, y in places]
    heads = np.array(drawn + borders, np.float32).reshape(-1, 2)
    cuts = [cut_heads(heads, tiling, corner_of(tiling, k)) for k in range(len(tiling))]
    assert sum(map(len, cuts)) == len(heads)
    for cut in cuts:
        assert ((cut >= 0) & (cut < (TILE[1], TILE[0]))).all()


def test_heads_and_maps_of_all_tiles_add_up_to_the_photograph(tmp_path):
    """With heads on its last half pixel, and three that lie outside."""
    Image.new("RGB", (1024, 768)).save(tmp_path / "empty.png")
    edge = [(0, 0), (1023.9, 767.9), (511.6, 383.4), (511.5, 383.5), (10, 767.99)]
    beyond = [(-0.1, 5), (1024, 5), (5, 768)]
    photo = Sample(image=tmp_path / "empty.png", heads=np.array(edge + beyond, np.float32))
    cutter = source([photo], config=replace(CONFIG, flip=0.5), fusion=GradientFusion(num_crops=0))
    loaded = cutter._decode(photo)
    maps = [cutter._cut(loaded, corner_of(loaded.tiling, k))[1] for k in range(4)]
    assert sum(each.sum() for each in maps) == pytest.approx(len(edge), abs=1e-4)


def test_a_mirrored_map_keeps_its_people(tmp_path):
    photo = dotted(tmp_path / "dots.png", size=(512, 384))
    as_it_is, mirrored = (
        source([photo], config=replace(CONFIG, flip=flip)).batch(0, range(1)) for flip in (0, 1)
    )
    np.testing.assert_array_equal(as_it_is.images, mirrored.images[..., ::-1])
    np.testing.assert_array_equal(as_it_is.density, mirrored.density[..., ::-1])
    assert as_it_is.density.sum() == pytest.approx(len(photo.heads), rel=1e-5)


@pytest.mark.parametrize("size", [(1024, 768), (901, 1203), (600, 200)])
def test_tiles_are_those_of_counting(crowds, tmp_path, size):
    path = tmp_path / "photo.png"
    with Image.open(crowds[0].image) as image:
        image.convert("RGB").resize(size).save(path)
    pixels = read_image(path, "rgb")
    tiling = tiling_of(pixels.shape[1:], TILE)
    expected = [*tiles_of(pixels, tiling, IMAGENET)]
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    for k, (wanted,) in enumerate(expected):
        cut = cut_image(image, tiling, corner_of(tiling, k))
        np.testing.assert_array_equal(np.asarray(cut).transpose(2, 0, 1), wanted)


def test_a_pass_has_all_tiles_and_the_crops_of_what_is_more_than_one(tmp_path):
    """2 x 2 tiles, a single one, and 1 x 2: 4 + 3, 1, and 2 + 3 entries."""
    sizes = [(1024, 768), (512, 384), (1024, 384)]
    samples = [coloured(tmp_path / f"{i}.png", "red", size) for i, size in enumerate(sizes)]
    drawn = PassOver(SampleGroup("all", tuple(samples), 1.0), TILE, num_crops=3)
    entries = [drawn.entry(number) for number in range(drawn.ends[-1])]
    assert entries == [(0, k) for k in range(7)] + [(1, 0)] + [(2, k) for k in range(5)]


def test_photographs_are_drawn_as_often_as_a_pass_has_them(tmp_path):
    """One tile against 2 tiles and 2 crops: one in five."""
    one = coloured(tmp_path / "one.png", "white", (512, 384))
    two = coloured(tmp_path / "two.png", "black", (1024, 384))
    cutter = source([one, two], fusion=GradientFusion(num_crops=2))
    white = [cutter.batch(step, range(20)).images.mean((1, 2, 3)) > 128 for step in range(10)]
    assert np.mean(white) == pytest.approx(1 / 5, abs=0.08)


def test_crops_lie_anywhere_and_tiles_where_they_are(tmp_path):
    """A slope from black to white across two tiles says where a cut was taken."""
    slope = np.broadcast_to(np.linspace(0, 255, 1024), (384, 1024)).astype(np.uint8)
    Image.fromarray(slope).convert("RGB").save(tmp_path / "slope.png")
    photo = Sample(image=tmp_path / "slope.png", heads=np.zeros((0, 2), np.float32))
    config = replace(CONFIG, flip=0.0)

    def lefts(num_crops):
        cutter = source([photo], config=config, fusion=GradientFusion(num_crops=num_crops))
        levels = cutter.batch(0, range(24)).images[:, 0, 0, 0].astype(float)
        return np.rint(levels * 1023 / 255 / 128).astype(int).tolist()  # in eighths of the width

    assert set(lefts(0)) == {0, 4}
    assert {1, 2, 3} <= set(lefts(1000)) <= {0, 1, 2, 3, 4}


def test_members_are_the_same_whoever_takes_them_and_whenever(crowds):
    there, again = source(crowds), source(crowds)
    whole = there.batch(3, range(4))
    parts = [again.batch(3, members) for members in (range(2, 4), range(2))][::-1]
    np.testing.assert_array_equal(whole.images, np.concatenate([p.images for p in parts]))
    np.testing.assert_array_equal(whole.density, np.concatenate([p.density for p in parts]))
    for other in (there.batch(4, range(4)), source(crowds, config=replace(CONFIG, seed=1))):
        batch = other.batch(3, range(4)) if isinstance(other, TileSource) else other
        assert not np.array_equal(whole.images, batch.images)


def test_what_has_no_room_in_memory_is_decoded_again(crowds, monkeypatch):
    held = source(crowds)
    monkeypatch.setattr("crowdrt.training.photographs.sources.HELD_BYTES", 0)
    not_held = source(crowds)
    np.testing.assert_array_equal(
        held.batch(0, range(4)).images, not_held.batch(0, range(4)).images
    )
    assert held._held
    assert not not_held._held


def test_as_many_turn_grey_as_asked(tmp_path):
    photo = coloured(tmp_path / "red.png", "red", (512, 384))
    for share, expected in ((0.0, 0), (1.0, 4)):
        images = source([photo], fusion=GradientFusion(grey=share)).batch(0, range(4)).images
        assert (np.ptp(images, axis=1) == 0).all((1, 2)).sum() == expected


def test_a_turned_photograph_is_divided_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1024, 384)).save(tmp_path / "turned.jpg", exif=exif)
    photo = Sample(image=tmp_path / "turned.jpg", heads=np.array([(100, 1000)], np.float32))
    cutter = source([photo], fusion=GradientFusion(num_crops=0))
    assert cutter._decode(photo).tiling.image == (1024, 384)
    with_crops = source([photo]).batch(0, range(30)).density.sum((1, 2, 3))
    assert set(with_crops.round(4)) == {0, 1}


def test_batches_have_the_networks_shapes(crowds):
    batch = source(crowds).batch(0, range(3))
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, *TILE), np.uint8)
    assert (batch.density.shape, batch.density.dtype) == ((3, 1, 48, 64), np.float32)
    assert batch.density.sum() > 0


def test_what_cannot_be_cut_is_refused(crowds, plain_photo, tmp_path):
    with pytest.raises(TrainingError, match="no annotated photograph"):
        source([])
    with pytest.raises(TrainingError, match="no annotated heads"):
        source([plain_photo("unknown.png", heads=None)])
    with pytest.raises(TrainingError, match="sigma_px=0"):
        source(crowds, config=replace(CONFIG, sigma_px=0.0))
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        source([Sample(image=torn, heads=np.zeros((0, 2), np.float32))])
