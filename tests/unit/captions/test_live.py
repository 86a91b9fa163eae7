"""Live captions: repeatable, varied as configured, and never without the trigger."""

from __future__ import annotations

from collections import Counter

import pytest
from lora_workbench.training.captions.live import live_caption, one_line
from lora_workbench.training.data.dataset import CaptionPolicy
from lora_workbench.training.errors import SettingError

TAGS = "zorp, hat, smile, sea, sun"


def draws(caption: str, count: int = 200, trigger: str = "zorp", **policy: object) -> list[str]:
    return [live_caption(caption, CaptionPolicy(**policy), trigger, 0, step, 0) for step in range(count)]


def test_the_default_policy_changes_nothing():
    assert set(draws(TAGS)) == {TAGS}


def test_the_same_position_in_the_run_draws_the_same_caption():
    policy = CaptionPolicy(shuffle=True, tag_dropout=0.3, caption_dropout=0.1)
    one = [live_caption(TAGS, policy, "zorp", 5, step, 1) for step in range(50)]
    assert one == [live_caption(TAGS, policy, "zorp", 5, step, 1) for step in range(50)]
    assert one != [live_caption(TAGS, policy, "zorp", 6, step, 1) for step in range(50)]


def test_shuffling_moves_all_but_the_kept_tags():
    seen = draws(TAGS, shuffle=True, keep_tokens=2)
    assert all(caption.startswith("zorp, hat, ") for caption in seen)
    assert len(set(seen)) == 6
    assert all(sorted(caption.split(", ")) == sorted(TAGS.split(", ")) for caption in seen)


def test_shuffling_puts_the_trigger_first():
    seen = draws("hat, smile, zorp", shuffle=True, keep_tokens=0, tag_dropout=0.9)
    assert all(caption.split(", ")[0] == "zorp" for caption in seen)


def test_three_bars_keep_the_tags_before_and_after():
    seen = draws("a zorp, hat ||| sea, sun, moon ||| masterpiece", shuffle=True, tag_dropout=0.5)
    assert all(caption.startswith("a zorp, hat") and caption.endswith("masterpiece") for caption in seen)
    assert len(set(seen)) > 10
    assert set(draws("a zorp ||| sea")) == {"a zorp, sea"}


def test_tags_are_dropped_at_the_configured_rate():
    counts = Counter(tag for caption in draws(TAGS, 1000, tag_dropout=0.25) for tag in caption.split(", "))
    assert counts["zorp"] == 1000
    assert all(counts[tag] == pytest.approx(750, abs=60) for tag in ("hat", "smile", "sea", "sun"))


@pytest.mark.parametrize(
    ("caption", "trigger", "left"),
    [
        ("smile, a zorp on grass, sea", "zorp", "a zorp on grass"),
        ("smile, Zorp, sea", "zorp", "Zorp"),
        ("smile, zorp, blue, sea", "zorp, blue", "zorp, blue"),
        ("smile, zorps", "zorp", ""),  # another word
    ],
)
def test_the_trigger_is_never_dropped(caption, trigger, left):
    assert set(draws(caption, trigger=trigger, keep_tokens=0, tag_dropout=1.0)) == {left}


def test_a_dropped_caption_leaves_the_trigger():
    seen = Counter(draws(TAGS, 1000, caption_dropout=0.2))
    assert seen["zorp"] == pytest.approx(200, abs=50) and set(seen) == {"zorp", TAGS}
    assert set(draws("a hat", 100, trigger="", caption_dropout=1.0)) == {""}
    assert set(draws("a hat", 100, caption_dropout=1.0)) == {""}  # a trigger the caption lacked is not added


def test_lines_and_wildcards_are_drawn():
    seen = Counter(draws("a {red|blue} {hat|{big|small} cap}\na zorp", 2000))
    assert seen["a zorp"] == pytest.approx(1000, abs=120)
    others = {f"zorp, a {c} {t}" for c in ("red", "blue") for t in ("hat", "big cap", "small cap")}
    assert set(seen) == {"a zorp"} | others, "every drawn line has the trigger, even if only another line had it"
    assert set(draws("a {red|blue}\nhat", wildcards=False)) == {"a {red|blue} hat"}
    assert one_line(" a \n\n b\n") == "a b"


def test_shares_out_of_range_are_rejected():
    with pytest.raises(SettingError, match="tag dropout is 1.5"):
        CaptionPolicy(tag_dropout=1.5)
