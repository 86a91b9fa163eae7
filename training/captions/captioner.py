"""The Protocol of captioners. Each has a file of its own and an entry in `sources.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image


class Captioner(Protocol):
    """Turns pictures into captions.

    Attributes:
        identity: Changes with the model or a setting. Part of the key of cached captions.
        batch: Maximum number of pictures at a time.
    """

    identity: str
    batch: int

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Caption some pictures, RGB and upright, at most `batch` of them."""
