"""One picture that shows what the doctor found: each finding with the pictures it is about."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ..data.dataset import Dataset, Picture, name_in
from ..data.images import read_rgb
from ..errors import UnreadableImage
from .doctor import NOTE, SPOILS, Examination, Finding

_WIDTH, _MARGIN, _GAP, _TILE, _LINE = 1200, 32, 8, 108, 26
_GROUND, _TEXT, _QUIET = (30, 31, 34), (230, 231, 234), (148, 152, 161)
_MARKS = {SPOILS: (226, 84, 84), NOTE: (110, 150, 220)}
_MARK = (230, 170, 60)
_MOST = 10  # pictures of a finding that are shown


def report_sheet(dataset: Dataset, examination: Examination) -> Image.Image:
    """Draw the findings, the worst first; RGB, 1200 pixels wide."""
    by_name = {name_in(dataset, picture): picture for picture in dataset.pictures}
    blocks = [(finding, _pictures(finding, by_name)) for finding in examination.findings]
    height = 2 * _MARGIN + 40 + sum(_block_height(pictures) for _, pictures in blocks)
    sheet = Image.new("RGB", (_WIDTH, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    title = f"{examination.pictures} pictures, {len(blocks)} findings" if blocks else examination.text()
    draw.text((_MARGIN, _MARGIN), title, _TEXT, ImageFont.load_default(22))
    top = _MARGIN + 44
    for finding, pictures in blocks:
        _draw_block(sheet, draw, finding, pictures, dataset.background, top)
        top += _block_height(pictures)
    return sheet


def _pictures(finding: Finding, by_name: dict[str, Picture]) -> list[Picture]:
    """The first pictures of a finding; a group of duplicates counts with all of its own."""
    named = [name for entry in finding.files for name in entry.split(" = ")]
    found = []
    for name in named:
        # Some carry a number behind their name, such as how much they are enlarged.
        picture = by_name.get(name) or by_name.get(name.rpartition(" (")[0])
        if picture:
            found.append(picture)
    return found[:_MOST]


def _block_height(pictures: list[Picture]) -> int:
    return 2 * _LINE + (_TILE + _GAP if pictures else 0) + 14


def _draw_block(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, finding: Finding, pictures: list[Picture],
    background: tuple[int, int, int], top: int,
) -> None:  # fmt: skip
    draw.rectangle((_MARGIN, top + 4, _MARGIN + 5, top + 2 * _LINE - 6), _MARKS.get(finding.severity, _MARK))
    draw.text((_MARGIN + 16, top), finding.what, _TEXT, ImageFont.load_default(16))
    draw.text((_MARGIN + 16, top + _LINE - 3), finding.advice, _QUIET, ImageFont.load_default(14))
    left = _MARGIN + 16
    for picture in pictures:
        try:
            small = read_rgb(picture.path, background)
            small.thumbnail((_TILE, _TILE))
        except UnreadableImage:
            small = Image.new("RGB", (_TILE, _TILE), (70, 40, 40))
        sheet.paste(small, (left, top + 2 * _LINE))
        left += _TILE + _GAP
