"""One picture of what the doctor found: each finding with its pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..data.dataset import Dataset, Picture, name_in
from ..data.images import read_rgb
from ..errors import UnreadableImage
from ..events import counted
from . import palette
from .doctor import NOTE, SPOILS, WEAKENS, Examination, Finding

_MARGIN, _GAP, _TILE = 32, 8, 94
_INDENT = _MARGIN + 16  # left edge of text and pictures, right of the coloured bar
_HEADER = 76
_BLOCK_GAP = 16
_NAME_HEIGHT = 18  # below a picture
_WHAT, _ADVICE, _NAME = 16, 14, 11  # sizes of letters
_MOST = 10  # pictures shown of a finding
_KINDS = {
    SPOILS: ("spoils the training", palette.RED),
    WEAKENS: ("weakens it", palette.AMBER),
    NOTE: ("worth knowing", palette.BLUE),
}


@dataclass(frozen=True)
class _Block:
    """One finding, laid out but not drawn.

    Attributes:
        what: Lines of what was found.
        advice: Lines of what to do.
        pictures: The pictures shown, each with the name below it.
        more: Number of pictures not shown.
    """

    severity: int
    what: list[str]
    advice: list[str]
    pictures: list[tuple[Picture, str]]
    more: int

    @property
    def text_height(self) -> int:
        return len(self.what) * palette.line_height(_WHAT) + len(self.advice) * palette.line_height(_ADVICE)

    @property
    def height(self) -> int:
        return self.text_height + (_GAP + _TILE + _NAME_HEIGHT if self.pictures else 0)


def report_sheet(dataset: Dataset, examination: Examination) -> Image.Image:
    """Draw the findings, the worst first.

    Of each finding the first ten pictures are shown and the rest is counted.

    Returns:
        An RGB picture, 1200 pixels wide.
    """
    numbered: dict[str, tuple[int, Picture]] = {}
    for number, picture in enumerate(dataset.pictures, 1):
        numbered.setdefault(name_in(dataset, picture), (number, picture))
    blocks = [_lay_out(finding, numbered) for finding in examination.findings]
    height = _HEADER + sum(block.height + _BLOCK_GAP for block in blocks) + _MARGIN - _BLOCK_GAP
    sheet = Image.new("RGB", (palette.WIDTH, height), palette.GROUND)
    draw = ImageDraw.Draw(sheet)
    title = f"{counted(examination.pictures, 'picture')}, {counted(len(blocks), 'finding')}"
    draw.text((_MARGIN, 40), title if blocks else examination.text(), palette.TEXT, palette.font(22), anchor="lm")
    if blocks:
        _draw_legend(draw)
    top = _HEADER
    for block in blocks:
        _draw_block(sheet, block, dataset.background, top)
        top += block.height + _BLOCK_GAP
    return sheet


def _lay_out(finding: Finding, numbered: dict[str, tuple[int, Picture]]) -> _Block:
    """Break the finding's text into lines and choose the pictures that are shown."""
    found = _pictures(finding, numbered)
    room = palette.WIDTH - _MARGIN - _INDENT
    return _Block(
        finding.severity,
        palette.wrapped(finding.what, _WHAT, room),
        palette.wrapped(finding.advice, _ADVICE, room),
        [(picture, _caption(number, picture)) for number, picture in found[:_MOST]],
        max(0, len(found) - _MOST),
    )


def _pictures(finding: Finding, numbered: dict[str, tuple[int, Picture]]) -> list[tuple[int, Picture]]:
    """The pictures of a finding, each once and with its number in the dataset; a group of duplicates is all of its."""
    names = []
    for entry in finding.files:
        for name in [entry] if entry in numbered else entry.split(" = "):
            # Some carry a remark after their name, such as how much they are enlarged.
            while name not in numbered and " (" in name:
                name = name.rpartition(" (")[0]
            names.append(name)
    return [numbered[name] for name in dict.fromkeys(names) if name in numbered]


def _caption(number: int, picture: Picture) -> str:
    """The file name as it stands below a picture, or its number where the font lacks the letters."""
    return palette.elided(palette.printable(picture.path.name, f"picture {number}"), _NAME, _TILE)


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    """Say at the upper right what each colour means."""
    font, right = palette.font(14), palette.WIDTH - _MARGIN
    for text, color in reversed(_KINDS.values()):
        right -= math.ceil(font.getlength(text))
        draw.text((right, 40), text, palette.QUIET, font, anchor="lm")
        draw.rounded_rectangle((right - 22, 33, right - 8, 47), 3, fill=color)
        right -= 22 + 20


def _draw_block(sheet: Image.Image, block: _Block, background: palette.Color, top: int) -> None:
    """Draw one finding from its upper edge on."""
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((_MARGIN, top + 2, _MARGIN + 5, top + block.text_height - 2), _KINDS[block.severity][1])
    palette.draw_lines(draw, (_INDENT, top), block.what, _WHAT, palette.TEXT)
    below = top + len(block.what) * palette.line_height(_WHAT)
    palette.draw_lines(draw, (_INDENT, below), block.advice, _ADVICE, palette.QUIET)
    left, top = _INDENT, top + block.text_height + _GAP
    for picture, name in block.pictures:
        try:
            small = read_rgb(picture.path, background)
            small.thumbnail((_TILE, _TILE))
        except UnreadableImage:
            small = palette.unreadable((_TILE, _TILE))
        inset = ((_TILE - small.width) // 2, (_TILE - small.height) // 2)
        palette.paste_rounded(sheet, small, (left + inset[0], top + inset[1]))
        place = (left + _TILE / 2, top + _TILE + _NAME_HEIGHT / 2 + 1)
        draw.text(place, name, palette.QUIET, palette.font(_NAME), anchor="mm")
        left += _TILE + _GAP
    if block.more:
        draw.rounded_rectangle((left, top, left + _TILE - 1, top + _TILE - 1), 4, fill=palette.WELL)
        text = f"+{block.more} more"
        middle = (left + _TILE / 2, top + _TILE / 2)
        draw.text(middle, text, palette.QUIET, palette.fitting(text, 15, _TILE - 8), anchor="mm")
