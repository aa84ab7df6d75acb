import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from crowdrt.data.images import list_images, read_image, to_pixels
from crowdrt.errors import DataError


@pytest.fixture
def colours():
    """(H, W, 3), different at every pixel and in every channel."""
    rows, columns = np.mgrid[:48, :64]
    return np.stack([rows * 5, columns * 3, 255 - rows - columns], axis=-1).astype(np.uint8)


def test_png_pixels_arrive_unchanged(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", "rgb")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, colours.transpose(2, 0, 1))


def test_grey_photograph_has_three_equal_channels(tmp_path, colours):
    Image.fromarray(colours[..., 0]).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", "rgb")
    np.testing.assert_array_equal(pixels, np.stack([colours[..., 0]] * 3))


def test_colour_becomes_grey_by_luma(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png")
    grey = read_image(tmp_path / "a.png", "grey")
    assert grey.shape == (1, 48, 64)
    assert grey.flags.writeable
    np.testing.assert_allclose(grey[0], colours @ [0.299, 0.587, 0.114], atol=0.6)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_a_tall_photograph_is_converted_in_strips(mode, channels):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (700, 40, 3), np.uint8)).convert(mode)
    pixels = to_pixels(picture, channels, source=Path("tall"))
    at_once = np.asarray(picture.convert("RGB" if channels == "rgb" else "L")).reshape(700, 40, -1)
    np.testing.assert_array_equal(pixels, at_once.transpose(2, 0, 1))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, colours, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png", "rgb").transpose(1, 2, 0)
    # EXIF 2.32, tag 274: where the first stored row and column lie in the upright picture
    upright = {
        1: colours,
        2: colours[:, ::-1],
        3: colours[::-1, ::-1],
        4: colours[::-1],
        5: colours.swapaxes(0, 1),
        6: colours.swapaxes(0, 1)[:, ::-1],
        7: colours.swapaxes(0, 1)[::-1, ::-1],
        8: colours.swapaxes(0, 1)[::-1],
    }
    np.testing.assert_array_equal(pixels, upright[turn])


@pytest.mark.parametrize(
    "content",
    [b"no TIFF header at all", b"II*\0\x08\0\0\0\x09\0\x12\x01"],
    ids=["no header", "cut short"],
)
def test_broken_exif_does_not_lose_the_photograph(tmp_path, colours, content):
    exif = b"Exif\0\0" + content
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    with warnings.catch_warnings(record=True) as seen:
        pixels = read_image(tmp_path / "a.png", "rgb")
    assert not seen
    np.testing.assert_array_equal(pixels, colours.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path, suffix, channels):
    values = np.linspace(0, 0xFFFF, 48 * 64).astype(np.uint16).reshape(48, 64)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}", channels)
    np.testing.assert_array_equal(pixels[0], np.round(values / 257))


def test_palette_and_transparency(tmp_path, colours):
    flat = np.repeat(np.repeat(colours[::8, ::8], 8, axis=0), 8, axis=1)  # 48 colours fit a palette
    Image.fromarray(flat).quantize(256).save(tmp_path / "a.png")
    palette = read_image(tmp_path / "a.png", "rgb")
    np.testing.assert_allclose(palette.transpose(1, 2, 0).astype(int), flat, atol=8)

    alpha = np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)
    rgba = np.dstack([colours, np.broadcast_to(alpha, (48, 64))])
    Image.fromarray(rgba).save(tmp_path / "b.png")
    pixels = read_image(tmp_path / "b.png", "rgb").transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[:, :32], colours[:, :32])
    assert (pixels[:, 32:] == 255).all(), "what is transparent shows white, not what hides below"


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("CMYK", "jpg"), ("L", "jpg"), ("LA", "png"), ("P", "gif"), ("RGBA", "webp")],
)
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_every_mode_of_a_photograph_keeps_its_picture(tmp_path, colours, mode, suffix, channels):
    Image.fromarray(colours).convert(mode).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}", channels)
    assert pixels.shape == (3 if channels == "rgb" else 1, 48, 64)
    brightness = (colours @ [0.299, 0.587, 0.114]).ravel()
    assert np.corrcoef(pixels.mean(axis=0).ravel(), brightness)[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "BMP"])
def test_content_counts_and_not_the_name(tmp_path, colours, kind):
    Image.fromarray(colours).save(tmp_path / "a.jpg", kind)
    pixels = read_image(tmp_path / "a.jpg", "rgb").transpose(1, 2, 0)
    assert np.corrcoef(pixels.ravel(), colours.ravel())[0, 1] > 0.98


def test_sixteen_bit_colours_are_scaled_too(tmp_path, colours):
    write_png(tmp_path / "a.png", colours.shape[:2], (colours.astype(">u2") * 257), bits=16)
    pixels = read_image(tmp_path / "a.png", "rgb")
    np.testing.assert_array_equal(pixels, colours.transpose(2, 0, 1))


def write_png(path, size, pixels, *, bits=8, more=b""):
    """Write an RGB PNG chunk by chunk; its header says `size`, whatever `pixels` are."""
    header = struct.pack(">IIBBBBB", size[1], size[0], bits, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [chunk(b"IHDR", header), more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def chunk(kind, content=b""):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def test_black_and_white_fill_the_range(tmp_path):
    Image.fromarray(np.eye(48, dtype=bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "grey")[0], 255 * np.eye(48))


@pytest.mark.parametrize("suffix", ["webp", "png", "tif"])
def test_first_frame_of_several(tmp_path, colours, suffix):
    frames = [Image.fromarray(colours), Image.fromarray(255 - colours)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 2
    pixels = read_image(tmp_path / f"a.{suffix}", "rgb")
    np.testing.assert_array_equal(pixels, colours.transpose(2, 0, 1))


def refusal(path, channels="rgb"):
    """Return the error's problem; every one names the file and a fix."""
    with pytest.raises(DataError) as caught:
        read_image(path, channels)
    assert str(path) in caught.value.problem
    assert len(caught.value.fix) > 10
    return caught.value.problem


def test_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.jpg")


@pytest.mark.parametrize("target", ["none.jpg", "a.jpg"], ids=["broken", "to itself"])
def test_link_to_nothing(tmp_path, target):
    (tmp_path / "a.jpg").symlink_to(target)
    assert f"is a link to {target}, where there is nothing" in refusal(tmp_path / "a.jpg")


def test_link_to_a_photograph(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    np.testing.assert_array_equal(*(read_image(tmp_path / f"{n}.png", "rgb") for n in "ab"))
    assert len(list_images(tmp_path)) == 2


def test_folder_instead_of_a_file(tmp_path):
    assert "is a folder" in refusal(tmp_path)


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert "no ordinary file" in refusal(tmp_path / "a.jpg")


def test_text_named_jpg(tmp_path):
    (tmp_path / "a.jpg").write_text("not a photograph\n")
    assert "not an image" in refusal(tmp_path / "a.jpg")


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert "not an image" in refusal(tmp_path / "a.jpg")


def test_postscript_is_never_run(tmp_path):
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EOF\n")
    assert "not an image" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_truncated_file(tmp_path, photo, suffix, kept):
    path = photo(tmp_path / f"a.{suffix}", size=(128, 96))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    problem = refusal(path)
    assert "damaged" in problem or "not an image" in problem


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file_that_must_be_turned(tmp_path, photo, suffix):
    """The turn decodes too, and what it forgives must not hide that pixels are missing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photo(tmp_path / f"a.{suffix}", size=(128, 96), exif=exif)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("error", [EOFError, IndexError, OverflowError, struct.error, zlib.error])
def test_whatever_a_decoder_raises(tmp_path, photo, monkeypatch, error):
    """Which exceptions escape from damaged files differs between Pillow's releases."""

    def fail(_self):
        raise error("broken inside")

    path = photo(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(PngImageFile, "load", fail)
    assert "damaged: broken inside" in refusal(path)


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000), (31, 500)])
def test_too_small_for_a_crowd(tmp_path, photo, size):
    path = photo(tmp_path / "a.png", size=size)
    assert f"{size[0]}x{size[1]} px is too small" in refusal(path)


@pytest.mark.parametrize("factor", [1.5, 3])  # Pillow warns above its limit, refuses above twice
def test_decompression_bomb(tmp_path, photo, monkeypatch, factor):
    path = photo(tmp_path / "a.png", size=(64, 48))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 * 48 / factor))
    assert "too many pixels" in refusal(path)


def test_a_png_of_a_gigabyte_is_not_unpacked(tmp_path, colours):
    write_png(tmp_path / "a.png", (19_000, 19_000), colours)
    assert "too many pixels" in refusal(tmp_path / "a.png")


def test_a_png_whose_text_is_a_bomb(tmp_path, colours):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))
    write_png(tmp_path / "a.png", colours.shape[:2], colours, more=text)
    assert "too large" in refusal(tmp_path / "a.png")


def test_forbidden_file(tmp_path, photo, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    path = photo(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refuse)
    assert "Permission denied" in refusal(path)


def test_name_that_the_system_refuses(tmp_path):
    assert "too long" in refusal(tmp_path / ("a" * 300 + ".jpg"))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_pixels_without_an_agreed_white(tmp_path, mode):
    Image.new(mode, (64, 48)).save(tmp_path / "a.tif")
    assert f"mode {mode!r}" in refusal(tmp_path / "a.tif")


def test_more_than_sixteen_bits(tmp_path):
    Image.fromarray(np.full((48, 64), 70_000, np.int32)).save(tmp_path / "a.tif")
    assert "no agreed" in refusal(tmp_path / "a.tif")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    suffix=st.sampled_from(["jpg", "png", "gif", "webp", "tif", "bmp", "ppm"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=9),
)
def test_damaged_bytes_give_pixels_or_a_data_error(tmp_path, photo, suffix, changes):
    path = photo(tmp_path / f"a.{suffix}")
    content = bytearray(path.read_bytes())
    for where, value in changes:
        content[int(where * min(len(content), 400))] = value  # the headers are at the front
    path.write_bytes(content)
    problem, shape = None, ()
    try:
        shape = read_image(path, "grey").shape
    except DataError as error:
        problem = error.problem
    assert len(shape) == 3 or str(path) in problem


def test_threads_read_the_same(tmp_path, photo):
    path = photo(tmp_path / "a.jpg")
    expected, seen = read_image(path, "rgb"), []
    threads = [
        threading.Thread(target=lambda: seen.append(read_image(path, "rgb"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(np.array_equal(pixels, expected) for pixels in seen)


def test_images_are_listed_in_natural_order(tmp_path, photo):
    for name in (
        "IMG_10.jpg",
        "IMG_9.JPG",
        "IMG_1.png",
        "img_02.jpeg",
        ".IMG_3.jpg",
        "._IMG_1.jpg",
    ):
        photo(tmp_path / "x.png").rename(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["IMG_1.png", "img_02.jpeg", "IMG_9.JPG", "IMG_10.jpg"]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.symlink_to("none"), "is a link to none"),
        (os.mkfifo, "is no ordinary file"),
    ],
    ids=["link", "pipe"],
)
def test_what_cannot_be_a_photograph_is_not_passed_over(tmp_path, photo, spoil, problem):
    photo(tmp_path / "1.png")
    spoil(tmp_path / "2.png")
    with pytest.raises(DataError, match=rf"2\.png {problem}"):
        list_images(tmp_path)


def test_missing_empty_and_forbidden_folders(tmp_path, photo, monkeypatch):
    with pytest.raises(DataError, match="does not exist"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        list_images(photo(tmp_path / "a.png"))

    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(DataError, match=r"Permission denied(.|\n)*ls -ld"):
        list_images(tmp_path)
