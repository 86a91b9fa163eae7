"""How many tokens a text has, by the CLIP that will read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def token_counter(clip: Any) -> Callable[[str], int]:
    """Make a function that counts a text's tokens, without those that begin, end and pad it."""

    def ids(text: str) -> list[int]:
        chunks = next(iter(clip.tokenize(text).values()))
        return [int(entry[0]) for chunk in chunks for entry in chunk if isinstance(entry[0], int)]

    pad = ids("")[-1]

    def without_padding(found: list[int]) -> int:
        while found and found[-1] == pad:
            found.pop()
        return len(found)

    around = without_padding(ids(""))
    return lambda text: max(0, without_padding(ids(text)) - around)
