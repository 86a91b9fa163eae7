"""Counts the tokens of a text with the tokenizer of a CLIP."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


def token_counter(clip: Any) -> Callable[[str], int]:
    """Return a function that counts a text's tokens, without the start, end and padding tokens of each chunk.

    The function keeps the tokenizer alive, not the model.
    """
    tokenizer, options = clip.tokenizer, dict(clip.tokenizer_options)
    more = {"tokenizer_options": options} if options else {}

    def pieces(text: str) -> list[list[int]]:
        """Return the ids of each chunk the encoder reads; for CLIP, 75 tokens with start and end."""
        chunks = next(iter(tokenizer.tokenize_with_weights(text, False, **more).values()))
        return [[int(entry[0]) for entry in chunk if isinstance(entry[0], int)] for chunk in chunks]

    pad = pieces("")[-1][-1]

    def length(piece: list[int]) -> int:
        while piece and piece[-1] == pad:
            piece = piece[:-1]
        return len(piece)

    around = length(pieces("")[0])
    return lru_cache(maxsize=20_000)(lambda text: sum(max(0, length(piece) - around) for piece in pieces(text)))
