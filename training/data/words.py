"""Captions as text: comma-separated tags, the trigger word, and the fallback for a picture without a caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .dataset import Picture

_WORD_OR_PUNCTUATION = re.compile(r"\w+|[^\w\s]+")


def least_tokens(caption: str) -> int:
    """The least number of tokens any text encoder makes: one for each word and each run of punctuation."""
    return len(_WORD_OR_PUNCTUATION.findall(caption))


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas, without surrounding spaces and empty tags."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def join_tags(tags: Sequence[str]) -> str:
    """Join tags into one caption."""
    return ", ".join(tags)


def tag_counts(captions: Sequence[str]) -> Counter[str]:
    """Count the captions that have each tag, in any of their lines."""
    return Counter(tag for caption in captions for tag in set(split_tags(caption.replace("\n", ","))))


def has_own_caption(picture: Picture, trigger: str) -> bool:
    """Whether a picture's caption is more than its folder's class words and the trigger."""
    return picture.caption not in ("", trigger, fallback_caption(picture.class_word, trigger))


def fallback_caption(class_word: str, trigger: str) -> str:
    """The caption of a picture that has none of its own: its folder's class words and the trigger."""
    return with_trigger(" ".join(class_word.replace("_", " ").split()), trigger)


def with_trigger(caption: str, trigger: str) -> str:
    """Put the trigger in front of each line that does not contain it as a separate word, in any case."""
    trigger = " ".join(trigger.split())
    if not trigger:
        return caption
    if "\n" in caption:
        return "\n".join(with_trigger(line, trigger) for line in caption.split("\n"))
    if calls(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def calls(text: str, trigger: str) -> bool:
    """Whether a text contains a trigger as a separate word, in any case. No text contains an empty trigger."""
    trigger = " ".join(trigger.split()).casefold()
    ends = r"[\s,.;:!?()\"']"
    word = rf"(?:^|(?<={ends})){re.escape(trigger)}(?:$|(?={ends}))"
    return bool(trigger) and re.search(word, text.casefold()) is not None
