"""Crops: heads stay on their pixels, counts stay whole, and a step always gives the same batch."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from crowdrt.contracts import IMAGENET, Sample
from crowdrt.data.heads.density import adaptive_sigma, density_map
from crowdrt.errors import DataError, RecipeError, TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.models.mcnn import MCNN
from crowdrt.training.counting.crops import CropSource, SampleGroup

CONFIG = TrainingConfig(batch_size=4, crop_px=64)
DOT_PX = 4  # radius of a planted head
SHARP = replace(CONFIG, sigma_px=4.0)


def source(samples, *, config=CONFIG, preprocessing=IMAGENET, stride=8):
    return CropSource([SampleGroup("all", tuple(samples), 1.0)], preprocessing, stride, config)


def whole(source, step=0):
    """All of a step's batch."""
    return source.batch(step, range(source.config.batch_size))


def draw_heads(path, *, size, pitch, channels="RGB"):
    """A bright dot per head on a slope that darkens to the right, which tells flips apart."""
    width, height = size
    slope = np.broadcast_to(np.linspace(110, 10, width), (height, width)).astype(np.uint8)
    image = Image.fromarray(slope).convert(channels)
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(0)
    grid = np.mgrid[pitch // 2 : width : pitch, pitch // 2 : height : pitch].reshape(2, -1).T
    heads = grid + rng.integers(-pitch // 8, pitch // 8 + 1, grid.shape)
    for x, y in heads:
        box = (x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX)
        draw.ellipse(box, fill="white")
    image.save(path)
    return Sample(image=path, heads=heads.astype(np.float32))


def numbered_pixels(path, *, size, pitch):
    """A photograph whose pixels say where they are, with heads on a grid off the pixels."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x % 256, x // 256, y], -1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    grid = np.mgrid[pitch // 2 : width : pitch, pitch // 2 : height : pitch].reshape(2, -1).T
    return Sample(image=path, heads=(grid + 0.25).astype(np.float32)), pixels.transpose(2, 0, 1)


def place_of(crop, pixels):
    """Left and top of a crop of numbered pixels, once it is seen to be one, and if mirrored."""
    x = crop[0, 0] + 256 * crop[1, 0].astype(int)
    mirrored = bool(x[0] > x[-1])
    upright = crop[..., ::-1] if mirrored else crop
    left, top = int(x.min()), int(crop[2, 0, 0])
    height, width = crop.shape[1:]
    np.testing.assert_array_equal(upright, pixels[:, top : top + height, left : left + width])
    return left, top, mirrored


def dots_in(pixels):
    """The centres x, y of the bright dots of one crop, (3, H, W) or (1, H, W)."""
    grey = pixels.mean(0)
    bright = grey > (grey.max() + np.median(grey)) / 2
    labels, number = ndimage.label(bright)
    centres = ndimage.center_of_mass(bright, labels, range(1, number + 1))
    return np.array(centres).reshape(-1, 2)[:, ::-1]


def is_flipped(pixels):
    half = pixels.shape[2] // 2
    return np.median(pixels[..., :half]) < np.median(pixels[..., half:])


@pytest.mark.parametrize("preprocessing", [IMAGENET, MCNN.preprocessing], ids=["rgb", "grey"])
def test_every_head_lies_under_a_peak_and_every_peak_on_a_head(tmp_path, preprocessing):
    """Whatever the place, the scale, the flip and the colours of the crop."""
    crop = 160
    photo = draw_heads(tmp_path / "dots.png", size=(400, 300), pitch=50)
    config = replace(SHARP, crop_px=crop, batch_size=12)
    batch = whole(source([photo], config=config, preprocessing=preprocessing, stride=1))
    flips, checked = set(), 0
    for pixels, (density,), heads in zip(batch.images, batch.density, batch.heads, strict=True):
        flips.add(bool(is_flipped(pixels)))
        dots = dots_in(pixels)
        inner = dots[((dots > 12) & (dots < crop - 12)).all(1)]
        for x, y in inner:
            top, left = round(y) - 10, round(x) - 10
            around = density[top : top + 21, left : left + 21]
            peak = np.array(np.unravel_index(around.argmax(), around.shape)) - 10
            assert np.abs(peak).max() <= 1, f"the peak lies {peak} px off"
            assert np.linalg.norm(heads - (x, y), axis=1).min() < 0.8, "a head is off its dot"
        assert len(heads) == round(float(density.sum()))
        checked += len(inner)
        peaks = (density == ndimage.maximum_filter(density, 15)) & (density > density.max() / 3)
        assert len(inner) <= peaks.sum() <= len(dots)
        assert len(inner) - 0.01 <= density.sum() <= len(dots) + 0.01
    assert flips == {True, False}
    assert checked > 50


def test_a_crop_counts_whole_people(crowds):
    counts = whole(source(crowds)).density.sum((1, 2, 3))
    assert len(set(counts.round().tolist())) > 1
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)


@pytest.mark.parametrize("sigma_px", [0.0, 8.0], ids=["adaptive", "fixed"])
def test_a_crop_of_the_whole_photograph_counts_everybody(tmp_path, sigma_px):
    """A square photograph far smaller than the crop is always taken whole."""
    photo = draw_heads(tmp_path / "small.png", size=(64, 64), pitch=16)
    config = replace(CONFIG, crop_px=128, batch_size=8, sigma_px=sigma_px)
    density = whole(source([photo], config=config)).density
    np.testing.assert_allclose(density.sum((1, 2, 3)), len(photo.heads), rtol=1e-5)


@pytest.mark.parametrize("size", [(40, 50), (400, 33), (33, 400)])
def test_a_photograph_smaller_than_the_crop_is_enlarged(plain_photo, size):
    photo = plain_photo("small.png", size=size, heads=[(20, 20)])
    batch = whole(source([photo]))
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.density.shape == (4, 1, 8, 8)
    assert np.isfinite(batch.density).all()


def test_heads_outside_the_photograph_are_in_no_crop(plain_photo):
    heads = [(-30, 5), (5, 80), (24, 24)]
    photo = plain_photo("small.png", size=(48, 48), heads=heads)
    config = replace(CONFIG, crop_px=96)
    np.testing.assert_allclose(whole(source([photo], config=config)).density.sum((1, 2, 3)), 1)


def test_a_photograph_of_nobody_counts_zero(plain_photo):
    assert whole(source([plain_photo("empty.png", heads=[])])).density.sum() == 0


def test_fixed_crops_are_the_photographs_own_pixels(tmp_path):
    photo, pixels = numbered_pixels(tmp_path / "numbers.png", size=(220, 200), pitch=26)
    config = replace(SHARP, crops="fixed", crop_px=96, batch_size=8, colours=False)
    batch = whole(source([photo], config=config))
    flips = set()
    for crop, (density,), heads in zip(batch.images, batch.density, batch.heads, strict=True):
        left, top, mirrored = place_of(crop, pixels)
        moved = photo.heads - (left, top)
        moved = moved[((moved >= -0.5) & (moved < 95.5)).all(1)]
        moved[:, 0] = 95 - moved[:, 0] if mirrored else moved[:, 0]
        np.testing.assert_allclose(heads, moved.clip(0), atol=1e-3)
        assert density.sum() == pytest.approx(len(heads))
        flips.add(mirrored)
    assert flips == {True, False}
    np.testing.assert_allclose(batch.short_px, 200)


def test_a_fixed_crop_of_a_smaller_photograph_is_all_of_its_shorter_side(tmp_path):
    photo = draw_heads(tmp_path / "small.png", size=(50, 40), pitch=20)
    batch = whole(source([photo], config=replace(CONFIG, crops="fixed", crop_px=80)))
    np.testing.assert_allclose(batch.short_px, 80)
    for heads in batch.heads:
        assert len(heads) >= 3
        np.testing.assert_allclose(np.unique(heads[:, 1].round(2)) % 1, 0.5)  # (y + 0.5) 2 - 0.5


RATIO = replace(CONFIG, crops="ratio", batch_size=1, colours=False)


def test_ratio_crops_take_the_same_part_of_both_sides(tmp_path):
    photo = draw_heads(tmp_path / "dots.png", size=(800, 480), pitch=50)
    crops = source([photo], config=RATIO)
    sizes = np.array([whole(crops, step).images.shape[3:1:-1] for step in range(40)])
    assert (sizes % 8 == 0).all()
    ratios = sizes / (800, 480)
    assert np.abs(ratios[:, 0] - ratios[:, 1]).max() < 8 / 480
    assert 0.48 < ratios.min() < 0.6
    assert 0.9 < ratios.max() <= 1
    half = whole(source([photo], config=replace(RATIO, crop_ratio=(0.5, 0.5))))
    assert half.images.shape == (1, 3, 240, 400)


def test_ratio_crops_of_a_batch_are_as_large_as_the_first(tmp_path):
    small = draw_heads(tmp_path / "small.png", size=(120, 96), pitch=30)
    large = draw_heads(tmp_path / "large.png", size=(320, 256), pitch=30)
    crops = source([small, large], config=replace(RATIO, batch_size=4))
    shapes = set()
    for step in range(20):
        together = whole(crops, step)
        shapes.add(together.images.shape)
        alone = [crops.batch(step, range(member, member + 1)) for member in range(4)]
        np.testing.assert_array_equal(together.images, np.concatenate([a.images for a in alone]))
    assert len(shapes) > 10


@pytest.mark.parametrize("sigma_px", [0.0, 6.0], ids=["adaptive", "fixed"])
def test_a_ratio_crop_has_its_part_of_the_whole_photographs_map(tmp_path, sigma_px):
    """The map of one cell per pixel, cut and summed over cells of 8 x 8."""
    photo, pixels = numbered_pixels(tmp_path / "numbers.png", size=(400, 200), pitch=38)
    config = replace(RATIO, sigma_px=sigma_px, flip=0.0)
    crops = source([photo], config=config)
    sigma = sigma_px or adaptive_sigma(photo.heads)
    fine = density_map(photo.heads, height=200, width=400, sigma=sigma, stride=1)
    for step in range(4):
        batch = whole(crops, step)
        height, width = batch.images.shape[2:]
        left, top, _ = place_of(batch.images[0], pixels)
        cut = fine[top : top + height, left : left + width]
        cells = cut.reshape(height // 8, 8, width // 8, 8).sum((1, 3))
        np.testing.assert_allclose(batch.density[0, 0], cells, atol=1e-5)
        assert batch.density.std() > 1e-3
        mirrored = whole(source([photo], config=replace(config, flip=1.0)), step)
        np.testing.assert_array_equal(mirrored.density, batch.density[..., ::-1])
        np.testing.assert_array_equal(mirrored.images, batch.images[..., ::-1])
        assert sorted(mirrored.heads[0][:, 0]) == pytest.approx(
            sorted(width - 1 - batch.heads[0][:, 0]), abs=2e-3
        )


def test_nobody_counts_outside_a_region_of_interest(tmp_path):
    photo = draw_heads(tmp_path / "dots.png", size=(320, 160), pitch=40)
    roi = np.zeros((160, 320), np.bool_)
    roi[:, :160] = True
    config = replace(RATIO, crop_ratio=(1.0, 1.0), flip=0.0)
    batch = whole(source([replace(photo, roi=roi)], config=config))
    half = np.ones((20, 40))
    half[:, 20:] = 0
    np.testing.assert_array_equal(batch.region[0, 0], half)
    assert len(batch.heads[0]) == len(photo.heads) / 2
    assert (batch.heads[0][:, 0] < 160).all()
    np.testing.assert_array_equal(batch.density, whole(source([photo], config=config)).density)
    assert whole(source([photo], config=config)).region is None
    beside = whole(source([photo, replace(photo, roi=roi)], config=replace(config, batch_size=8)))
    assert {float(share) for share in beside.region.mean((1, 2, 3))} == {0.5, 1.0}


@pytest.mark.parametrize("crop_ratio", [(0.0, 1.0), (0.8, 0.5), (0.5, 1.2)])
def test_a_ratio_that_is_no_part_is_refused(crop_ratio):
    with pytest.raises(RecipeError, match="no part of a photograph"):
        replace(CONFIG, crop_ratio=crop_ratio)


def test_a_batch_depends_on_seed_and_step_alone(crowds):
    forwards, backwards = source(crowds), source(crowds)
    there = {step: whole(forwards, step) for step in (0, 1, 2)}
    back = {step: whole(backwards, step) for step in (2, 1, 0)}
    for step in there:
        np.testing.assert_array_equal(there[step].images, back[step].images)
        np.testing.assert_array_equal(there[step].density, back[step].density)
    assert not np.array_equal(there[0].images, there[1].images)
    other = whole(source(crowds, config=replace(CONFIG, seed=1)))
    assert not np.array_equal(there[0].images, other.images)


def test_processes_that_share_a_batch_see_what_one_would(crowds):
    together = whole(source(crowds), 3)
    parts = [source(crowds).batch(3, members) for members in (range(1), range(1, 4))]
    for name in ("images", "density"):
        shared = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(together, name), shared)
    for one, other in zip(together.heads, parts[0].heads + parts[1].heads, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({len(heads) for heads in together.heads}) > 1


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_a_batch_has_the_networks_shapes(crowds, stride):
    batch = whole(source(crowds, preprocessing=MCNN.preprocessing, stride=stride))
    assert batch.images.shape == (4, 1, 64, 64)
    assert batch.images.dtype == np.uint8
    assert batch.density.shape == (4, 1, 64 // stride, 64 // stride)
    assert batch.density.dtype == np.float32


def test_colours_vary_and_some_crops_are_grey(crowds):
    images = whole(source(crowds, config=replace(CONFIG, batch_size=48))).images.astype(float)
    colourfulness = np.abs(images - images.mean(1, keepdims=True)).mean((1, 2, 3))
    assert 1 <= (colourfulness < 1.5).sum() <= 16  # JPEG leaves a trace of colour
    assert images.mean((1, 2, 3)).std() > 5


def test_shares_decide_whatever_the_sizes_of_the_groups(plain_photo):
    bright = [plain_photo("bright.png", level=220)]
    dark = [plain_photo(f"dark{i}.png", level=20) for i in range(9)]
    groups = [SampleGroup("bright", tuple(bright), 3.0), SampleGroup("dark", tuple(dark), 1.0)]
    config = replace(CONFIG, crop_px=32, batch_size=400)
    images = whole(CropSource(groups, IMAGENET, 8, config)).images
    assert (images.mean((1, 2, 3)) > 100).mean() == pytest.approx(0.75, abs=0.07)


def test_an_empty_group_is_passed_over(plain_photo):
    groups = [SampleGroup("none", (), 5.0), SampleGroup("one", (plain_photo("a.png"),), 1.0)]
    assert whole(CropSource(groups, IMAGENET, 8, CONFIG)).images.shape[0] == 4


@pytest.mark.parametrize("groups", [[], [SampleGroup("none", (), 1.0)]], ids=["no", "empty"])
def test_nothing_to_learn_from_is_refused(groups):
    with pytest.raises(TrainingError, match="no annotated photograph") as caught:
        CropSource(groups, IMAGENET, 8, CONFIG)
    assert "--data" in caught.value.fix


def test_a_photograph_without_annotation_is_refused_at_once(plain_photo):
    samples = [plain_photo("known.png"), plain_photo("unknown.png", heads=None)]
    with pytest.raises(TrainingError, match=r"unknown\.png has no annotated heads") as caught:
        source(samples)
    assert "unknown.png.heads.json" in caught.value.fix


def test_photographs_beyond_the_memory_are_decoded_again(crowds, monkeypatch):
    expected = whole(source(crowds), 1)
    monkeypatch.setattr("crowdrt.training.photographs.sources.HELD_BYTES", 2 * 96 * 96 * 3)
    tight = source(crowds)
    np.testing.assert_array_equal(whole(tight, 1).images, expected.images)
    for step in range(4):
        whole(tight, step)
    assert len(tight._held) == 2


def test_a_damaged_photograph_is_named(plain_photo):
    photo = plain_photo("cut.png")
    photo.image.write_bytes(photo.image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cut\.png"):
        whole(source([photo]))
