"""One picture of what is trained: each bucket with its pictures, and what is cut away or padded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..data.buckets import NOTICEABLE, enlargement
from ..data.dataset import Dataset, Picture
from ..data.images import read_picture
from ..data.masks import read_mask
from ..errors import UnreadableImage
from ..events import counted
from . import palette

Box = tuple[int, int, int, int]

_MOST_HEIGHT = 4_000_000 // palette.WIDTH
_MARGIN = 32
_GUTTER = 8
_BLOCK_GAP = (36, 28)
_TITLE_HEIGHT = 28
_HEADER_HEIGHT = 74
_SMALLEST_TILE = 40
_LEAST_HEIGHT = 20  # of the cell that counts the pictures not shown
_WIDEST = 1.75  # width of a thumbnail in tile heights; a wider picture is shown less high


@dataclass(frozen=True)
class _Block:
    """One bucket on the sheet, laid out but not drawn. Positions are relative to its upper left corner.

    Attributes:
        bucket: (width, height) in pixels.
        summary: Text after the bucket's size.
        cells: The pictures shown, each with its (left, top, right, bottom).
        more: Box and text that count the pictures not shown; None if all are shown.
        size: (width, height) of the block.
    """

    bucket: tuple[int, int]
    summary: str
    cells: tuple[tuple[Picture, Box], ...]
    more: tuple[Box, str] | None
    size: tuple[int, int]


def bucket_sheet(dataset: Dataset, *, tile: int = 112, max_per_bucket: int = 12) -> Image.Image:
    """Draw every bucket with its pictures.

    Each picture is shown whole. The trained part is outlined, what is cut away is dimmed, padding is hatched. A
    badge says how many times a picture is enlarged. A picture that cannot be read says `damaged`. The sheet never
    has more than 4 million pixels: with very many buckets it shows smaller and fewer thumbnails, then fewer buckets.

    Args:
        dataset: A bucketed dataset.
        tile: Height of a thumbnail in pixels.
        max_per_bucket: Most pictures shown per bucket; the rest is counted.

    Returns:
        An RGB picture, 1200 pixels wide.

    Raises:
        UserError: A picture's size differs from the one in the dataset.
    """
    buckets = dataset.buckets()
    while True:
        blocks = [_lay_out(bucket, pictures, tile, max_per_bucket) for bucket, pictures in buckets.items()]
        places, bottom = _flow(blocks)
        if bottom + _MARGIN <= _MOST_HEIGHT or (tile == _SMALLEST_TILE and max_per_bucket == 1):
            break
        tile, max_per_bucket = max(_SMALLEST_TILE, tile * 3 // 4), max(1, max_per_bucket * 3 // 4)
    height = min(bottom + _MARGIN, _MOST_HEIGHT)
    sheet = Image.new("RGB", (palette.WIDTH, height), palette.GROUND)
    _draw_header(sheet, dataset)
    left_out = 0
    for block, (left, top) in zip(blocks, places, strict=True):
        if top + block.size[1] > height - _MARGIN:
            left_out += 1
        else:
            _draw_block(sheet, block, (left, top), dataset.background)
    if left_out:
        text = f"and {counted(left_out, 'more bucket')}"
        ImageDraw.Draw(sheet).text((_MARGIN, height - _MARGIN // 2), text, palette.QUIET, palette.font(15), anchor="lm")
    return sheet


def _lay_out(bucket: tuple[int, int], pictures: list[Picture], tile: int, most: int) -> _Block:
    """Arrange one bucket's thumbnails in lines under its title."""
    shown, rest = pictures[:most], len(pictures) - most
    sizes = [_thumbnail_size(picture, tile) for picture in shown]
    if rest > 0:
        sizes.append((tile, min(tile, max(_LEAST_HEIGHT, *(height for _, height in sizes)))))
    boxes: list[Box] = []
    top = _TITLE_HEIGHT
    for line in _lines(sizes):
        left, high = 0, max(height for _, height in line)
        for width, height in line:
            above = top + (high - height) // 2
            boxes.append((left, above, left + width, above + height))
            left += width + _GUTTER
        top += high + _GUTTER
    repeats = round(sum(picture.repeats for picture in pictures))
    summary = f"{counted(len(pictures), 'picture')} · {repeats} per epoch"
    if any(picture.random_crop for picture in pictures):
        summary += " · random crop"
    title_width = palette.font(16).getlength(_title(bucket)) + 12 + palette.font(14).getlength(summary)
    width = max(math.ceil(title_width), max(box[2] for box in boxes))
    more = (boxes[-1], f"+{rest} more") if rest > 0 else None
    return _Block(bucket, summary, tuple(zip(shown, boxes, strict=False)), more, (width, top - _GUTTER))


def _lines(sizes: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Break a row of thumbnails into lines no wider than the sheet."""
    lines: list[list[tuple[int, int]]] = [[]]
    left = 0
    for size in sizes:
        if left and left + size[0] > palette.WIDTH - 2 * _MARGIN:
            lines.append([])
            left = 0
        lines[-1].append(size)
        left += size[0] + _GUTTER
    return lines


def _flow(blocks: list[_Block]) -> tuple[list[tuple[int, int]], int]:
    """Place blocks side by side, line after line. Return their upper left corners and the bottom of the last line."""
    places: list[tuple[int, int]] = []
    left, top, line = _MARGIN, _HEADER_HEIGHT, 0
    for block in blocks:
        width, height = block.size
        if left > _MARGIN and left + width > palette.WIDTH - _MARGIN:
            left, top, line = _MARGIN, top + line + _BLOCK_GAP[1], 0
        places.append((left, top))
        left, line = left + width + _BLOCK_GAP[0], max(line, height)
    return places, top + line


def _draw_header(sheet: Image.Image, dataset: Dataset) -> None:
    """Write what the marks mean at the right, and the totals in the room that is left."""
    draw = ImageDraw.Draw(sheet)
    fits = {picture.placement.fit for picture in dataset.pictures if picture.placement is not None}
    marks = [("trained", palette.BLUE)]
    marks += [("cut away", palette.LINE)] if "crop" in fits else []
    marks += [("padding", palette.LINE)] if "pad" in fits else []
    if any(picture.is_masked for picture in dataset.pictures):
        marks.append(("outside the mask", palette.WINE))
    if any(enlargement(picture) >= NOTICEABLE for picture in dataset.pictures):
        marks.append(("enlarged", palette.AMBER))
    font, right = palette.font(14), palette.WIDTH - _MARGIN
    for text, color in reversed(marks):
        right -= math.ceil(font.getlength(text))
        draw.text((right, 36), text, palette.QUIET, font, anchor="lm")
        box = (right - 22, 29, right - 8, 43)
        if text == "padding":
            palette.paste_rounded(sheet, _hatching((14, 14)), box[:2])
        elif text == "trained":
            draw.rectangle(box, outline=color, width=2)
        else:
            draw.rounded_rectangle(box, 3, fill=color)
        right -= 22 + 20
    totals = " · ".join([
        counted(len(dataset.pictures), "picture"),
        f"{dataset.images_per_epoch} per epoch",
        counted(len(dataset.buckets()), "bucket"),
    ])  # fmt: skip
    draw.text((_MARGIN, 36), totals, palette.TEXT, palette.fitting(totals, 22, right - _MARGIN), anchor="lm")


def _draw_block(sheet: Image.Image, block: _Block, corner: tuple[int, int], background: palette.Color) -> None:
    """Draw one bucket with its upper left corner at `corner`."""
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    title = _title(block.bucket)
    draw.text((left, top + 16), title, palette.TEXT, palette.font(16), anchor="ls")
    after_title = (left + palette.font(16).getlength(title) + 12, top + 16)
    draw.text(after_title, block.summary, palette.QUIET, palette.font(14), anchor="ls")
    for picture, (x0, y0, x1, y1) in block.cells:
        drawn = _draw_picture(picture, (x1 - x0, y1 - y0), background)
        palette.paste_rounded(sheet, drawn, (left + x0, top + y0))
    if block.more:
        (x0, y0, x1, y1), text = block.more
        place = (left + x0, top + y0, left + x1, top + y1)
        draw.rounded_rectangle((*place[:2], place[2] - 1, place[3] - 1), 4, fill=palette.WELL)
        middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
        for shown in (text, text.partition(" ")[0]):  # the number alone where the words have no room
            letters = palette.fitting(shown, 15, place[2] - place[0] - 2)
            if letters:
                draw.text(middle, shown, palette.QUIET, letters, anchor="mm")
                break


def _draw_picture(picture: Picture, size: tuple[int, int], background: palette.Color) -> Image.Image:
    """Draw one thumbnail with its marks: the whole picture and its crop, or the whole bucket and its padding."""
    placement = picture.placement
    assert placement is not None, "not bucketed"
    width, height = size
    try:
        source = read_picture(picture, background)
        if picture.is_masked:
            source = _masked(source, read_mask(picture), picture.outside)
    except UnreadableImage:  # training skips the picture and names it; the sheet must not fail
        return palette.unreadable(size)
    # The trained part, in pixels of the thumbnail.
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
        drawn = Image.blend(whole, Image.new("RGB", whole.size, palette.GROUND), 0.6)
        drawn.paste(whole.crop(box), box[:2])
    else:
        drawn = _hatching((width, height))
        drawn.paste(source.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box[:2])
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=palette.BLUE)
    times = enlargement(picture)
    if times >= NOTICEABLE:
        _draw_badge(drawn, f"{times:.1f}x")
    return drawn


def _masked(source: Image.Image, mask: Image.Image, outside: float) -> Image.Image:
    """Tint a picture red where its loss counts less: the redder, the less."""
    shade = mask.point([round(255 - (255 - value) * (1 - outside) * 0.75) for value in range(256)])
    return Image.composite(source, Image.new("RGB", source.size, palette.WINE), shade)


def _draw_badge(image: Image.Image, text: str) -> None:
    """Draw a small label in the lower right corner, without its text where the picture is too narrow for it."""
    letters = palette.fitting(text, 11, image.width - 16)
    width = math.ceil(letters.getlength(text)) + 8 if letters else 8
    right, bottom = image.width - min(4, image.width // 4), image.height - min(4, image.height // 4)
    box = (max(0, right - width), max(0, bottom - 15), right, bottom)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(box, 4, fill=palette.AMBER)
    if letters and bottom >= 15:
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, palette.GROUND, letters, anchor="mm")


def _hatching(size: tuple[int, int]) -> Image.Image:
    """Draw the fine diagonal lines that mark padding."""
    image = Image.new("RGB", size, palette.WELL)
    draw = ImageDraw.Draw(image)
    for start in range(-size[1], size[0], 7):
        draw.line((start, size[1], start + size[1], 0), fill=palette.LINE)
    return image


def _thumbnail_size(picture: Picture, tile: int) -> tuple[int, int]:
    """Return the size at which a picture (crop) or its bucket (pad) is shown."""
    assert picture.placement is not None, "not bucketed"
    return _inside(picture.size if picture.placement.fit == "crop" else picture.placement.bucket, tile)


def _inside(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """Return a shape's size scaled to fit a tile, which is wider than it is high."""
    scale = min(tile / size[1], tile * _WIDEST / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _title(bucket: tuple[int, int]) -> str:
    return f"{bucket[0]} x {bucket[1]}"
