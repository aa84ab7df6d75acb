"""Whom a detector sees on a photograph: boxes with scores, beside those that people drew.

Pillow and numpy only, as the density overlays.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from crowdrt.benchmarks.overlays.density import FAINT, Caption, drawn_photograph, with_caption
from crowdrt.contracts import BoxSample, Detections, UInt8Image

FOUND, DRAWN, LEFT_OUT = (255, 170, 60), (92, 214, 255), (150, 156, 170)
INK = (20, 16, 10)  # of a score on its box's colour
MIN_ALPHA = 110  # of a box with a score of 0; certain boxes are opaque

Boxes = npt.NDArray[np.float32]


def draw_boxes(
    photograph: UInt8Image,
    found: Detections,
    sample: BoxSample,
    *,
    label: str = "",
) -> Image.Image:
    """Return the picture.

    Args:
        photograph: (3, H, W) RGB as decoded, before any padding.
        found: what is drawn, in pixels of the photograph.
        sample: its annotation, if there is one, is drawn below in another colour; regions that
            are left out of the evaluation are grey.
        label: which engine looked, at the right of the caption.
    """
    photo, scale = drawn_photograph(photograph)
    picture = photo.convert("RGBA")
    line = max(2, round(picture.width / 640))
    if sample.boxes is not None:
        for ignored, colour in ((True, LEFT_OUT), (False, DRAWN)):
            boxes = sample.boxes[sample.ignore == ignored] * scale
            picture = _with_frames(picture, boxes, colour, line)
    picture = _with_detections(picture, found, scale, line)
    count = len(found.scores)
    caption = with_caption(picture.convert("RGB"), f"{count:,} found", count, sample.annotated)
    _draw_legend(caption, sample.annotated is not None, label)
    return caption.framed


def _with_frames(
    picture: Image.Image, boxes: Boxes, colour: tuple[int, int, int], line: int
) -> Image.Image:
    """Return the picture with thin frames, drawn outside the boxes so that others show inside."""
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    for x1, y1, x2, y2 in boxes:
        pen.rectangle((x1 - line, y1 - line, x2 + line, y2 + line), outline=colour, width=line)
    return Image.alpha_composite(picture, layer)


def _with_detections(
    picture: Image.Image, found: Detections, scale: float, line: int
) -> Image.Image:
    """Return the picture with every detection, the best on top; doubtful ones are fainter."""
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    font = ImageFont.load_default(max(11, round(picture.width / 110)))
    for k in np.argsort(found.scores, kind="stable"):
        x1, y1, x2, y2 = (found.boxes[k] * scale).tolist()
        alpha = MIN_ALPHA + round((255 - MIN_ALPHA) * float(found.scores[k]))
        pen.rectangle((x1, y1, x2, y2), outline=(*FOUND, alpha), width=line)
        text = f"{found.scores[k]:.2f}".removeprefix("0")
        left, top, right, bottom = pen.textbbox((x1, y1), text, font)
        if right - left + 2 * line <= x2 - x1 and bottom - top + 2 * line <= (y2 - y1) / 3:
            pen.rectangle((x1, y1, right + 2 * line, bottom + line), fill=(*FOUND, alpha))
            pen.text((x1 + line, y1), text, INK, font)
    return Image.alpha_composite(picture, layer)


def _draw_legend(caption: Caption, is_annotated: bool, label: str) -> None:
    """Say what the colours mean, at the right of the bar."""
    pen, text_px = caption.pen, caption.text_px
    right, base = caption.framed.width - text_px, caption.middle + text_px * 0.5
    entries = [("found", FOUND), ("annotated", DRAWN), ("left out", LEFT_OUT)]
    for name, colour in reversed(entries if is_annotated else entries[:1]):
        pen.text((right, base), name, FAINT, caption.small, anchor="rm")
        right -= round(pen.textlength(name, caption.small) + text_px * 0.4)
        half = text_px * 0.3
        pen.rectangle((right - 2 * half, base - half, right, base + half), outline=colour, width=2)
        right -= round(2 * half + text_px * 0.8)
    place = (caption.framed.width - text_px, caption.middle - text_px * 0.2)
    pen.text(place, label, FAINT, caption.small, anchor="rb")
