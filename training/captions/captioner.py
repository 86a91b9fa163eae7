"""Captioners: one file each, behind one Protocol. None is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image


class Captioner(Protocol):
    """What turns pictures into captions.

    Attributes:
        identity: Changes when the model or a setting does; part of the key under which captions are kept.
        batch: How many pictures it takes at a time at most.
    """

    identity: str
    batch: int

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Caption some pictures, RGB and upright, at most `batch` of them."""
