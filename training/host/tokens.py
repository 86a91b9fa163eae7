"""How many tokens a text has, by the CLIP that will read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


def token_counter(clip: Any) -> Callable[[str], int]:
    """Make a function that counts a text's tokens, without those that begin, end and pad it.

    It holds the tokenizer alone, and not the model.
    """
    tokenizer, options = clip.tokenizer, dict(clip.tokenizer_options)
    more = {"tokenizer_options": options} if options else {}

    def ids(text: str) -> list[int]:
        chunks = next(iter(tokenizer.tokenize_with_weights(text, False, **more).values()))
        return [int(entry[0]) for chunk in chunks for entry in chunk if isinstance(entry[0], int)]

    pad = ids("")[-1]

    def without_padding(found: list[int]) -> int:
        while found and found[-1] == pad:
            found.pop()
        return len(found)

    around = without_padding(ids(""))
    return lru_cache(maxsize=20_000)(lambda text: max(0, without_padding(ids(text)) - around))
