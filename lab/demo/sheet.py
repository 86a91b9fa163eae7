"""One picture of a training run: what was trained on, and samples before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ...training.review import palette

_MARGIN = 40
_GAP = 12
_HEADER = 96
_TITLE = 46  # above each row
_ROW_GAP = 30
_FOOTER = 64
_NOTE = 15  # size of the smaller letters
_ROOM = palette.WIDTH - 2 * _MARGIN
_MOST_IN_A_LINE = 24  # pictures; more would be too small to see


@dataclass(frozen=True)
class Row:
    """One row of pictures, on several lines if there are many.

    Attributes:
        title: What they are.
        note: A remark, in smaller letters after the title.
        images: The pictures, all shown at one height.
    """

    title: str
    note: str
    images: Sequence[Image.Image]


def picture_sheet(title: str, note: str, rows: Sequence[Row], footer: str) -> Image.Image:
    """Draw titled rows of pictures on a dark ground.

    A text that is too long for its line is wrapped, and the sheet grows with it.

    Args:
        title: Title of the sheet.
        note: Text below the title.
        rows: Rows of at least one picture each.
        footer: Text at the bottom.

    Returns:
        An RGB picture, 1200 pixels wide.
    """
    titles, notes = palette.wrapped(title, 28, _ROOM), palette.wrapped(note, _NOTE, _ROOM)
    footers = palette.wrapped(footer, _NOTE, _ROOM)
    header = _HEADER + _extra(titles, 28) + _extra(notes, _NOTE)
    laid_out = [(row, _row_title(row), _fit(row.images)) for row in rows]
    height = header + _FOOTER + _extra(footers, _NOTE)
    for _, (_, _, title_height), lines in laid_out:
        height += title_height + len(lines) * (lines[0][0].height + _GAP) - _GAP + _ROW_GAP
    sheet = Image.new("RGB", (palette.WIDTH, height), palette.GROUND)
    draw = ImageDraw.Draw(sheet)
    palette.draw_lines(draw, (_MARGIN, 30), titles, 28, palette.TEXT)
    palette.draw_lines(draw, (_MARGIN, 69 + _extra(titles, 28)), notes, _NOTE, palette.QUIET)
    top = header
    for _, (name, remark, title_height), lines in laid_out:
        palette.draw_lines(draw, (_MARGIN, top + 14), name, 19, palette.TEXT)
        left = _MARGIN + palette.font(19).getlength(name[-1]) + 14 if name else _MARGIN
        palette.draw_lines(draw, (left, top + 17 + _extra(name, 19)), remark, _NOTE, palette.QUIET)
        top += title_height
        for line in lines:
            place = _MARGIN
            for image in line:
                sheet.paste(image, (place, top))
                place += image.width + _GAP
            top += line[0].height + _GAP
        top += _ROW_GAP - _GAP
    palette.draw_lines(draw, (_MARGIN, top + 2), footers, _NOTE, palette.QUIET)
    return sheet


def _row_title(row: Row) -> tuple[list[str], list[str], int]:
    """Return the lines of a row's title, the lines of its note to the right of the title, and the height of both."""
    name = palette.wrapped(row.title, 19, _ROOM * 0.6)
    used = palette.font(19).getlength(name[-1]) + 14 if name else 0
    remark = palette.wrapped(row.note, _NOTE, _ROOM - used)
    return name, remark, _TITLE + _extra(name, 19) + _extra(remark, _NOTE)


def _extra(lines: Sequence[str], size: int) -> int:
    """Height of all lines after the first."""
    return max(0, len(lines) - 1) * palette.line_height(size)


def _fit(images: Sequence[Image.Image], highest: int = 280) -> list[list[Image.Image]]:
    """Break pictures into lines and scale them to one height at which the fullest line fills the width."""
    lines = [images[at : at + _MOST_IN_A_LINE] for at in range(0, len(images), _MOST_IN_A_LINE)]
    heights = [
        (_ROOM - _GAP * (len(line) - 1)) / sum(image.width / image.height for image in line) for line in lines
    ]
    height = max(1, min(highest, int(min(heights))))
    return [[_scaled(image, height) for image in line] for line in lines]


def _scaled(image: Image.Image, height: int) -> Image.Image:
    size = (max(1, round(image.width * height / image.height)), height)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
