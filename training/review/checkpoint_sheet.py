"""One picture of the checkpoints of a run: a row for each, a column for each prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from . import palette

LARGEST = 512  # pixels of a cell's longer side
_SMALLEST = 96
_MOST = 24_000_000  # pixels of a sheet
_MARGIN, _GAP, _TITLE, _LABELS = 32, 12, 72, 170
_LARGE, _SMALL, _LINES = 16, 14, 3  # sizes of letters; most lines above a column


@dataclass(frozen=True)
class Row:
    """One checkpoint at one strength.

    Attributes:
        label: What it is, such as `step 200 · epoch 2`.
        note: What else is said of it, such as its strength.
        images: One picture for each prompt.
        is_chosen: Whether it is the one handed on.
    """

    label: str
    note: str
    images: Sequence[Image.Image]
    is_chosen: bool = False


def checkpoint_sheet(title: str, prompts: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw checkpoints below each other, with prompts side by side.

    Pictures keep their shape and are never enlarged. The chosen row is outlined.

    Args:
        title: What is compared, in one line.
        prompts: The text above each column.
        rows: At least one, each with as many pictures as there are prompts.

    Returns:
        An RGB picture of at most 24 million pixels, unless cells would be smaller than 96 pixels.
    """
    side = math.sqrt(_MOST / (len(rows) * len(prompts)))
    side = max(_SMALLEST, min(LARGEST, int(side) - _GAP))
    shown = [[_smaller(image, side) for image in row.images] for row in rows]
    widths = [max(line[column].width for line in shown) for column in range(len(prompts))]
    heights = [max(image.height for image in line) for line in shown]
    heads = [_head(prompt, width) for prompt, width in zip(prompts, widths, strict=True)]
    head = max(map(len, heads)) * palette.line_height(_SMALL) + _GAP
    lefts = [_MARGIN + _LABELS + sum(widths[:column]) + column * _GAP for column in range(len(prompts))]
    tops = [_TITLE + head + sum(heights[:row]) + row * _GAP for row in range(len(rows))]
    size = lefts[-1] + widths[-1] + _MARGIN, tops[-1] + heights[-1] + _MARGIN
    sheet = Image.new("RGB", size, palette.GROUND)
    draw = ImageDraw.Draw(sheet)
    text = palette.elided(palette.printable(title), 22, size[0] - 2 * _MARGIN)
    draw.text((_MARGIN, 40), text, palette.TEXT, palette.font(22), anchor="lm")
    for lines, left in zip(heads, lefts, strict=True):
        palette.draw_lines(draw, (left, _TITLE), lines, _SMALL, palette.QUIET)
    for row, line, top, height in zip(rows, shown, tops, heights, strict=True):
        _draw_label(draw, row, top)
        for image, left in zip(line, lefts, strict=True):
            palette.paste_rounded(sheet, image, (left, top))
        if row.is_chosen:
            box = _MARGIN - _GAP // 2, top - _GAP // 2, size[0] - _MARGIN + _GAP // 2, top + height + _GAP // 2 - 1
            draw.rectangle(box, outline=palette.BLUE, width=2)
    return sheet


def _smaller(image: Image.Image, side: int) -> Image.Image:
    """A picture no larger than a cell."""
    shown = image.convert("RGB")
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shown


def _head(prompt: str, width: int) -> list[str]:
    """A prompt in the lines that stand above its column."""
    lines = palette.wrapped(prompt, _SMALL, width) or ["(no prompt)"]
    if len(lines) <= _LINES:
        return lines
    return [*lines[: _LINES - 1], palette.elided(" ".join(lines[_LINES - 1 :]), _SMALL, width)]


def _draw_label(draw: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    """Write at the left of a row what it is."""
    parts = [(row.label, palette.TEXT, _LARGE), (row.note, palette.QUIET, _SMALL)]
    parts += [("chosen", palette.BLUE, _SMALL)] if row.is_chosen else []
    height = top + 4
    for text, color, letters in parts:
        lines = palette.wrapped(text, letters, _LABELS - _GAP)
        palette.draw_lines(draw, (_MARGIN, height), lines, letters, color)
        height += len(lines) * palette.line_height(letters)
