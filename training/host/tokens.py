"""How many tokens a text has, by the CLIP that will read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


def token_counter(clip: Any) -> Callable[[str], int]:
    """Make a function that counts a text's tokens, without those that begin, end and pad each piece of it.

    It holds the tokenizer alone, and not the model.
    """
    tokenizer, options = clip.tokenizer, dict(clip.tokenizer_options)
    more = {"tokenizer_options": options} if options else {}

    def pieces(text: str) -> list[list[int]]:
        """The ids of each piece that the encoder reads at a time; CLIP takes 75 and their begin and end."""
        chunks = next(iter(tokenizer.tokenize_with_weights(text, False, **more).values()))
        return [[int(entry[0]) for entry in chunk if isinstance(entry[0], int)] for chunk in chunks]

    pad = pieces("")[-1][-1]

    def length(piece: list[int]) -> int:
        while piece and piece[-1] == pad:
            piece = piece[:-1]
        return len(piece)

    around = length(pieces("")[0])
    return lru_cache(maxsize=20_000)(lambda text: sum(max(0, length(piece) - around) for piece in pieces(text)))
