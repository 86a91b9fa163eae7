"""Caption edits: each does what its name says, matches whole tags only, and never loses the trigger."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_workbench.training.captions.edits import (
    EDITS_JSON,
    OPERATIONS,
    CaptionEdit,
    edit_captions,
    edit_dataset,
    left_as_json,
)
from lora_workbench.training.captions.live import live_caption
from lora_workbench.training.data.dataset import CaptionPolicy, Dataset, Picture
from lora_workbench.training.data.words import is_json, least_tokens, tag_counts, with_trigger
from lora_workbench.training.errors import SettingError

TAGS = ["zorp, blue_hair, smile", "zorp, smile, outdoors, smile", "smile, zorp, tree (oak)", ""]


def done(operation: str, captions: list[str], trigger: str = "zorp", **settings: object) -> list[str]:
    return edit_captions(captions, CaptionEdit(operation, **settings), trigger)


@pytest.mark.parametrize(
    ("operation", "settings", "expected"),
    [
        ("trigger first", {"text": "zorp"}, [*TAGS[:2], "zorp, smile, tree (oak)", "zorp"]),
        ("trigger first", {"text": "quib"}, [f"quib, {caption}" for caption in TAGS[:3]] + ["quib"]),
        ("add before", {"text": "a photo of "}, [f"a photo of {caption}" for caption in TAGS]),
        ("add after", {"text": ", best"}, [f"{caption}, best" for caption in TAGS]),
        ("replace", {"text": "smile", "replacement": "grin"},
         ["zorp, blue_hair, grin", "zorp, grin, outdoors, grin", "grin, zorp, tree (oak)", ""]),
        ("replace (regular expression)", {"text": r"(\w+)_hair", "replacement": r"\1 fur"},
         ["zorp, blue fur, smile", *TAGS[1:]]),
        ("remove tags", {"text": "SMILE, tree*"}, ["zorp, blue_hair", "zorp, outdoors", "zorp", ""]),
        ("remove tags", {"text": "hair"}, TAGS[:3] + [""]),  # whole tags only
        ("keep only tags", {"text": "zorp, smile"}, ["zorp, smile", "zorp, smile, smile", "smile, zorp", ""]),
        ("prune frequent tags", {"share": 0.5}, ["zorp, blue_hair", "zorp, outdoors", "zorp, tree (oak)", ""]),
        ("prune frequent tags", {"share": 0.75}, TAGS),
        ("remove duplicate tags", {}, [TAGS[0], "zorp, smile, outdoors", TAGS[2], ""]),
        ("underscores to spaces", {}, ["zorp, blue hair, smile", *TAGS[1:]]),
        ("spaces to underscores", {}, [*TAGS[:2], "smile, zorp, tree_(oak)", ""]),
        ("escape brackets", {}, [*TAGS[:2], r"smile, zorp, tree \(oak\)", ""]),
        ("escape parentheses", {}, [*TAGS[:2], r"smile, zorp, tree \(oak\)", ""]),
    ],
)  # fmt: skip
def test_what_each_operation_does(operation, settings, expected):
    before = list(TAGS)
    assert done(operation, TAGS, **settings) == expected
    assert before == TAGS


def test_tags_implied_by_the_trigger_are_those_that_occur_with_it():
    captions = ["zorp, teal, hat", "zorp, teal", "teal, sea", "sea"]
    assert done("prune tags implied by the trigger", captions) == ["zorp, hat", "zorp", "teal, sea", "sea"]


def test_brackets_are_escaped_once_and_unescaped():
    once = done("escape brackets", TAGS)
    assert done("escape brackets", once) == once
    assert done("unescape brackets", once) == TAGS


# sd-scripts PR #336, kohya_ss #1725.
@pytest.mark.parametrize(
    ("caption", "escaped"),
    [
        ("miku (vocaloid), (16:9)", r"miku \(vocaloid\), \(16:9\)"),
        (r"miku \(vocaloid), :)", r"miku \(vocaloid\), :\)"),
        ("((a)) [b] {c} <d>", r"\(\(a\)\) [b] {c} <d>"),  # ComfyUI trains the backslash of any other bracket
        ("one (a)\ntwo (b)", "one \\(a\\)\ntwo \\(b\\)"),
    ],
)
def test_parentheses_are_escaped_once(caption, escaped):
    once = done("escape parentheses", [caption])
    assert once == [escaped] == done("escape parentheses", once)


def test_an_escaped_trigger_is_still_the_trigger():
    pictures = tuple(
        Picture(Path(f"{n}.png"), (8, 8), f"{trigger}, hat", own_trigger=own)
        for n, (trigger, own) in enumerate([("miku (vocaloid)", None), ("rin (v)", "rin (v)"), ("hat (x)", "")])
    )
    before = Dataset(pictures, trigger="miku (vocaloid)")
    after, changed = edit_dataset(before, CaptionEdit("escape parentheses"))
    assert len(changed) == 3
    assert [after.trigger_of(picture) for picture in after.pictures] == [r"miku \(vocaloid\)", r"rin \(v\)", ""]
    policy = CaptionPolicy(shuffle=True, keep_tokens=0, tag_dropout=1.0, caption_dropout=0.5)
    drawn = {live_caption(after.pictures[0].caption, policy, after.trigger, 0, step) for step in range(20)}
    assert drawn == {r"miku \(vocaloid\)"}
    # A tagger writes it escaped, whatever the trigger looks like.
    assert with_trigger(r"hat, miku \(vocaloid\)", "miku (vocaloid)") == r"hat, miku \(vocaloid\)"
    back, _ = edit_dataset(after, CaptionEdit("unescape brackets"))
    assert back == before


JSON = '{\n"subject": "a zorp, a hat",\n"text": ["a_b", "a_b"]\n}'


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation not in EDITS_JSON])
def test_json_is_left_as_it_is(operation):
    edit = CaptionEdit(operation, text="a_b", share=0.0, keep_tokens=0)
    both = [JSON, "zorp, a_b, hat (x)"]
    assert edit_captions(both, edit, "zorp") == [JSON, *edit_captions(both[1:], edit, "zorp")]
    dataset = Dataset(tuple(Picture(Path(f"{n}.png"), (8, 8), caption) for n, caption in enumerate(both)))
    assert left_as_json(dataset, edit) == 1


def test_text_in_json_is_replaced_when_asked_for():
    assert done("replace", [JSON], text="a zorp,\n", replacement="x") == [JSON]
    assert done("replace", [JSON], text="a zorp", replacement="the zorp") == [JSON.replace("a zorp", "the zorp")]
    assert done("replace (regular expression)", [JSON], text=r"a_(\w)", replacement=r"\1") == [JSON.replace("a_b", "b")]
    escaped = done("escape parentheses", ['{"a": "miku (vocaloid)"}'])
    assert escaped == [r'{"a": "miku \(vocaloid\)"}'] and is_json(escaped[0])
    assert left_as_json(Dataset((Picture(Path("a.png"), (8, 8), JSON),)), CaptionEdit("escape parentheses")) == 0


def test_each_line_is_edited_separately():
    two = ["zorp, hat, sea\nsea, zorp, hat"]
    assert done("remove tags", two, text="sea") == ["zorp, hat\nzorp, hat"]
    assert done("add after", two, text=", x") == ["zorp, hat, sea, x\nsea, zorp, hat, x"]
    assert done("trigger first", two, text="zorp") == ["zorp, hat, sea\nzorp, sea, hat"]
    shuffled = done("shuffle tags", two)[0].split("\n")
    assert [sorted(line.split(", ")) for line in shuffled] == [["hat", "sea", "zorp"]] * 2
    assert tag_counts(two) == {"zorp": 1, "hat": 1, "sea": 1}


def test_each_concept_has_its_own_trigger():
    captions = ["zorp, teal, hat", "zorp, teal", "quib, red, hat", "quib, red"]
    edit = CaptionEdit("prune tags implied by the trigger", share=0.6)
    pruned = edit_captions(captions, edit, ["zorp", "zorp", "quib", "quib"])
    assert pruned == ["zorp, hat", "zorp", "quib, hat", "quib"]


def test_a_sentence_with_the_trigger_is_unchanged():
    assert done("trigger first", ["a zorp on grass, sea"], text="zorp") == ["a zorp on grass, sea"]


def test_shuffling_is_repeatable_and_keeps_the_beginning_and_the_trigger():
    caption = ", ".join(["first", *map(str, range(20)), "zorp"])
    one, again, other = (done("shuffle tags", [caption], seed=seed)[0].split(", ") for seed in (1, 1, 2))
    assert one == again != other
    assert one[:2] == ["zorp", "first"]
    assert sorted(one) == sorted(caption.split(", "))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"operation": "replace"}, "text is empty"),
        ({"operation": "replace (regular expression)", "text": "(a"}, r"is not valid \(missing"),
        ({"operation": "polish"}, "Choose one of trigger first"),
    ],
)
def test_invalid_edits_are_rejected(settings, words):
    with pytest.raises(SettingError, match=words):
        CaptionEdit(**settings)


def test_a_missing_group_is_an_error():
    with pytest.raises(SettingError, match="does not fit the expression"):
        done("replace (regular expression)", TAGS, text="smile", replacement=r"\2")


def test_every_operation_is_implemented():
    for operation in OPERATIONS:
        assert len(done(operation, TAGS, text="x")) == len(TAGS)
    assert tag_counts(TAGS)["smile"] == 3


@pytest.mark.parametrize(("caption", "least"), [("", 0), ("a red hat, wörn", 5), ("wait... (what?!)", 5), (" \n", 0)])
def test_the_least_number_of_tokens(caption, least):
    assert least_tokens(caption) == least
