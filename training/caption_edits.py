"""Edits of all captions of a dataset at once: trigger, prefix, replace, tags removed or pruned, brackets, shuffle.

A caption is a sentence or a list of tags between commas. An edit that is about tags leaves the order of the rest and
writes ", " between tags.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .config import check_fields, knob
from .draws import seed_for
from .errors import SettingError
from .scan import with_trigger

OPERATIONS = (
    "trigger first",
    "add before",
    "add after",
    "replace",
    "replace (regular expression)",
    "remove tags",
    "keep only tags",
    "prune frequent tags",
    "prune tags implied by the trigger",
    "remove duplicate tags",
    "shuffle tags",
    "underscores to spaces",
    "spaces to underscores",
    "escape brackets",
    "unescape brackets",
)


@dataclass(frozen=True)
class CaptionEdit:
    """One edit, done to every caption."""

    operation: str = knob(OPERATIONS[0], "What is done to every caption. Chain several of these nodes in order.",
                          choices=OPERATIONS)
    text: str = knob(
        "",
        "What the operation is about: the trigger word, the text to add or to find, or tags between commas. * in a tag "
        "stands for anything.",
    )
    replacement: str = knob("", "What comes in the place of the text found; \\1 is the first group of a regular "
                                "expression.")
    share: float = knob(
        0.6,
        "Prune: tags that more than this share of the captions have are removed. The trigger always stays.",
        min=0.0, max=1.0, step=0.05,
    )
    keep_tokens: int = knob(1, "Shuffle: so many tags at the beginning stay where they are.", min=0, max=1000)
    seed: int = knob(0, "Shuffle: another seed, another order.", min=0, max=2**63 - 1)

    def __post_init__(self) -> None:
        check_fields(self)
        needs = {"trigger first", "add before", "add after", "replace", "replace (regular expression)", "remove tags",
                 "keep only tags"}  # fmt: skip
        if self.operation in needs and not self.text.strip():
            raise SettingError(f"The operation {self.operation!r} needs its text: type it into the field text.")
        if self.operation == "replace (regular expression)":
            try:
                re.compile(self.text)
            except re.error as error:
                raise SettingError(f"The regular expression {self.text!r} is not valid: {error}.") from error


def split_tags(caption: str) -> list[str]:
    """The parts between commas, without blanks around them and without empty ones."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def join_tags(tags: Sequence[str]) -> str:
    """Tags as one caption."""
    return ", ".join(tags)


def edit_captions(captions: Sequence[str], edit: CaptionEdit, trigger: str = "") -> list[str]:
    """Do one edit to every caption; the list that came in stays as it is.

    Args:
        captions: One for each picture.
        edit: What to do.
        trigger: The dataset's trigger word, which pruning and shuffling leave alone.

    Raises:
        SettingError: The replacement names a group that the regular expression has not.
    """
    return _EDITS[edit.operation](list(captions), edit, trigger)


def tag_counts(captions: Sequence[str]) -> Counter[str]:
    """How many captions have each tag."""
    return Counter(tag for caption in captions for tag in set(split_tags(caption)))


def _each(change: Callable[[str, CaptionEdit], str]) -> Callable[[list[str], CaptionEdit, str], list[str]]:
    """An edit of each caption by itself."""
    return lambda captions, edit, _trigger: [change(caption, edit) for caption in captions]


def escape_brackets(text: str) -> str:
    """Put a backslash before each bracket that has none, so that ComfyUI does not take it for a weight."""
    return re.sub(r"(?<!\\)([()\[\]])", r"\\\1", text)


def matches(tags: str, tag: str) -> bool:
    """Whether a tag is one of those between commas, in whatever case; * stands for anything."""
    return _pattern(tags).fullmatch(tag) is not None


@lru_cache(maxsize=64)
def _pattern(tags: str) -> re.Pattern[str]:
    choices = "|".join(re.escape(tag).replace(r"\*", ".*") for tag in split_tags(tags))
    return re.compile(choices or r"(?!)", re.IGNORECASE)


def _replace_by_expression(caption: str, edit: CaptionEdit) -> str:
    try:
        return re.sub(edit.text, edit.replacement, caption).strip()
    except (re.error, IndexError) as error:
        raise SettingError(
            f"The replacement {edit.replacement!r} does not fit the expression {edit.text!r}: {error}."
        ) from error


def _without(caption: str, edit: CaptionEdit) -> str:
    return join_tags([tag for tag in split_tags(caption) if not matches(edit.text, tag)])


def _only(caption: str, edit: CaptionEdit) -> str:
    return join_tags([tag for tag in split_tags(caption) if matches(edit.text, tag)])


def _prune(captions: list[str], edit: CaptionEdit, trigger: str, *, implied: bool) -> list[str]:
    counted = [c for c in captions if not implied or trigger.lower() in (tag.lower() for tag in split_tags(c))]
    limit = edit.share * len(counted)
    pruned = {tag for tag, count in tag_counts(counted).items() if count > limit and tag.lower() != trigger.lower()}
    touched = set(counted)
    return [
        join_tags([tag for tag in split_tags(caption) if tag not in pruned]) if caption in touched else caption
        for caption in captions
    ]


def _shuffle(captions: list[str], edit: CaptionEdit, trigger: str) -> list[str]:
    shuffled = []
    for number, caption in enumerate(captions):
        tags = split_tags(caption)
        kept = tags[: edit.keep_tokens]
        rest = tags[edit.keep_tokens :]
        random.Random(seed_for(edit.seed, "caption", number)).shuffle(rest)
        ahead = [tag for tag in rest if trigger and tag.lower() == trigger.lower()]
        shuffled.append(join_tags(ahead + kept + [tag for tag in rest if tag not in ahead]))
    return shuffled


_EDITS: dict[str, Callable[[list[str], CaptionEdit, str], list[str]]] = {
    "trigger first": _each(lambda caption, edit: with_trigger(caption, edit.text.strip())),
    "add before": _each(lambda caption, edit: edit.text + caption),
    "add after": _each(lambda caption, edit: caption + edit.text),
    "replace": _each(lambda caption, edit: caption.replace(edit.text, edit.replacement).strip()),
    "replace (regular expression)": _each(_replace_by_expression),
    "remove tags": _each(_without),
    "keep only tags": _each(_only),
    "prune frequent tags": lambda captions, edit, trigger: _prune(captions, edit, trigger, implied=False),
    "prune tags implied by the trigger": lambda captions, edit, trigger: _prune(captions, edit, trigger, implied=True),
    "remove duplicate tags": _each(lambda caption, _edit: join_tags(list(dict.fromkeys(split_tags(caption))))),
    "shuffle tags": _shuffle,
    "underscores to spaces": _each(lambda caption, _edit: caption.replace("_", " ")),
    "spaces to underscores": _each(
        lambda caption, _edit: join_tags([tag.replace(" ", "_") for tag in split_tags(caption)])
    ),
    "escape brackets": _each(lambda caption, _edit: escape_brackets(caption)),
    "unescape brackets": _each(lambda caption, _edit: re.sub(r"\\([()\[\]])", r"\1", caption)),
}
