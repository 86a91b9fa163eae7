"""One picture of which timesteps are trained how often, and how much of the loss each has."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from . import palette

BINS = 50
_MARGIN, _LEFT, _HEADER, _PLOT, _FOOTER = 32, 92, 84, 320, 76
_SMALL, _NOTE = 14, 16  # sizes of letters


def shares(times: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """The share of each of `BINS` equal parts of the schedule, in percent.

    Args:
        times: Timesteps that were drawn, 0 to 1.
        weights: Of each; None: all count as equal.
    """
    found = [0.0] * BINS
    for time, weight in zip(times, weights or [1.0] * len(times), strict=True):
        found[min(int(time * BINS), BINS - 1)] += weight
    total = sum(found) or 1.0
    return [100 * part / total for part in found]


def timestep_sheet(title: str, drawn: Sequence[float], weighed: Sequence[float] | None, note: str = "") -> Image.Image:
    """Draw how often each part of the schedule is trained.

    Args:
        title: What was drawn, in one line.
        drawn: The share of draws of each part, in percent, low noise first.
        weighed: The share of the loss weight of each part, or None where every timestep weighs the same.
        note: A sentence below the plot.

    Returns:
        An RGB picture, 1200 pixels wide.
    """
    lines = palette.wrapped(note, _NOTE, palette.WIDTH - 2 * _MARGIN)
    sheet = _blank(title, _HEADER + _PLOT + _FOOTER + len(lines) * palette.line_height(_NOTE))
    draw = ImageDraw.Draw(sheet)
    most = max([*drawn, *(weighed or ())])
    top = _ceiling(most)
    _draw_axes(draw, top)
    width = (palette.WIDTH - _MARGIN - _LEFT) / len(drawn)
    bottom = _HEADER + _PLOT
    for number, share in enumerate(drawn):
        if height := round(share / top * _PLOT):
            left = _LEFT + number * width
            draw.rectangle((round(left) + 1, bottom - height, round(left + width) - 1, bottom - 1), palette.BLUE)
    if weighed is not None:
        points = [
            (_LEFT + (number + 0.5) * width, bottom - share / top * _PLOT) for number, share in enumerate(weighed)
        ]
        draw.line(points, palette.AMBER, 3, joint="curve")
    _draw_legend(draw, weighed is not None)
    palette.draw_lines(draw, (_MARGIN, bottom + _FOOTER - _MARGIN // 2), lines, _NOTE, palette.AMBER)
    return sheet


def message_sheet(title: str, text: str) -> Image.Image:
    """A sheet without a plot, which says what to do for one."""
    sheet = _blank(title, 140)
    lines = palette.wrapped(text, _NOTE, palette.WIDTH - 2 * _MARGIN)
    palette.draw_lines(ImageDraw.Draw(sheet), (_MARGIN, _HEADER), lines, _NOTE, palette.QUIET)
    return sheet


def _blank(title: str, height: int) -> Image.Image:
    sheet = Image.new("RGB", (palette.WIDTH, height), palette.GROUND)
    text = palette.elided(palette.printable(title), 22, palette.WIDTH * 0.6)
    ImageDraw.Draw(sheet).text((_MARGIN, 40), text, palette.TEXT, palette.font(22), anchor="lm")
    return sheet


def _ceiling(most: float) -> float:
    """The upper end of the axis: 1, 2 or 5 times a power of ten, at least as high as the highest bar."""
    power: float = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return next(power * step for step in (1, 2, 5, 10) if power * step >= most)


def _draw_axes(draw: ImageDraw.ImageDraw, top: float) -> None:
    """Draw the frame, with percent at the left and timesteps below."""
    font, right, bottom = palette.font(_SMALL), palette.WIDTH - _MARGIN, _HEADER + _PLOT
    draw.rectangle((_LEFT, _HEADER, right, bottom), palette.WELL)
    for part in range(5):
        height = bottom - part / 4 * _PLOT
        draw.line((_LEFT, height, right, height), palette.LINE)
        draw.text((_LEFT - 10, height), f"{top * part / 4:.3g}%", palette.QUIET, font, anchor="rm")
    for part in range(6):
        place = _LEFT + part / 5 * (right - _LEFT)
        anchor = "rt" if part == 5 else "mt"
        label = {0: "0 (clean)", 5: "1000 (noise)"}.get(part, str(200 * part))
        draw.text((place, bottom + 10), label, palette.QUIET, font, anchor=anchor)


def _draw_legend(draw: ImageDraw.ImageDraw, with_weights: bool) -> None:
    """Say at the upper right what each colour means."""
    kinds = [("draws", palette.BLUE), ("loss weight", palette.AMBER)][: 2 if with_weights else 1]
    font, right = palette.font(_SMALL), palette.WIDTH - _MARGIN
    for text, color in reversed(kinds):
        right -= math.ceil(font.getlength(text))
        draw.text((right, 40), text, palette.QUIET, font, anchor="lm")
        draw.rounded_rectangle((right - 22, 33, right - 8, 47), 3, fill=color)
        right -= 22 + 20
