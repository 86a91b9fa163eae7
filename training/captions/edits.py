"""Edit all captions of a dataset at once: trigger, prefix, replace, remove or prune tags, brackets, shuffle.

A caption is a sentence or a comma-separated list of tags. Tag edits keep the order of the other tags and write ", "
between tags. JSON has no tags: only the edits in `EDITS_JSON` change it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..data.dataset import Dataset
from ..data.words import calls, clean_trigger, is_json, join_tags, same_words, split_tags, tag_counts, with_trigger
from ..draws import seed_for
from ..errors import SettingError
from ..settings import Settings, knob

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
    "escape parentheses",
)
# Edits that JSON survives. ComfyUI reads parentheses as weights in JSON too, and reads `\(` there as `(`.
EDITS_JSON = frozenset({"replace", "replace (regular expression)", "unescape brackets", "escape parentheses"})


# Edits of a trigger as well, which must stay as it is written in the captions.
_OF_TRIGGERS = frozenset({"escape brackets", "unescape brackets", "escape parentheses"})


@dataclass(frozen=True)
class CaptionEdit(Settings):
    """One edit, applied to every caption."""

    operation: str = knob(OPERATIONS[0], "What is done to every caption. Chain several nodes for several edits.",
                          choices=OPERATIONS)
    text: str = knob(
        "",
        "Text of the operation: the trigger word, the text to add or find, or tags separated by commas. * in a tag "
        "matches any text.",
    )
    replacement: str = knob(
        "", "Replaces the text that was found. \\1 inserts the first group of a regular expression."
    )
    share: float = knob(
        0.6,
        "For prune: a tag is removed if more than this share of captions has it. The trigger always stays.",
        min=0.0, max=1.0, step=0.05,
    )
    keep_tokens: int = knob(1, "For shuffle: number of leading tags that stay in place.", min=0, max=1000)
    seed: int = knob(0, "For shuffle: each seed gives a different order.", min=0, max=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        needs = {"trigger first", "add before", "add after", "replace", "replace (regular expression)", "remove tags",
                 "keep only tags"}  # fmt: skip
        if self.operation in needs and not self.text.strip():
            raise SettingError(f"text is empty, but the operation {self.operation!r} needs it. Fill in text.")
        if self.operation == "replace (regular expression)":
            try:
                re.compile(self.text)
            except re.error as error:
                raise SettingError(
                    f"The regular expression {self.text!r} is not valid ({error}). Correct it."
                ) from error


def edit_captions(captions: Sequence[str], edit: CaptionEdit, triggers: str | Sequence[str] = "") -> list[str]:
    """Apply one edit to every caption. The input list is not changed.

    Each line of a caption is an alternative caption of the picture, and is edited separately. JSON is one caption.

    Args:
        captions: One for each picture.
        edit: The edit.
        triggers: The trigger word of each caption, or of all. Pruning keeps it, and shuffling keeps it in front.

    Raises:
        SettingError: The replacement names a group that the regular expression lacks.
    """
    each = [triggers] * len(captions) if isinstance(triggers, str) else list(triggers)
    split = [[caption] if is_json(caption) else caption.split("\n") for caption in captions]
    lines = [line for group in split for line in group]
    of_lines = [trigger for group, trigger in zip(split, each, strict=True) for _ in group]
    chosen = [number for number, line in enumerate(lines) if edit.operation in EDITS_JSON or not is_json(line)]
    after = _EDITS[edit.operation]([lines[n] for n in chosen], edit, [of_lines[n] for n in chosen])
    for number, line in zip(chosen, after, strict=True):
        lines[number] = line
    edited = iter(lines)
    return ["\n".join(next(edited) for _ in group) for group in split]


def left_as_json(dataset: Dataset, edit: CaptionEdit) -> int:
    """The number of captions that an edit leaves as they are because they are JSON."""
    return 0 if edit.operation in EDITS_JSON else sum(is_json(picture.caption) for picture in dataset.pictures)


def edit_dataset(dataset: Dataset, edit: CaptionEdit) -> tuple[Dataset, list[tuple[str, str]]]:
    """Do one edit to every caption of a dataset.

    Returns:
        The edited dataset, and each changed caption before and after.
    """
    before = [picture.caption for picture in dataset.pictures]
    after = edit_captions(before, edit, [dataset.trigger_of(picture) for picture in dataset.pictures])
    if edit.operation == "trigger first":
        # A caption of a regularization picture must not contain the trigger.
        edited = zip(dataset.pictures, after, strict=True)
        after = [picture.caption if picture.is_regularization else caption for picture, caption in edited]
        alike = tuple(replace(picture, own_trigger=None) for picture in dataset.pictures)
        dataset = replace(dataset, trigger=clean_trigger(edit.text), pictures=alike)
    elif edit.operation in _OF_TRIGGERS:
        dataset = _with_edited_triggers(dataset, edit)
    pictures = [replace(picture, caption=caption) for picture, caption in zip(dataset.pictures, after, strict=True)]
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    return dataset.with_pictures(tuple(pictures)), changed


def _with_edited_triggers(dataset: Dataset, edit: CaptionEdit) -> Dataset:
    def edited(trigger: str | None) -> str | None:
        return trigger and edit_captions([trigger], edit)[0]

    pictures = tuple(replace(picture, own_trigger=edited(picture.own_trigger)) for picture in dataset.pictures)
    return replace(dataset, trigger=edited(dataset.trigger) or "", pictures=pictures)


_Edit = Callable[[list[str], CaptionEdit, list[str]], list[str]]


def _each(change: Callable[[str, CaptionEdit], str]) -> _Edit:
    """Turn an edit of one line into an edit of all lines."""
    return lambda captions, edit, _triggers: [change(caption, edit) for caption in captions]


def _trigger_first(caption: str, edit: CaptionEdit) -> str:
    """Move a trigger that is a tag to the front; keep one inside a sentence or tag where it is; add a missing one."""
    trigger = clean_trigger(edit.text)
    tags = [tag for tag in split_tags(caption) if not same_words(tag, trigger)]
    if len(tags) < len(split_tags(caption)):
        return join_tags([trigger, *tags])
    return with_trigger(caption, trigger)


def escape_parentheses(text: str) -> str:
    """Put a backslash before each unescaped parenthesis, so that ComfyUI does not read it as a weight.

    ComfyUI knows no other escape: it would train the backslash of `\\[`.
    """
    return re.sub(r"(?<!\\)([()])", r"\\\1", text)


def matches(tags: str, tag: str) -> bool:
    """Whether a comma-separated list has a tag, in any case; * in the list matches anything."""
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
            f"The replacement {edit.replacement!r} does not fit the expression {edit.text!r} ({error}). Correct it."
        ) from error


def _without(caption: str, edit: CaptionEdit) -> str:
    return join_tags([tag for tag in split_tags(caption) if not matches(edit.text, tag)])


def _only(caption: str, edit: CaptionEdit) -> str:
    return join_tags([tag for tag in split_tags(caption) if matches(edit.text, tag)])


def _prune(captions: list[str], edit: CaptionEdit, triggers: list[str], *, implied: bool) -> list[str]:
    pruned = list(captions)
    # Tags implied by a trigger are counted over the captions with that trigger; frequent tags are counted over all.
    for trigger in dict.fromkeys(triggers) if implied else [""]:
        chosen = [
            number for number, caption in enumerate(captions)
            if not implied or (triggers[number] == trigger and calls(caption, trigger))
        ]  # fmt: skip
        counts = tag_counts([captions[number] for number in chosen])
        frequent = {tag for tag, count in counts.items() if count > edit.share * len(chosen)}
        for number in chosen:
            own = triggers[number]
            kept = [tag for tag in split_tags(captions[number]) if tag not in frequent or calls(tag, own)]
            pruned[number] = join_tags(kept)
    return pruned


def _shuffle(captions: list[str], edit: CaptionEdit, triggers: list[str]) -> list[str]:
    shuffled = []
    for number, (caption, trigger) in enumerate(zip(captions, triggers, strict=True)):
        tags = split_tags(caption)
        kept = tags[: edit.keep_tokens]
        rest = tags[edit.keep_tokens :]
        random.Random(seed_for(edit.seed, "caption", number)).shuffle(rest)
        front = [tag for tag in rest if calls(tag, trigger)]
        shuffled.append(join_tags(front + kept + [tag for tag in rest if tag not in front]))
    return shuffled


_EDITS: dict[str, _Edit] = {
    "trigger first": _each(_trigger_first),
    "add before": _each(lambda caption, edit: edit.text + caption),
    "add after": _each(lambda caption, edit: caption + edit.text),
    "replace": _each(lambda caption, edit: caption.replace(edit.text, edit.replacement).strip()),
    "replace (regular expression)": _each(_replace_by_expression),
    "remove tags": _each(_without),
    "keep only tags": _each(_only),
    "prune frequent tags": lambda captions, edit, triggers: _prune(captions, edit, triggers, implied=False),
    "prune tags implied by the trigger": lambda captions, edit, words: _prune(captions, edit, words, implied=True),
    "remove duplicate tags": _each(lambda caption, _edit: join_tags(list(dict.fromkeys(split_tags(caption))))),
    "shuffle tags": _shuffle,
    "underscores to spaces": _each(lambda caption, _edit: caption.replace("_", " ")),
    "spaces to underscores": _each(
        lambda caption, _edit: join_tags([tag.replace(" ", "_") for tag in split_tags(caption)])
    ),
    # As programs need it that read square brackets as weights too.
    "escape brackets": _each(lambda caption, _edit: re.sub(r"(?<!\\)([()\[\]])", r"\\\1", caption)),
    "unescape brackets": _each(lambda caption, _edit: re.sub(r"\\([()\[\]])", r"\1", caption)),
    "escape parentheses": _each(lambda caption, _edit: escape_parentheses(caption)),
}
