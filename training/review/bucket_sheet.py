"""One picture that shows what is trained: each bucket with its pictures, and what is cut off or padded."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..data.buckets import NOTICEABLE, enlargement
from ..data.dataset import Dataset, Picture
from ..data.images import read_picture
from ..data.masks import read_mask
from ..errors import UnreadableImage

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

_WIDTH = 1200
_MOST_HEIGHT = 4_000_000 // _WIDTH
_MARGIN = 32
_GUTTER = 8
_BLOCK_GAP = (36, 28)
_TITLE_HEIGHT = 28
_HEADER_HEIGHT = 74
_SMALLEST_TILE = 40
_WIDEST = 1.75  # of a thumbnail, in tile heights; a wider picture is shown less high

_GROUND: Color = (30, 31, 34)
_WELL: Color = (43, 45, 49)
_LINE: Color = (84, 88, 97)
_TEXT: Color = (230, 231, 234)
_QUIET: Color = (148, 152, 161)
_TRAINED: Color = (122, 196, 255)
_ENLARGED: Color = (255, 190, 92)
_DAMAGED: Color = (240, 110, 104)
_MASKED: Color = (150, 38, 60)


@dataclass(frozen=True)
class _Block:
    """One bucket on the sheet, laid out but not drawn; places are relative to its own corner.

    Attributes:
        bucket: (width, height) in pixels.
        summary: What stands beside the bucket's size.
        cells: The pictures shown, each with its (left, top, right, bottom).
        more: Where the number of the pictures not shown stands, if any are, and that text.
        size: (width, height) of the block.
    """

    bucket: tuple[int, int]
    summary: str
    cells: tuple[tuple[Picture, Box], ...]
    more: tuple[Box, str] | None
    size: tuple[int, int]


def bucket_sheet(dataset: Dataset, *, tile: int = 112, max_per_bucket: int = 12) -> Image.Image:
    """Draw every bucket with its pictures.

    The whole picture is shown; what is cut away is dimmed, what is trained is outlined, padding is hatched. How
    many times a picture is enlarged stands in its corner, and one that cannot be read says `damaged`. A sheet of
    very many buckets gets smaller and fewer thumbnails, and at last leaves buckets out: it never has more than
    4 million pixels.

    Args:
        dataset: A bucketed dataset.
        tile: Height of a thumbnail in pixels.
        max_per_bucket: Pictures shown of each bucket; the rest is counted in words.

    Returns:
        An RGB picture, 1200 pixels wide.

    Raises:
        UserError: A picture has another size than the dataset says.
    """
    buckets = dataset.buckets()
    while True:
        blocks = [_lay_out(bucket, pictures, tile, max_per_bucket) for bucket, pictures in buckets.items()]
        places, bottom = _flow(blocks)
        if bottom + _MARGIN <= _MOST_HEIGHT or (tile == _SMALLEST_TILE and max_per_bucket == 1):
            break
        tile, max_per_bucket = max(_SMALLEST_TILE, tile * 3 // 4), max(1, max_per_bucket * 3 // 4)
    height = min(bottom + _MARGIN, _MOST_HEIGHT)
    sheet = Image.new("RGB", (_WIDTH, height), _GROUND)
    _draw_header(sheet, dataset)
    left_out = 0
    for block, (left, top) in zip(blocks, places, strict=True):
        if top + block.size[1] > height - _MARGIN:
            left_out += 1
        else:
            _draw_block(sheet, block, (left, top), dataset.background)
    if left_out:
        text = f"and {left_out} more {'bucket' if left_out == 1 else 'buckets'}"
        ImageDraw.Draw(sheet).text((_MARGIN, height - _MARGIN // 2), text, _QUIET, _font(15), anchor="lm")
    return sheet


def _lay_out(bucket: tuple[int, int], pictures: list[Picture], tile: int, most: int) -> _Block:
    """Arrange one bucket's thumbnails in lines under its title."""
    shown, rest = pictures[:most], len(pictures) - most
    sizes = [_thumbnail_size(picture, tile) for picture in shown]
    if rest > 0:
        sizes.append((tile, min(tile, max(height for _, height in sizes))))
    boxes: list[Box] = []
    top = _TITLE_HEIGHT
    for line in _lines(sizes):
        left, high = 0, max(height for _, height in line)
        for width, height in line:
            above = top + (high - height) // 2
            boxes.append((left, above, left + width, above + height))
            left += width + _GUTTER
        top += high + _GUTTER
    number = f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}"
    summary = f"{number} · {round(sum(picture.repeats for picture in pictures))} per epoch"
    title_width = _font(16).getlength(_title(bucket)) + 12 + _font(14).getlength(summary)
    width = max(math.ceil(title_width), max(box[2] for box in boxes))
    more = (boxes[-1], f"+{rest} more") if rest > 0 else None
    return _Block(bucket, summary, tuple(zip(shown, boxes, strict=False)), more, (width, top - _GUTTER))


def _lines(sizes: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Break a row of thumbnails into lines no wider than the sheet."""
    lines: list[list[tuple[int, int]]] = [[]]
    left = 0
    for size in sizes:
        if left and left + size[0] > _WIDTH - 2 * _MARGIN:
            lines.append([])
            left = 0
        lines[-1].append(size)
        left += size[0] + _GUTTER
    return lines


def _flow(blocks: list[_Block]) -> tuple[list[tuple[int, int]], int]:
    """Set blocks side by side, line after line: their corners, and where the last line ends."""
    places: list[tuple[int, int]] = []
    left, top, line = _MARGIN, _HEADER_HEIGHT, 0
    for block in blocks:
        width, height = block.size
        if left > _MARGIN and left + width > _WIDTH - _MARGIN:
            left, top, line = _MARGIN, top + line + _BLOCK_GAP[1], 0
        places.append((left, top))
        left, line = left + width + _BLOCK_GAP[0], max(line, height)
    return places, top + line


def _draw_header(sheet: Image.Image, dataset: Dataset) -> None:
    """Write the totals, and what the marks mean. No names: the font built into pillow is Latin only."""
    draw = ImageDraw.Draw(sheet)
    count, buckets = len(dataset.pictures), len(dataset.buckets())
    totals = (
        f"{count} picture{'' if count == 1 else 's'} · {dataset.images_per_epoch} per epoch · "
        f"{buckets} bucket{'' if buckets == 1 else 's'}"
    )
    draw.text((_MARGIN, 36), totals, _TEXT, _font(22), anchor="lm")
    fits = {picture.placement.fit for picture in dataset.pictures if picture.placement is not None}
    marks = [("trained", _TRAINED)]
    marks += [("cut away", _LINE)] if "crop" in fits else []
    marks += [("padding", _LINE)] if "pad" in fits else []
    if any(picture.is_masked for picture in dataset.pictures):
        marks.append(("outside the mask", _MASKED))
    if any(enlargement(picture) >= NOTICEABLE for picture in dataset.pictures):
        marks.append(("enlarged", _ENLARGED))
    font, right = _font(14), _WIDTH - _MARGIN
    for text, color in reversed(marks):
        right -= math.ceil(font.getlength(text))
        draw.text((right, 36), text, _QUIET, font, anchor="lm")
        box = (right - 22, 29, right - 8, 43)
        if text == "padding":
            _paste_rounded(sheet, _hatching((14, 14)), box[:2])
        elif text == "trained":
            draw.rectangle(box, outline=color, width=2)
        else:
            draw.rounded_rectangle(box, 3, fill=color)
        right -= 22 + 20


def _draw_block(
    sheet: Image.Image, block: _Block, corner: tuple[int, int], background: Color
) -> None:
    """Draw one bucket with its upper left corner at `corner`."""
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    title = _title(block.bucket)
    draw.text((left, top + 16), title, _TEXT, _font(16), anchor="ls")
    draw.text((left + _font(16).getlength(title) + 12, top + 16), block.summary, _QUIET, _font(14), anchor="ls")
    for picture, (x0, y0, x1, y1) in block.cells:
        drawn = _draw_picture(picture, (x1 - x0, y1 - y0), background)
        _paste_rounded(sheet, drawn, (left + x0, top + y0))
    if block.more:
        (x0, y0, x1, y1), text = block.more
        place = (left + x0, top + y0, left + x1, top + y1)
        draw.rounded_rectangle((*place[:2], place[2] - 1, place[3] - 1), 4, fill=_WELL)
        middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
        draw.text(middle, text, _QUIET, _font(15), anchor="mm")


def _draw_picture(picture: Picture, size: tuple[int, int], background: Color) -> Image.Image:
    """One thumbnail, marked: the whole picture with its cut-out, or the whole bucket with its padding."""
    placement = picture.placement
    assert placement is not None, "not bucketed"
    width, height = size
    try:
        source = read_picture(picture, background)
        if picture.is_masked:
            source = _masked(source, read_mask(picture), picture.outside)
    except UnreadableImage:  # training leaves it out and names it; the sheet must not fail over it
        return _damaged(size)
    # The part of the thumbnail that is trained, in its pixels.
    frame = placement.scaled if placement.fit == "crop" else placement.bucket
    inner = placement.bucket if placement.fit == "crop" else placement.scaled
    left, top = (round(placement.offset[i] * side / frame[i]) for i, side in enumerate((width, height)))
    box = (
        left,
        top,
        max(left + 1, round((placement.offset[0] + inner[0]) * width / frame[0])),
        max(top + 1, round((placement.offset[1] + inner[1]) * height / frame[1])),
    )
    if placement.fit == "crop":
        whole = source.resize((width, height), Image.Resampling.LANCZOS)
        drawn = Image.blend(whole, Image.new("RGB", whole.size, _GROUND), 0.6)
        drawn.paste(whole.crop(box), box[:2])
    else:
        drawn = _hatching((width, height))
        drawn.paste(source.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box[:2])
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=_TRAINED)
    times = enlargement(picture)
    if times >= NOTICEABLE:
        _draw_badge(drawn, f"{times:.1f}x")
    return drawn


def _masked(source: Image.Image, mask: Image.Image, outside: float) -> Image.Image:
    """A picture under a red glass where its loss counts less, the redder the less."""
    shade = mask.point([round(255 - (255 - value) * (1 - outside) * 0.75) for value in range(256)])
    return Image.composite(source, Image.new("RGB", source.size, _MASKED), shade)


def _damaged(size: tuple[int, int]) -> Image.Image:
    """What stands for a picture that cannot be read."""
    image = Image.new("RGB", size, _WELL)
    middle = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).text(middle, "damaged", _DAMAGED, _font(13), anchor="mm")
    return image


def _draw_badge(image: Image.Image, text: str) -> None:
    """A small label in the lower right corner."""
    font = _font(11)
    right, bottom = image.width - 4, image.height - 4
    box = (right - math.ceil(font.getlength(text)) - 8, bottom - 15, right, bottom)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(box, 4, fill=_ENLARGED)
    draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, _GROUND, font, anchor="mm")


def _hatching(size: tuple[int, int]) -> Image.Image:
    """Fine diagonal lines: the mark of padding."""
    image = Image.new("RGB", size, _WELL)
    draw = ImageDraw.Draw(image)
    for start in range(-size[1], size[0], 7):
        draw.line((start, size[1], start + size[1], 0), fill=_LINE)
    return image


def _paste_rounded(sheet: Image.Image, image: Image.Image, place: tuple[int, int]) -> None:
    """Paste with corners of radius 3, drawn four times as large so that they come out smooth."""
    mask = Image.new("L", (image.width * 4, image.height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 12, fill=255)
    sheet.paste(image, place, mask.resize(image.size, Image.Resampling.BOX))


def _thumbnail_size(picture: Picture, tile: int) -> tuple[int, int]:
    """Size in which a picture (crop) or its bucket (pad) is shown."""
    assert picture.placement is not None, "not bucketed"
    return _inside(picture.size if picture.placement.fit == "crop" else picture.placement.bucket, tile)


def _inside(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """The size of a shape fitted into a tile, which is wider than high."""
    scale = min(tile / size[1], tile * _WIDEST / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _title(bucket: tuple[int, int]) -> str:
    return f"{bucket[0]} x {bucket[1]}"


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font built into pillow: the same letters on every system."""
    return ImageFont.load_default(size)
