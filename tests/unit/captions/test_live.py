"""Live captions: repeatable, varied as configured, and never without the trigger."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from lora_workbench.training.captions.live import caption_for, live_caption, one_line
from lora_workbench.training.data.dataset import CaptionPolicy, Dataset, Picture
from lora_workbench.training.data.words import is_json
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
    seen = Counter(draws("a {red|blue} {hat|{big|small} cap}\na zorp", 2000, wildcards=True, draw_one_line=True))
    assert seen["a zorp"] == pytest.approx(1000, abs=120)
    others = {f"zorp, a {c} {t}" for c in ("red", "blue") for t in ("hat", "big cap", "small cap")}
    assert set(seen) == {"a zorp"} | others, "every drawn line has the trigger, even if only another line had it"
    assert one_line(" a \n\n b\n") == "a b"


# ai-toolkit PR #732, OneTrainer #1508, musubi-tuner #834, sd-scripts PR #975.
@pytest.mark.parametrize(
    ("switches", "seen"),
    [
        ({}, {"a {red|blue} hat"}),
        ({"wildcards": True}, {"a red hat", "a blue hat"}),
        ({"draw_one_line": True}, {"a {red|blue}", "hat"}),
        ({"wildcards": True, "draw_one_line": True}, {"a red", "a blue", "hat"}),
    ],
)
def test_each_draw_has_its_own_switch_and_both_are_off(switches, seen):
    assert set(draws("a {red|blue}\nhat", trigger="", **switches)) == seen


def test_braces_bars_and_lines_stay_when_live_captions_is_used_for_something_else():
    caption = "zorp, f(x) = {x | x > 0}, a|b\nsecond {line}"
    assert set(draws(caption)) == {"zorp, f(x) = {x | x > 0}, a|b second {line}"}
    tags = {frozenset(drawn.split(", ")) for drawn in draws(caption, shuffle=True)}
    assert tags == {frozenset(["zorp", "f(x) = {x | x > 0}", "a|b second {line}"])}


OLD_DRAWS = ["zorp,  in e, sun", "zorp,  in e, sun", "zorp in c, sun", "zorp, hat, , sea", "zorp, hat, , sea",
             "zorp in d, sun"]  # fmt: skip
OLD_SHUFFLED = ["zorp, sun", "zorp, sun", "zorp in c", "zorp, sea", "zorp, hat, sea", "zorp in d"]


def test_a_policy_from_when_both_were_one_switch_draws_what_it_drew():
    """The draws of version 0.1 at the first steps of a run."""
    caption = "zorp, hat, {a|b|}, sea\n{|zorp} in {c|{d|e}}, sun"
    assert draws(caption, 6, wildcards=True, draw_one_line=True) == OLD_DRAWS
    assert draws(caption, 6, wildcards=True, draw_one_line=True, shuffle=True, tag_dropout=0.3) == OLD_SHUFFLED


JSON = [
    '{"subject": "zorp", "colors": ["red", "blue|green"], "note": "{a|b} ||| c"}',
    '[{"type": "zorp", "text": "a, b"}, {"type": "hat"}]',
    '{\n"subject": "a zorp, a {red|blue} hat",\n"style": "flat"\n}',
    '  {"zorp": 1}',
    "[]",
    '{"subject": "a \\(zorp\\), {a|b}"}',  # with escaped parentheses, as the operation of that name leaves it
]
ALL = {"shuffle": True, "keep_tokens": 0, "tag_dropout": 0.5, "wildcards": True, "draw_one_line": True}


@pytest.mark.parametrize("caption", JSON)
def test_json_is_never_touched(caption):
    assert set(draws(caption, 50, **ALL)) == {caption}
    picture = Picture(Path("a.png"), (8, 8), caption)
    assert caption_for(picture, Dataset((picture,), trigger="zorp"), 0, 0, 0) == caption


def test_a_json_caption_can_be_dropped():
    assert set(draws(JSON[0], 100, caption_dropout=0.5)) == {"zorp", JSON[0]}
    assert set(draws('{"subject": "hat"}', 100, caption_dropout=1.0)) == {""}


def test_lines_of_json_are_drawn_but_not_changed():
    lines = ['{"subject": "zorp", "color": "red"}', '{"subject": "a, {b|c}"}']
    assert set(draws("\n".join(lines), 50, **ALL)) == set(lines)
    assert set(draws("\n".join(lines), 50, **{**ALL, "draw_one_line": False})) == {" ".join(lines)}


@pytest.mark.parametrize("caption", ["{a|b}", "{zorp", "[zorp], {a|b}", "zorp, {}", '"zorp, {a|b}"', "[" * 20_000])
def test_what_is_no_json_is_varied(caption):
    assert not is_json(caption)


def test_a_trigger_of_a_later_line_is_kept_when_lines_are_joined():
    assert one_line("a hat\nzorp, a cap", "zorp") == "a hat zorp, a cap"
    assert one_line("zorp, a hat\nzorp, a cap", "zorp") == "zorp, a hat a cap"


def test_shares_out_of_range_are_rejected():
    with pytest.raises(SettingError, match="tag dropout is 1.5"):
        CaptionPolicy(tag_dropout=1.5)
