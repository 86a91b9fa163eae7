"""What the picture sheets share: the colours, the font, and text that fits its place.

The font built into Pillow looks the same on every system, but it is Latin only. Text is therefore drawn through
`printable`, which leaves no character that the font would show as a box.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDTH = 1200  # pixels of every sheet

GROUND: Color = (30, 31, 34)
WELL: Color = (43, 45, 49)
LINE: Color = (84, 88, 97)
TEXT: Color = (230, 231, 234)
QUIET: Color = (148, 152, 161)
# `web/dataset_report.js` uses red, amber and blue as well.
RED: Color = (240, 110, 104)
AMBER: Color = (255, 190, 92)
BLUE: Color = (122, 196, 255)
WINE: Color = (150, 38, 60)

_LEAST_SIZE = 8  # pixels; smaller letters cannot be read
_SAME = str.maketrans({"×": "x", "–": "-", "—": "-"})


@functools.lru_cache
def font(size: int) -> Font:
    """Return Pillow's built-in font in a size."""
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    """Return whether the font can draw a character."""
    if unicodedata.category(character) in ("Cc", "Cf", "Cs"):  # control characters and halves of characters
        return False
    drawn, missing = (font(16).getmask(text) for text in (character, "\U0010ffff"))
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def printable(text: str, otherwise: str | None = None) -> str:
    """Replace what the font cannot draw: é by e, and the letters of other scripts by an ellipsis.

    Args:
        text: Any text; line breaks and tabs become spaces.
        otherwise: What to return instead if letters of another script are in the text.
    """
    bare = "".join(c for c in unicodedata.normalize("NFD", text.translate(_SAME)) if not unicodedata.combining(c))
    bare = " ".join(bare.split())
    marked = "".join(c if _has_glyph(c) else "\0" for c in bare)
    if otherwise is not None and "\0" in marked:
        return otherwise
    return re.sub(r"\0( ?\0)*", "…", marked)


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Break a text into lines no wider than `width`, inside a word only if the word alone is wider."""
    lines, line = [], ""
    measure = font(size).getlength
    for word in printable(text).split():
        if measure(f"{line} {word}".strip()) <= width:
            line = f"{line} {word}".strip()
            continue
        if line:
            lines.append(line)
        line = word
        while measure(line) > width:
            widths = [measure(line[:end]) for end in range(2, min(len(line), int(width)) + 1)]
            fits = 1 + bisect_right(widths, width)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line] if line else lines


def elided(name: str, size: int, width: float) -> str:
    """Shorten a file name to a width by an ellipsis in its middle: its two ends tell it from others."""
    measure = font(size).getlength
    if measure(name) <= width:
        return name
    for kept in range(len(name) - 1, 1, -1):
        short = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
        if measure(short) <= width:
            return short
    return "…"


def fitting(text: str, size: int, width: float, height: float = WIDTH) -> Font | None:
    """Return the font in the largest size up to `size` in which a text fits; None if it fits in no legible size."""
    for smaller in range(min(size, int(height)), _LEAST_SIZE - 1, -1):
        if font(smaller).getlength(text) <= width:
            return font(smaller)
    return None


def draw_lines(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], lines: Sequence[str], size: int, color: Color
) -> None:
    """Draw lines of text one below the other, `line_height` apart, from an upper left corner."""
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * line_height(size)), line, color, font(size))


def line_height(size: int) -> int:
    """Return the distance in pixels from one line of text to the next."""
    return round(size * 1.4)


def unreadable(size: tuple[int, int]) -> Image.Image:
    """Return what stands in for a picture that cannot be read."""
    image = Image.new("RGB", size, WELL)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=RED)
    letters = fitting("damaged", 13, size[0] - 8, size[1] - 4)
    if letters:
        draw.text((size[0] / 2, size[1] / 2), "damaged", RED, letters, anchor="mm")
    return image


def paste_rounded(sheet: Image.Image, image: Image.Image, place: tuple[int, int]) -> None:
    """Paste a picture with corners of radius 3, drawn at four times the size so that they are smooth."""
    mask = Image.new("L", (image.width * 4, image.height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 12, fill=255)
    sheet.paste(image, place, mask.resize(image.size, Image.Resampling.BOX))
