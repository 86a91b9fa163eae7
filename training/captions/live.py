"""Vary a caption each time its picture is shown: draw lines and wildcards, shuffle and drop tags.

The order is kohya's (`train_util.py`, process_caption). The whole caption may be dropped, at random or in every Nth
epoch (counted from 1, as in kohya). Then a line and the wildcards are drawn, then the tags after the kept ones are
shuffled and dropped. Unlike in kohya, the trigger word is never dropped, and without shuffling it stays in place. A
caption or line that is JSON is trained as it stands: its braces, bars and commas are no wildcards and no tags.
"""

from __future__ import annotations

import random
import re

from ..data.dataset import CaptionPolicy, Dataset, Picture
from ..data.words import calls, is_json, join_tags, split_tags, with_trigger
from ..draws import seed_for

KEPT_UNTIL = "|||"  # tags before the first one and after the second one are kept in place
_WILDCARD = re.compile(r"\{([^{}]*)\}")


def lines_of(caption: str) -> list[str]:
    """The alternative captions that a caption holds: its lines. JSON is one caption, however many lines it has."""
    if is_json(caption):
        return [caption]
    return [line.strip() for line in caption.splitlines() if line.strip()]


def one_line(caption: str, trigger: str = "") -> str:
    """Join the lines of a caption. A trigger in front of every line is kept only in the first. JSON stays as it is."""
    lines = lines_of(caption)
    prefix = f"{trigger}, " if lines and calls(lines[0], trigger) else ""
    return " ".join(lines[:1] + [line.removeprefix(prefix) for line in lines[1:]])


def caption_for(
    picture: Picture, dataset: Dataset, seed: int, micro_step: int, place: int, epoch: int | None = None
) -> str:
    """The caption a picture is trained with at one position in the run. Without a policy it is always the same.

    Args:
        picture: Of the dataset.
        dataset: Has the trigger and the policy.
        seed: The run's seed.
        micro_step: Micro-steps since the run began.
        place: Its place in the batch.
        epoch: The epoch, from 0. None: no epoch's captions are dropped.
    """
    policy, trigger = dataset.policy_of(picture), dataset.trigger_of(picture)
    if policy is None:
        return one_line(picture.caption, trigger)
    if epoch is not None and policy.drops_epoch(epoch):
        return trigger if calls(picture.caption, trigger) else ""
    return live_caption(picture.caption, policy, trigger, seed, micro_step, place)


def live_caption(caption: str, policy: CaptionPolicy, trigger: str, seed: int, *counters: int) -> str:
    """Draw the variant of a caption that is trained this time.

    Args:
        caption: The caption as written.
        policy: What may vary.
        trigger: The picture's trigger word; may be empty.
        seed: The run's seed.
        counters: The position in the run: the micro-step and the index in the batch.
    """
    rng = random.Random(seed_for(seed, "caption", *counters))
    has_trigger = calls(caption, trigger)
    if rng.random() < policy.caption_dropout:
        return trigger if has_trigger else ""
    lines = lines_of(caption)
    if policy.draw_one_line and lines:
        lines = [rng.choice(lines)]
    caption = one_line("\n".join(lines), trigger)
    if any(map(is_json, lines)):
        return caption
    if policy.wildcards:
        caption = _draw_wildcards(caption, rng)
    if has_trigger:
        caption = with_trigger(caption, trigger)  # only another line or option may have had it
    caption = caption.strip()  # an empty option leaves a space
    if not (policy.shuffle or policy.tag_dropout or KEPT_UNTIL in caption):
        return caption
    kept, flexible, last = _parts(caption, policy.keep_tokens)
    if policy.shuffle:
        rng.shuffle(flexible)
    flexible = [tag for tag in flexible if calls(tag, trigger) or rng.random() >= policy.tag_dropout]
    if policy.shuffle:
        # The trigger comes first among the shuffled tags.
        flexible.sort(key=lambda tag: not calls(tag, trigger))
    drawn = join_tags([*kept, *flexible, *last])
    # A trigger that spans several tags matches none of them, so it may have been dropped.
    return with_trigger(drawn, trigger) if has_trigger else drawn


def _parts(caption: str, keep_tokens: int) -> tuple[list[str], list[str], list[str]]:
    """A caption's tags: those kept at the start, those that may be shuffled and dropped, those kept at the end."""
    if KEPT_UNTIL in caption:
        first, flexible, *last = (split_tags(part) for part in caption.split(KEPT_UNTIL, 2))
        return first, flexible, last[0] if last else []
    tags = split_tags(caption)
    return tags[:keep_tokens], tags[keep_tokens:], []


def _draw_wildcards(text: str, rng: random.Random) -> str:
    """Draw one option of each `{a|b}`, innermost first."""
    while True:
        drawn = _WILDCARD.sub(lambda found: rng.choice(found.group(1).split("|")), text)
        if drawn == text:
            return drawn
        text = drawn
