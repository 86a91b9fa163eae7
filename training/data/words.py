"""Captions as words: tags between commas, the trigger, what a picture without a caption is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .dataset import Picture

_WORDS_AND_SIGNS = re.compile(r"\w+|[^\w\s]+")


def least_tokens(caption: str) -> int:
    """How many tokens any text encoder makes of a caption at least: one of each word and each run of signs."""
    return len(_WORDS_AND_SIGNS.findall(caption))


def split_tags(caption: str) -> list[str]:
    """The parts between commas, without blanks around them and without empty ones."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def join_tags(tags: Sequence[str]) -> str:
    """Tags as one caption."""
    return ", ".join(tags)


def tag_counts(captions: Sequence[str]) -> Counter[str]:
    """How many captions have each tag, in whichever of their lines."""
    return Counter(tag for caption in captions for tag in set(split_tags(caption.replace("\n", ","))))


def has_own_caption(picture: Picture, trigger: str) -> bool:
    """Whether a picture's caption is more than its folder's name and the trigger."""
    return picture.caption not in ("", trigger, fallback_caption(picture.class_word, trigger))


def fallback_caption(class_word: str, trigger: str) -> str:
    """What a picture without a caption of its own is called: its folder's class word and the trigger."""
    return with_trigger(" ".join(class_word.replace("_", " ").split()), trigger)


def with_trigger(caption: str, trigger: str) -> str:
    """Put the trigger first in each line, unless it has it as a word of its own in any case of letters."""
    trigger = " ".join(trigger.split())
    if not trigger:
        return caption
    if "\n" in caption:
        return "\n".join(with_trigger(line, trigger) for line in caption.split("\n"))
    if calls(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def calls(text: str, trigger: str) -> bool:
    """Whether a text has a trigger as a word of its own, in any case of letters; an empty trigger nothing has."""
    trigger = " ".join(trigger.split()).casefold()
    ends = r"[\s,.;:!?()\"']"
    word = rf"(?:^|(?<={ends})){re.escape(trigger)}(?:$|(?={ends}))"
    return bool(trigger) and re.search(word, text.casefold()) is not None
