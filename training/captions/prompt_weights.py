r"""How ComfyUI reads parentheses in a text: `(word)` as a weight of 1.1, `(word:1.5)` as 1.5, `\(` as a plain one.

The rules are those of the host's tokenizers (`comfy/sd1_clip.py`); a test compares them. Tokenizers of some newer
models ignore weights. They read parentheses as text, and `\(` as a plain parenthesis too.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

_OPEN, _CLOSE = "\0", "\1"  # stand for escaped parentheses; no caption has them
_STEP = 1.1


@dataclass(frozen=True)
class Weighted:
    """A part of a text in parentheses.

    Attributes:
        written: The part as written, with its parentheses.
        read: What is encoded of it. Of several pieces, the one whose weight is furthest from 1.
        weight: The weight of that piece.
    """

    written: str
    read: str
    weight: float

    @property
    def distance(self) -> float:
        """How far the weight is from 1, as a ratio's logarithm."""
        return abs(math.log(self.weight)) if 0 < self.weight < math.inf else math.inf


def pieces_of(text: str) -> list[tuple[str, float]]:
    """Split a text into the pieces that are encoded, each with its weight."""
    return [(_shown(piece), weight) for piece, weight in _pieces(_hidden(text), 1.0)]


def weighted_parts(text: str) -> list[Weighted]:
    """The parts of a text that are read as weights."""
    if "(" not in text or ")" not in text:
        return []
    found = []
    for item in filter(_is_group, _split(_hidden(text))):
        try:
            read = [Weighted(_shown(item), _shown(piece), weight) for piece, weight in _pieces(item, 1.0)]
        except RecursionError:  # the host fails as well
            read = [Weighted(_shown(item), _shown(item), math.inf)]
        empty = Weighted(_shown(item), "", 1.0)
        found.append(max(read, key=lambda part: part.distance, default=empty))
    return found


def unbalanced(text: str) -> int | None:
    """The place of the first parenthesis without a partner; None if all have one."""
    opened: list[int] = []
    for at, sign in enumerate(text):
        if sign not in "()" or text[max(0, at - 1) : at] == "\\":
            continue
        if sign == "(":
            opened.append(at)
        elif not opened:
            return at
        else:
            opened.pop()
    return opened[0] if opened else None


def _hidden(text: str) -> str:
    return text.replace("\\(", _OPEN).replace("\\)", _CLOSE)


def _shown(text: str) -> str:
    return text.replace(_OPEN, "(").replace(_CLOSE, ")")


def _is_group(item: str) -> bool:
    return len(item) >= 2 and item[0] == "(" and item[-1] == ")"


def _split(text: str) -> list[str]:
    """Cut a text before and after each outermost pair of parentheses."""
    items, start, depth = [], 0, 0
    for at, sign in enumerate(text):
        if sign == "(":
            if depth == 0:
                items.append(text[start:at])
                start = at
            depth += 1
        elif sign == ")":
            depth -= 1  # below 0 after one without a partner: the next pair is plain text then
            if depth == 0:
                items.append(text[start : at + 1])
                start = at + 1
    items.append(text[start:])
    return [item for item in items if item]


def _pieces(text: str, weight: float) -> list[tuple[str, float]]:
    found = []
    for item in _split(text):
        if not _is_group(item):
            found.append((item, weight))
            continue
        inner, inner_weight = item[1:-1], weight * _STEP
        words, _, number = inner.rpartition(":")
        if words:
            with suppress(ValueError):  # a colon of the text
                inner_weight = float(number)
                inner = words
        found += _pieces(inner, inner_weight)
    return found
