"""What the doctor finds in captions: missing, equal and long ones, those without the trigger, and useless tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..captions.live import lines_of
from ..data.dataset import Dataset
from ..data.words import calls, has_own_caption, is_json, least_tokens, split_tags, tag_counts
from ..events import counted
from .finding import NOTE, SPOILS, WEAKENS, Finding, pictures_that

LONGEST_CAPTION = 75  # tokens, which CLIP reads at a time
MOST_TOKENS = 8 * LONGEST_CAPTION  # beyond it, encoding takes minutes and gigabytes


def check_captions(dataset: Dataset, names: list[str], count_tokens: Callable[[str], int] | None) -> list[Finding]:
    """Find captions that are missing, equal, too long or without the trigger.

    Args:
        dataset: The pictures to learn.
        names: The name of each.
        count_tokens: Counts the tokens of a caption; None without a text encoder.
    """
    found = []
    captions = [picture.caption for picture in dataset.pictures]
    own = [has_own_caption(picture, dataset.trigger_of(picture)) for picture in dataset.pictures]
    empty = tuple(name for name, has in zip(names, own, strict=True) if not has)
    if empty:
        severity = WEAKENS if all(caption.strip() for caption in captions) else SPOILS
        what = pictures_that(empty, "has no caption of its own", "have no caption of their own")
        advice = "Write captions, or draft them with Auto Caption. What they leave out is learned with the subject."
        found.append(Finding(severity, "no caption", what, advice, empty))
    found += _triggers(dataset, names)
    written = [picture.caption for picture, has in zip(dataset.pictures, own, strict=True) if has]
    same = {caption for caption, count in Counter(written).items() if count > 1}
    if same and len(set(written)) == 1 and len(written) == len(captions):
        what = "All captions are the same."
        advice = "Describe what differs from picture to picture. Otherwise all of it is learned with the subject."
        found.append(Finding(WEAKENS, "identical captions", what, advice, tuple(names)))
    elif same:
        files = tuple(name for name, caption in zip(names, captions, strict=True) if caption in same)
        what = f"{len(files)} pictures share their caption with another."
        found.append(Finding(NOTE, "identical captions", what, "Describe what differs between them.", files))
    count_tokens = count_tokens or least_tokens
    tokens = [count_tokens(caption) for caption in captions]
    huge = tuple(name for name, number in zip(names, tokens, strict=True) if number > MOST_TOKENS)
    if huge:
        what = pictures_that(huge, "has a caption", "have captions", f"of more than {MOST_TOKENS} tokens.")
        advice = "Shorten the caption. The text encoder needs much time and memory for it, and learns little."
        found.append(Finding(WEAKENS, "huge captions", what, advice, huge))
    long = tuple(n for n, number in zip(names, tokens, strict=True) if LONGEST_CAPTION < number <= MOST_TOKENS)
    if long:
        what = pictures_that(long, "has a caption", "have captions", f"of more than {LONGEST_CAPTION} tokens.")
        advice = f"Put what matters first, or shorten the caption. CLIP reads it in pieces of {LONGEST_CAPTION} tokens."
        found.append(Finding(NOTE, "long captions", what, advice, long))
    return found


def _triggers(dataset: Dataset, names: list[str]) -> list[Finding]:
    lacking: dict[tuple[str, bool], list[str]] = {}
    for name, picture in zip(names, dataset.pictures, strict=True):
        trigger = dataset.trigger_of(picture)
        if trigger and not calls(picture.caption, trigger):
            lacking.setdefault((trigger, is_json(picture.caption)), []).append(name)
    found = []
    for (trigger, in_json), those in lacking.items():
        if in_json:
            what = pictures_that(those, "has a JSON caption", "have JSON captions", f"without the trigger {trigger!r}.")
            advice = "Write the trigger into a text of the JSON. It is not added there automatically."
        else:
            what = pictures_that(those, "lacks", "lack", f"the trigger {trigger!r}.")
            advice = "Put the trigger first in each caption."
        found.append(Finding(SPOILS, "no trigger in JSON" if in_json else "no trigger", what, advice, tuple(those)))
    return found


def check_tags(dataset: Dataset, names: list[str]) -> list[Finding]:
    """Find tags on every picture, which say nothing, and tags on one only. Captions must be lists of tags."""
    with_tags = [
        (name, picture) for name, picture in zip(names, dataset.pictures, strict=True)
        if not any(map(is_json, lines_of(picture.caption)))
    ]  # fmt: skip
    names, captions = [name for name, _ in with_tags], [picture.caption for _, picture in with_tags]
    if len(captions) < 5 or sum(len(split_tags(caption)) for caption in captions) < 3 * len(captions):
        return []
    found, counts = [], tag_counts(captions)
    triggers = {dataset.trigger_of(picture) for picture in dataset.pictures}
    everywhere = [
        tag for tag, count in counts.items()
        if count == len(captions) and not any(calls(tag, trigger) for trigger in triggers)
    ]  # fmt: skip
    if everywhere:
        listed = ", ".join(sorted(everywhere)[:20]) + (", …" if len(everywhere) > 20 else "")
        verb = "is" if len(everywhere) == 1 else "are"
        what = f"{counted(len(everywhere), 'tag')} {verb} on every picture: {listed}."
        advice = "Remove the tags that belong to the subject, so that the trigger alone stands for it."
        found.append(Finding(WEAKENS, "tags on all", what, advice, tuple(names)))
    once = {tag for tag, count in counts.items() if count == 1}
    if once:
        what = f"{len(once)} of {len(counts)} tags {'is' if len(once) == 1 else 'are'} on one picture only."
        files = tuple(
            f"{name} ({tag})" for name, caption in zip(names, captions, strict=True)
            for tag in dict.fromkeys(split_tags(caption.replace("\n", ","))) if tag in once
        )  # fmt: skip
        advice = "Check them for typing errors. A tag of its own is fine for what differs."
        found.append(Finding(NOTE, "tags on one", what, advice, files))
    return found
