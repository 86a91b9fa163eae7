"""What the doctor finds in captions that is prompt syntax: weights, BREAK, LoRA tags, bars and braces."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..captions.live import KEPT_UNTIL, lines_of, one_line
from ..captions.prompt_weights import Weighted, unbalanced, weighted_parts
from ..data.dataset import CaptionPolicy, Dataset
from ..data.words import is_json
from .finding import NOTE, SPOILS, WEAKENS, Finding, pictures_that

LARGEST_WEIGHT = 2.0  # as large as anyone writes on purpose
_LONGEST_QUOTE = 60  # characters
_ESCAPE = "Choose escape parentheses in Caption Operation. The caption is then trained as written."


@dataclass(frozen=True)
class _Text:
    """One text that is trained with a picture."""

    name: str
    text: str
    policy: CaptionPolicy | None


def check_syntax(dataset: Dataset, names: list[str]) -> list[Finding]:
    """Find prompt syntax in the captions, and say what is trained of it.

    Args:
        dataset: The pictures to learn.
        names: The name of each.
    """
    texts = list(_texts(dataset, names))
    found = [*_weights(texts), *_unbalanced(texts), *_unread(texts)]
    for kind, find, rest, advice in _COMMANDS:
        hits = [(one.name, hit) for one in texts if (hit := find(one.text))]
        if hits:
            found.append(_finding(NOTE, kind, hits, rest, advice))
    return found


def _texts(dataset: Dataset, names: list[str]) -> Iterable[_Text]:
    for name, picture in zip(names, dataset.pictures, strict=True):
        policy = dataset.policy_of(picture)
        if policy and policy.draw_one_line:
            texts = lines_of(picture.caption)
        else:
            texts = [one_line(picture.caption, dataset.trigger_of(picture))]
        yield from (_Text(name, text, policy) for text in texts)


def _finding(severity: int, kind: str, hits: list[tuple[str, str]], rest: str, advice: str, more: str = "") -> Finding:
    """A finding on some (name, quoted text): `2 pictures have …, for example '…'.`"""
    files = tuple(dict.fromkeys(name for name, _ in hits))
    what = pictures_that(files, "has", "have", f"{rest}, for example {_quoted(hits[0][1])}.")
    return Finding(severity, kind, f"{what} {more}".rstrip(), advice, files)


def _quoted(text: str) -> str:
    half = _LONGEST_QUOTE // 2
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:half]}…{text[-half:]}")


def _near(text: str, at: int) -> str:
    """The tag around a place in a text, or what is near the place in a longer one."""
    start = text.rfind(",", 0, at) + 1
    end = text.find(",", at)
    end = len(text) if end < 0 else end
    if end - start > _LONGEST_QUOTE:
        start, end = max(start, at - _LONGEST_QUOTE // 2), min(end, at + _LONGEST_QUOTE // 2)
    return text[start:end].strip()


# -- parentheses ----------------------------------------------------------------------------------


def _weights(texts: list[_Text]) -> list[Finding]:
    found = [(one.name, part) for one in texts for part in weighted_parts(one.text)]
    if not found:
        return []
    found.sort(key=lambda one: -one[1].distance)
    worst = found[0][1]
    severity = WEAKENS if 0 < worst.weight <= LARGEST_WEIGHT else SPOILS
    hits = [(name, part.written) for name, part in found]
    rest = "parentheses that many text encoders read as prompt weights"
    advice = f"{_ESCAPE} Delete weights that you wrote on purpose."
    return [_finding(severity, "prompt weights", hits, rest, advice, _trained(worst))]


def _trained(part: Weighted) -> str:
    read = f"as {_quoted(part.read)} at weight {part.weight:g}" if part.read else "as nothing"
    return f"It is trained {read}."


def _unbalanced(texts: list[_Text]) -> list[Finding]:
    """Find parentheses without a partner, such as those of emoticons. They change how the others are read."""
    found = []
    for one in texts:
        at = unbalanced(one.text)
        if at is not None:
            parts = weighted_parts(one.text)
            found.append((one.name, _near(one.text, at), max(parts, key=lambda part: part.distance, default=None)))
    if not found:
        return []
    found.sort(key=lambda one: -(one[2].distance if one[2] else -1))
    worst = found[0][2]
    if worst:
        severity, more = WEAKENS, f"In that caption {_quoted(worst.written)} is trained as {_quoted(worst.read)}"
        more += f" at weight {worst.weight:g}."
    else:
        severity, more = NOTE, "It is trained as written, but changes how other parentheses are read."
    hits = [(name, tag) for name, tag, _ in found]
    return [_finding(severity, "unbalanced parentheses", hits, "a parenthesis without a partner", _ESCAPE, more)]


# -- what only Live Captions reads -----------------------------------------------------------------

_BRACES = re.compile(r"\{[^{}]*\|[^{}]*\}")


def _unread(texts: list[_Text]) -> list[Finding]:
    texts = [one for one in texts if not is_json(one.text)]
    found = []
    bars = [
        (one.name, _near(one.text, one.text.rindex(KEPT_UNTIL))) for one in texts
        if one.text.count(KEPT_UNTIL) > (2 if one.policy else 0)
    ]  # fmt: skip
    if bars:
        rest = f"{KEPT_UNTIL} in the caption, which is trained as plain text"
        advice = "Put Live Captions before Dataset Report: it reads up to two of them. Or delete them."
        found.append(_finding(WEAKENS, "unread bars", bars, rest, advice))
    braces = [
        (one.name, hit[0]) for one in texts
        if not (one.policy and one.policy.wildcards) and (hit := _BRACES.search(one.text))
    ]  # fmt: skip
    if braces:
        rest = "options in braces, which are trained as plain text"
        advice = "Turn on wildcards in Live Captions and put it before Dataset Report. Or delete the braces."
        found.append(_finding(NOTE, "unread options", braces, rest, advice))
    return found


# -- commands of other programs --------------------------------------------------------------------


def _word(word: str) -> Callable[[str], str]:
    """Make a function that finds a word in capitals and quotes it. Words between others in capitals do not count."""

    def find(text: str) -> str:
        if word not in text:
            return ""
        words = list(re.finditer(r"\w+", text))
        for number, one in enumerate(words):
            around = [other[0] for other in words[max(0, number - 1) : number + 2] if other is not one]
            if one[0] == word and not (around and all(map(str.isupper, around))):
                return _near(text, one.start())
        return ""

    return find


def _unpaired(text: str) -> str:
    """Quote a square bracket or brace without a partner; JSON has its own rules."""
    opened: list[tuple[str, int]] = []
    if is_json(text):
        return ""
    for at, sign in enumerate(text):
        if sign in "[{":
            opened.append((sign, at))
        elif sign in "]}" and (not opened or opened.pop()[0] != {"]": "[", "}": "{"}[sign]):
            return _near(text, at)
    return _near(text, opened[0][1]) if opened else ""


def _pattern(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: hit[0].strip(" (\n") if (hit := compiled.search(text)) else ""


_DELETE = "Delete it from the captions."
# (kind, finds it in a text, what it is, what to do)
_COMMANDS = [
    ("BREAK", _word("BREAK"), "BREAK in the caption, which is trained as a plain word", _DELETE),
    ("AND", _word("AND"), "AND in capitals in the caption, which is trained as a plain word",
     "Write it in small letters, or delete it."),
    ("LoRA tags", _pattern(r"<(?:lora|lyco|hypernet):[^<>]*>?"),
     "a tag that loads nothing here and is trained as plain text", _DELETE),
    ("embeddings", _pattern(r"(?:^|[\s(])embedding:[^\s,)]+"),
     "the name of an embedding, which is replaced by that embedding or left out", "Delete it, unless it is meant."),
    ("unbalanced brackets", _unpaired, "a bracket without a partner", "Add the other one, or delete it."),
    ("escaped brackets", _pattern(r"\\[\[\]].*"),
     "a backslash before a square bracket, which is trained as a backslash",
     "Choose unescape brackets in Caption Operation, then escape parentheses in another one."),
]  # fmt: skip
