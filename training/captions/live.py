"""What of a caption is trained at one moment: lines, wildcards, shuffled and dropped tags, drawn anew for each picture.

The order of things is kohya's (`train_util.py`, process_caption): the whole caption may be dropped, then a line and
the wildcards are drawn, then what stands after the kept tags is shuffled and thinned. Unlike there the trigger word
always stays, and stays where it is.
"""

from __future__ import annotations

import random
import re

from ..data.dataset import CaptionPolicy, Dataset, Picture
from ..data.words import calls, join_tags, split_tags, with_trigger
from ..draws import seed_for

KEPT_UNTIL = "|||"  # what stands before it is kept in place; what stands after a second one as well
_WILDCARD = re.compile(r"\{([^{}]*)\}")




def one_line(caption: str, trigger: str = "") -> str:
    """A caption of several lines as one; the trigger in front of each is said once."""
    lines = [line.strip() for line in caption.splitlines() if line.strip()]
    ahead = f"{trigger}, " if trigger else ""
    return " ".join(lines[:1] + [line.removeprefix(ahead) for line in lines[1:]])


def caption_for(picture: Picture, dataset: Dataset, seed: int, micro_step: int, place: int) -> str:
    """What a picture is trained under at one place of the run; without a policy always the same."""
    policy, trigger = dataset.policy_of(picture), dataset.trigger_of(picture)
    if policy is None:
        return one_line(picture.caption, trigger)
    return live_caption(picture.caption, policy, trigger, seed, micro_step, place)


def live_caption(caption: str, policy: CaptionPolicy, trigger: str, seed: int, *counters: int) -> str:
    """Draw what of a caption is trained this time.

    Args:
        caption: As it was written.
        policy: What may change.
        trigger: The dataset's trigger word; empty when it has none.
        seed: The run's seed.
        counters: Where in the run: the micro-step and the place in the batch.
    """
    rng = random.Random(seed_for(seed, "caption", *counters))
    has_trigger = calls(caption, trigger)
    if rng.random() < policy.caption_dropout:
        return trigger if has_trigger else ""
    if policy.wildcards:
        lines = [line.strip() for line in caption.splitlines() if line.strip()]
        caption = _draw_wildcards(rng.choice(lines) if lines else "", rng)
        if has_trigger:
            caption = with_trigger(caption, trigger)  # which another line may have had
    caption = one_line(caption, trigger)
    if not (policy.shuffle or policy.tag_dropout or KEPT_UNTIL in caption):
        return caption
    kept, flexible, last = _parts(caption, policy.keep_tokens)
    if policy.shuffle:
        rng.shuffle(flexible)
    flexible = [tag for tag in flexible if calls(tag, trigger) or rng.random() >= policy.tag_dropout]
    if policy.shuffle:
        # Wherever it was drawn to: the word that calls the concept comes first among what moves.
        flexible.sort(key=lambda tag: not calls(tag, trigger))
    drawn = join_tags([*kept, *flexible, *last])
    return with_trigger(drawn, trigger) if has_trigger else drawn  # one of several tags is never kept by its tag


def _parts(caption: str, keep_tokens: int) -> tuple[list[str], list[str], list[str]]:
    """A caption's tags: those kept at the beginning, those that may move and go, those kept at the end."""
    if KEPT_UNTIL in caption:
        first, flexible, *last = (split_tags(part) for part in caption.split(KEPT_UNTIL, 2))
        return first, flexible, last[0] if last else []
    tags = split_tags(caption)
    return tags[:keep_tokens], tags[keep_tokens:], []


def _draw_wildcards(text: str, rng: random.Random) -> str:
    """Draw one of each `{a|b}`, innermost first."""
    while True:
        drawn = _WILDCARD.sub(lambda found: rng.choice(found.group(1).split("|")), text)
        if drawn == text:
            return drawn
        text = drawn
