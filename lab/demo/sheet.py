"""One picture of a training run: what was trained on, and what came out before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_WIDTH = 1200
_MARGIN = 40
_GAP = 12
_HEADER = 96
_TITLE = 46  # above each row
_ROW_GAP = 30
_FOOTER = 64

_GROUND = (30, 31, 34)
_TEXT = (230, 231, 234)
_QUIET = (148, 152, 161)


@dataclass(frozen=True)
class Row:
    """One line of pictures.

    Attributes:
        title: What they are.
        note: What else there is to know, in smaller type behind the title.
        images: The pictures, all shown at one height.
    """

    title: str
    note: str
    images: Sequence[Image.Image]


def picture_sheet(title: str, note: str, rows: Sequence[Row], footer: str) -> Image.Image:
    """Draw titled rows of pictures on a dark ground.

    Args:
        title: Of the sheet.
        note: Below it.
        rows: At least one picture each.
        footer: One line at the bottom.

    Returns:
        An RGB picture, 1200 pixels wide.
    """
    lines = [_fit(row.images) for row in rows]
    height = _HEADER + sum(_TITLE + line[0].height + _ROW_GAP for line in lines) + _FOOTER
    sheet = Image.new("RGB", (_WIDTH, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 46), title, _TEXT, _font(28), anchor="lm")
    draw.text((_MARGIN, 78), note, _QUIET, _font(15), anchor="lm")
    top = _HEADER
    for row, line in zip(rows, lines, strict=True):
        middle = top + _TITLE // 2 + 2
        draw.text((_MARGIN, middle), row.title, _TEXT, _font(19), anchor="lm")
        left = _MARGIN + _font(19).getlength(row.title) + 14
        draw.text((left, middle + 1), row.note, _QUIET, _font(15), anchor="lm")
        top += _TITLE
        left = _MARGIN
        for image in line:
            sheet.paste(image, (int(left), top))
            left += image.width + _GAP
        top += line[0].height + _ROW_GAP
    draw.text((_MARGIN, height - _FOOTER // 2), footer, _QUIET, _font(15), anchor="lm")
    return sheet


def _fit(images: Sequence[Image.Image], highest: int = 280) -> list[Image.Image]:
    """Scale pictures to one height at which they fill the width side by side, but no higher than `highest`."""
    room = _WIDTH - 2 * _MARGIN - _GAP * (len(images) - 1)
    height = min(highest, int(room / sum(image.width / image.height for image in images)))
    scaled = []
    for image in images:
        size = (max(1, round(image.width * height / image.height)), height)
        scaled.append(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    return scaled


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font built into pillow: the same letters on every system."""
    return ImageFont.load_default(size)
