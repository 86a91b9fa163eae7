"""The Protocol of captioners. Each has a file of its own and an entry in `sources.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image


class Captioner(Protocol):
    """Turns pictures into captions.

    Attributes:
        identity: Changes when the model or a setting does; part of the cache key of its captions.
        batch: Maximum number of pictures per call.
    """

    identity: str
    batch: int

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Caption at most `batch` pictures, RGB and upright."""
