"""Caption edits: each does what its name says, matches whole tags only, and never loses the trigger."""

from __future__ import annotations

import pytest
from lora_workbench.training.captions.edits import OPERATIONS, CaptionEdit, edit_captions
from lora_workbench.training.data.words import least_tokens, tag_counts
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
