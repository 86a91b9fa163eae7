"""Captions as text: comma-separated tags, the trigger word, and the fallback for a picture without a caption."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from .dataset import Picture

_WORD_OR_PUNCTUATION = re.compile(r"\w+|[^\w\s]+")
MOST_CHARACTERS = 20_000  # of a caption; a text encoder takes gigabytes for more
COMMAS = ",，、"  # Latin, Chinese and Japanese
# Scripts without spaces between words: Chinese and Japanese, and Korean, whose particles follow a word directly.
_CJK = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3100-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_CJK += "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\u1100-\u11ff\U00020000-\U0003ffff"


def least_tokens(caption: str) -> int:
    """The least number of tokens any text encoder makes: one for each word and each run of punctuation."""
    return len(_WORD_OR_PUNCTUATION.findall(caption))


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas, Chinese and Japanese ones too, without surrounding spaces and empty tags."""
    return [tag for tag in (part.strip() for part in re.split(f"[{COMMAS}]", caption)) if tag]


def join_tags(tags: Sequence[str]) -> str:
    """Join tags into one caption."""
    return ", ".join(tags)


def tag_counts(captions: Sequence[str]) -> Counter[str]:
    """Count the captions that have each tag, in any of their lines."""
    return Counter(tag for caption in captions for tag in set(split_tags(caption.replace("\n", ","))))


def is_json(text: str) -> bool:
    r"""Whether a text is a JSON object or array, which is trained as it stands.

    A parenthesis may be escaped (`\(`), which JSON does not know: ComfyUI removes the backslash before it encodes.
    """
    if text.lstrip()[:1] not in ("{", "["):  # an empty text is in any string, but not in a tuple
        return False
    return _parses(text) or ("\\(" in text or "\\)" in text) and _parses(_unescaped(text))


def _parses(text: str) -> bool:
    try:
        json.loads(text, strict=False)  # a line break inside a string is no reason to tear a caption apart
    except (ValueError, RecursionError):  # brackets nested thousands deep are no one's caption
        return False
    return True


def has_own_caption(picture: Picture, trigger: str) -> bool:
    """Whether a picture's caption is more than its folder's class words and the trigger."""
    known = ("", clean_trigger(trigger), fallback_caption(picture.class_word, trigger))
    return not any(same_words(picture.caption, caption) for caption in known)


def has_words(caption: str) -> bool:
    """Whether a caption has anything that can be seen, besides commas."""
    return any(char.isprintable() and not char.isspace() and char not in COMMAS for char in caption)


def fallback_caption(class_word: str, trigger: str) -> str:
    """The caption of a picture that has none: its folder's class words, as kohya takes them, and the trigger."""
    return with_trigger(" ".join(class_word.split()), trigger)


def clean_trigger(trigger: str) -> str:
    """A trigger as it was meant: single spaces, and no spaces, commas or full stops of a sentence around it."""
    return " ".join(trigger.split()).strip(f" {COMMAS};；。")


def with_trigger(caption: str, trigger: str) -> str:
    """Put the trigger in front of each line that does not contain it (see `calls`). JSON stays as it is."""
    trigger = clean_trigger(trigger)
    if not trigger or is_json(caption):
        return caption
    if "\n" in caption:
        return "\n".join(with_trigger(line, trigger) for line in caption.split("\n"))
    if calls(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def calls(text: str, trigger: str) -> bool:
    r"""Whether a text contains a trigger. No text contains an empty trigger.

    Case does not matter, and an underscore in a trigger may be a space in the text or the other way round. A
    parenthesis may be escaped (`\(`) in either. A trigger in Latin or another spaced script must be a word of its own:
    between spaces, punctuation or Chinese, Japanese and Korean characters. A trigger with such characters counts
    wherever it occurs, because these scripts have no spaces.
    """
    pattern = trigger_pattern([trigger])
    return pattern is not None and pattern.search(unicodedata.normalize("NFC", text)) is not None


def trigger_pattern(triggers: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of some triggers in a text of Unicode form NFC, as `calls` does; None without any."""
    cleaned = sorted({clean_trigger(trigger) for trigger in triggers} - {""}, key=len, reverse=True)
    if not cleaned:
        return None
    return re.compile("|".join(map(_source, cleaned)), re.IGNORECASE)


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but case, spaces for underscores, escapes and Unicode form."""
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    return " ".join(_unescaped(unicodedata.normalize("NFC", text)).casefold().replace("_", " ").split())


def _unescaped(text: str) -> str:
    return re.sub(r"\\([()])", r"\1", text)


def _source(trigger: str) -> str:
    """The source of the pattern of one trigger."""
    trigger = _unescaped(unicodedata.normalize("NFC", trigger))
    words = [re.escape(word) for word in re.split(r"[\s_]+", trigger) if word]
    words = [re.sub(r"(\\[()])", r"\\\\?\1", word) for word in words]  # escaped in the text or not
    source = r"[\s_]+".join(words) or "_+"
    # An underscore at an end is part of the trigger, but may be missing in the text.
    source = ("_*" if trigger.startswith("_") else "") + source + ("_*" if trigger.endswith("_") else "")
    if re.search(f"[{_CJK}]", trigger):
        return f"(?:{source})"
    letter = rf"[^\W{_CJK}]"  # of a script with spaces
    return f"(?<!{letter})(?:{source})(?!{letter})"
