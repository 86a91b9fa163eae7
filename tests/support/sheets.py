"""Every text that is drawn on a sheet, with the box it fills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from PIL import Image, ImageDraw

WIDTH = 1200


@dataclass
class Drawn:
    """Texts drawn on pictures as wide as a sheet, each with its (left, top, right, bottom).

    Attributes:
        texts: In the order they were drawn.
        small: The same of smaller pictures, such as thumbnails, with the size of the picture.
    """

    texts: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    small: list[tuple[str, tuple[float, float, float, float], tuple[int, int]]] = field(default_factory=list)

    def all(self) -> str:
        """Every text, one a line."""
        return "\n".join(text for text, _ in self.texts)

    def check(self, sheet: Image.Image) -> None:
        """Make sure that no text leaves its picture, none covers another and none has a character like a box."""
        assert self.texts
        for text, box in self.texts:
            assert _inside(box, sheet.size), f"{text!r} at {box} leaves a sheet of {sheet.size}"
        for number, (text, one) in enumerate(self.texts):
            for other_text, other in self.texts[:number]:
                apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
                assert apart, f"{text!r} covers {other_text!r}"
        for text, box, size in self.small:
            assert _inside(box, size), f"{text!r} at {box} leaves a picture of {size}"
        for text in [self.all(), *(text for text, _, _ in self.small)]:
            for character in set(text) - {"\n"}:
                assert not _is_box(character), f"{character!r} is drawn as a box"


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    return min(box[:2]) >= 0 and box[2] <= size[0] and box[3] <= size[1]


def _is_box(character: str) -> bool:
    from lora_workbench.training.review import palette

    drawn, missing = (bytes(palette.font(40).getmask(text)) for text in (character, "\uffff"))
    return drawn == missing


@contextmanager
def drawn_text() -> Iterator[Drawn]:
    """Record what is written inside the block."""
    drawn = Drawn()
    write = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, content: str, fill: Any = None, font: Any = None, anchor: Any = None) -> None:
        assert font is not None
        box = self.textbbox(xy, content, font, anchor)
        size = self.im.size
        if size[0] == WIDTH:
            drawn.texts.append((content, box))
        else:
            drawn.small.append((content, box, size))
        write(self, xy, content, fill, font, anchor)

    with patch.object(ImageDraw.ImageDraw, "text", text):
        yield drawn
