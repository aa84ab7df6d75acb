"""Where an engine sees people: its density map over the photograph, with the counts below.

Pillow and numpy only, so that a board without plotting libraries can draw it.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from crowdrt.benchmarks.accuracy.counts import Prediction
from crowdrt.benchmarks.labels import significant
from crowdrt.contracts import UInt8Image
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import write_whole

MAX_SIDE_PX, MIN_WIDTH_PX = 1600, 800  # of the drawn photograph
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
HEATED = 0.85  # how much the densest places cover the photograph
DIMMED = 0.72  # brightness of the photograph below the density
GAMMA = 0.6  # lifts thin crowds out of the darkest colours; the scale below is drawn with it too
SMOOTH = 3  # rings are drawn this much larger, then reduced

# matplotlib's perceptually uniform "plasma", at nine equal steps
PLASMA = (
    (13, 8, 135),
    (76, 2, 161),
    (126, 3, 168),
    (170, 35, 149),
    (204, 71, 120),
    (230, 108, 92),
    (248, 149, 64),
    (253, 197, 39),
    (240, 249, 33),
)
BAR, BRIGHT, FAINT = (16, 18, 24), (244, 245, 248), (160, 166, 180)
GOOD_RATIO = 0.1  # a tenth off still counts as a good answer; beyond, the error stands out
GOOD, POOR = (126, 211, 158), (255, 170, 92)

FloatMap = npt.NDArray[np.float32]  # (H, W)


def draw_overlay(
    photograph: UInt8Image,
    prediction: Prediction,
    *,
    heads: npt.NDArray[np.float32] | None = None,
    annotated: int | None = None,
    label: str = "",
) -> Image.Image:
    """Return the picture.

    Args:
        photograph: (3, H, W) RGB as decoded, before any padding.
        prediction: its density map starts `margin_px` above and left of the photograph.
        heads: (N, 2) annotated x, y in pixels of the photograph, drawn as rings.
        annotated: the annotated count, if there is one.
        label: which engine counted, at the right of the caption.
    """
    photo, scale = drawn_photograph(photograph)
    per_pixel = _per_pixel(prediction, (photograph.shape[1], photograph.shape[2]))
    density = per_pixel.resize(photo.size, Image.Resampling.BILINEAR)
    people = np.maximum(np.asarray(density), 0)
    top = float(np.quantile(people, 0.998))
    picture = _heated(photo, people / top if top > 0 else people)
    if heads is not None:
        _draw_rings(picture, heads * scale)
    said = f"{prediction.count:,.0f} counted"
    caption = with_caption(picture, said, prediction.count, annotated)
    _draw_scale(caption, top, label)
    return caption.framed


def drawn_photograph(photograph: UInt8Image) -> tuple[Image.Image, float]:
    """Return (3, H, W) RGB at the size of an overlay, and how much larger that is."""
    height, width = photograph.shape[1:]
    scale = min(MAX_SIDE_PX / max(height, width), max(1.0, MIN_WIDTH_PX / width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo = Image.fromarray(photograph.transpose(1, 2, 0))
    return photo.resize(size, Image.Resampling.LANCZOS), scale


def save_overlay(picture: Image.Image, path: Path) -> None:
    """Write the picture whole or not at all, as PNG or JPEG by its suffix."""
    if path.suffix.lower() not in FORMATS:
        raise BenchmarkError(
            f"{path} ends in {path.suffix!r}: overlays are PNG or JPEG",
            fix=f"write {path.with_suffix('.jpg')}",
        )
    encoded = io.BytesIO()  # Pillow does not notice that its last write to a file was cut short
    picture.save(encoded, format=FORMATS[path.suffix.lower()], quality=88)
    with write_whole(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def heat(levels: FloatMap) -> npt.NDArray[np.uint8]:
    """Return (..., 3) RGB for levels in [0, 1]; what lies outside is clipped."""
    steps = np.linspace(0, 1, len(PLASMA))
    lifted = np.clip(levels, 0, 1) ** GAMMA
    channels = [np.interp(lifted, steps, channel) for channel in np.array(PLASMA).T]
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours


def _per_pixel(prediction: Prediction, size: tuple[int, int]) -> Image.Image:
    """Return people per pixel over the photograph; the padding's cells fall away."""
    assert prediction.density is not None
    height, width = prediction.span
    per_pixel = prediction.density * np.float32(prediction.density.size / (height * width))
    enlarged = Image.fromarray(per_pixel).resize((width, height), Image.Resampling.BICUBIC)
    start, (below, right) = prediction.margin_px, size
    box = (start, start, start + right, start + below)
    return enlarged.resize((right, below), Image.Resampling.BILINEAR, box=box)


def _heated(photo: Image.Image, levels: FloatMap) -> Image.Image:
    """Blend the colours in where there are people; the empty ground stays a photograph."""
    pixels = np.asarray(photo, np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    muted = DIMMED * (0.5 * pixels + 0.5 * grey[..., None])
    cover = (HEATED * np.clip(levels, 0, 1) ** GAMMA)[..., None]
    mixed = muted * (1 - cover) + heat(levels) * cover
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _draw_rings(picture: Image.Image, heads: npt.NDArray[np.float32]) -> None:
    """Mark the annotated heads, smaller where there are very many."""
    crowding = (picture.width * picture.height / max(1, len(heads))) ** 0.5
    radius = SMOOTH * max(2.0, min(picture.width / 280, 0.2 * crowding))
    mask = Image.new("L", (picture.width * SMOOTH, picture.height * SMOOTH))
    pen = ImageDraw.Draw(mask)
    for x, y in heads * SMOOTH:
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, outline=220, width=SMOOTH)
    picture.paste((255, 255, 255), mask=mask.resize(picture.size, Image.Resampling.BOX))


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The bar below a picture, with room for a legend at the right of what it says."""

    framed: Image.Image  # picture and bar
    pen: ImageDraw.ImageDraw
    small: ImageFont.FreeTypeFont | ImageFont.ImageFont
    text_px: int
    middle: float  # of the bar, pixels from the top


def with_caption(picture: Image.Image, said: str, count: float, annotated: int | None) -> Caption:
    """Add the bar below, with what was counted, what was annotated, and the difference."""
    text_px = max(15, round(picture.width / 44))
    bar_px = round(text_px * 3.6)
    framed = Image.new("RGB", (picture.width, picture.height + bar_px), BAR)
    framed.paste(picture)
    pen = ImageDraw.Draw(framed)
    large, small = ImageFont.load_default(text_px * 1.5), ImageFont.load_default(text_px * 0.8)
    left, middle = text_px, picture.height + bar_px / 2
    pen.text((left, middle), said, BRIGHT, large, anchor="lm")
    left += int(pen.textlength(said, large)) + text_px
    if annotated is not None:
        colour = GOOD if abs(count - annotated) <= GOOD_RATIO * annotated else POOR
        pen.text((left, middle - text_px * 0.1), f"{annotated:,} annotated", FAINT, small, "lb")
        pen.text((left, middle + text_px * 0.1), _error(count, annotated), colour, small, "lt")
    return Caption(framed=framed, pen=pen, small=small, text_px=text_px, middle=middle)


def _error(count: float, annotated: int) -> str:
    difference = count - annotated
    share = f" ({difference / annotated:+.1%})" if annotated else ""
    return f"{difference:+,.0f}{share}"


def _draw_scale(caption: Caption, top_density: float, label: str) -> None:
    """Draw the colour scale: people per 100 x 100 pixels of the photograph."""
    pen, font, text_px = caption.pen, caption.small, caption.text_px
    width, height = text_px * 7, max(4, text_px // 2)
    right, top = caption.framed.width - text_px, round(caption.middle + text_px * 0.25)
    strip = heat(np.linspace(0, 1, width, dtype=np.float32))[None].repeat(height, axis=0)
    peak = f"{significant(top_density * 1e4)} per 100x100 px"
    start = right - int(pen.textlength(peak, font)) - text_px // 2 - width
    caption.framed.paste(Image.fromarray(strip), (start, top))
    pen.text((start - text_px // 2, top + height / 2), "0", FAINT, font, anchor="rm")
    pen.text((right, top + height / 2), peak, FAINT, font, anchor="rm")
    pen.text((right, caption.middle - text_px * 0.2), label, FAINT, font, anchor="rb")
