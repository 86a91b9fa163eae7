"""Prompt syntax in captions: which picture, what is trained of it, and what to do.

sd-scripts PR #336, kohya_ss #1725.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lora_workbench.training.captions.edits import CaptionEdit, edit_captions
from lora_workbench.training.data.dataset import CaptionPolicy, Dataset, Picture
from lora_workbench.training.review.caption_checks import check_captions, check_tags
from lora_workbench.training.review.doctor import NOTE, SPOILS, WEAKENS, examine
from lora_workbench.training.review.finding import Finding
from lora_workbench.training.review.syntax_checks import check_syntax


def dataset(*captions: str, policy: CaptionPolicy | None = None, trigger: str = "") -> Dataset:
    pictures = tuple(Picture(Path(f"/set/{n}.png"), (8, 8), caption) for n, caption in enumerate(captions))
    return Dataset(pictures, root=Path("/set"), policy=policy, trigger=trigger)


def found(*captions: str, policy: CaptionPolicy | None = None) -> dict[str, Finding]:
    names = [f"{n}.png" for n in range(len(captions))]
    return {finding.kind: finding for finding in check_syntax(dataset(*captions, policy=policy), names)}


SOUND = [
    "zorp, hat", "miku \\(vocaloid\\)", "[hat], {hat}, <hat>", "a {b}", "^_^, >_<", "a | b || c", "10:30, 16:9",
    "hand, sand",     "BREAKFAST, Break, ANDROID, Brand", 'a sign that says "SALT AND PEPPER"', "BREAK THE ICE",
    "the embedding: a picture", "lora:hat:1", '{"a": "b|||c, {d|e}"}', "",
]  # fmt: skip


@pytest.mark.parametrize("caption", SOUND)
def test_plain_captions_are_left_in_peace(caption: str) -> None:
    assert found(caption) == {}


@pytest.mark.parametrize(
    ("caption", "severity", "trained"),
    [
        ("miku (vocaloid), hat", WEAKENS, "'(vocaloid)'. It is trained as 'vocaloid' at weight 1.1."),
        ("zorp, (16:9)", SPOILS, "'(16:9)'. It is trained as '16' at weight 9."),
        ("a hat (taken at 10:30)", SPOILS, "'(taken at 10:30)'. It is trained as 'taken at 10' at weight 30."),
        ("((a) b)", WEAKENS, "'((a) b)'. It is trained as 'a' at weight 1.21."),
        ("(hat:0)", SPOILS, "'(hat:0)'. It is trained as 'hat' at weight 0."),
        ("(hat:-1)", SPOILS, "'(hat:-1)'. It is trained as 'hat' at weight -1."),
        ("(see:nan)", SPOILS, "'(see:nan)'. It is trained as 'see' at weight nan."),
        ("scale (1:1)", WEAKENS, "'(1:1)'. It is trained as '1' at weight 1."),
        ("f()", WEAKENS, "'()'. It is trained as nothing."),
        ('{"a": "hat (b)"}', WEAKENS, "'(b)'. It is trained as 'b' at weight 1.1."),
        (r"(a \(b\))", WEAKENS, r"'(a (b))'. It is trained as 'a (b)' at weight 1.1."),
        (f"({'a word ' * 30}:3)", SPOILS, "at weight 3."),
    ],
)
def test_weights_are_named_with_what_is_trained(caption: str, severity: int, trained: str) -> None:
    (finding,) = found(caption).values()
    assert (finding.kind, finding.severity, finding.files) == ("prompt weights", severity, ("0.png",))
    assert finding.what.startswith("1 picture has parentheses that many text encoders read as prompt weights, for ex")
    assert finding.what.endswith(trained) and len(finding.what) < 300
    assert "Choose escape parentheses in Caption Operation." in finding.advice
    assert found(*edit_captions([caption], CaptionEdit("escape parentheses"))) == {}


def test_the_worst_of_all_is_quoted_and_every_picture_listed_once() -> None:
    finding = found("(a), (b)", "hat", "(c:1.5), (d:0.1)", "(e:2)")["prompt weights"]
    assert finding.files == ("2.png", "3.png", "0.png")
    assert "'(d:0.1)'. It is trained as 'd' at weight 0.1." in finding.what
    assert finding.what.startswith("3 pictures have ") and finding.severity == WEAKENS


@pytest.mark.parametrize(
    ("caption", "severity", "said"),
    [
        ("zorp, smile :), hat", NOTE, "'smile :)'. It is trained as written, but changes how"),
        ("hat, :(", NOTE, "':('. It is trained as written"),
        ("a :), (b)", NOTE, "'a :)'. It is trained as written"),  # after it, (b) is no weight
        (":( a, (b)", WEAKENS, "':( a'. In that caption '( a, (b)' is trained as ' a, ' at weight 1.1."),
        (r"\(a), hat", NOTE, r"'\\(a)'. It is trained as written"),
    ],
)
def test_parentheses_without_a_partner(caption: str, severity: int, said: str) -> None:
    finding = found("zorp", caption)["unbalanced parentheses"]
    assert (finding.severity, finding.files) == (severity, ("1.png",)) and said in finding.what
    assert "escape parentheses" in finding.advice
    assert found(*edit_captions([caption], CaptionEdit("escape parentheses"))) == {}


def test_bars_are_named_only_if_nothing_reads_them() -> None:
    caption = "a zorp ||| sea, sun ||| best"
    assert found(caption)["unread bars"].files == ("0.png",) and "|||" in found(caption)["unread bars"].what
    assert "Live Captions" in found(caption)["unread bars"].advice
    assert found(caption, policy=CaptionPolicy()) == {}
    assert list(found(f"{caption} ||| more", policy=CaptionPolicy())) == ["unread bars"]
    own = dataset(caption, "hat")
    first, second = own.pictures
    mixed = own.with_pictures((replace(first, own_policy=CaptionPolicy()), replace(second, caption=caption)))
    assert [finding.files for finding in check_syntax(mixed, ["0.png", "1.png"])] == [("1.png",)]


def test_options_are_named_only_if_nothing_draws_them() -> None:
    for policy in (None, CaptionPolicy(), CaptionPolicy(draw_one_line=True)):
        finding = found("a {red|blue} hat", policy=policy)["unread options"]
        assert "'{red|blue}'" in finding.what and finding.severity == NOTE
    assert found("a {red|blue} hat", policy=CaptionPolicy(wildcards=True)) == {}


def test_each_drawn_line_is_read_by_itself() -> None:
    caption = "a hat :(\na cap (b)"
    assert "is trained as '" in found(caption)["unbalanced parentheses"].what  # joined: ( … (b) is one weight
    alone = found(caption, policy=CaptionPolicy(draw_one_line=True))
    assert "It is trained as written" in alone["unbalanced parentheses"].what
    assert "'(b)'" in alone["prompt weights"].what and alone["prompt weights"].files == ("0.png",)


@pytest.mark.parametrize(
    ("caption", "kind", "said"),
    [
        ("zorp BREAK hat", "BREAK", "has BREAK in the caption, which is trained as a plain word, for exa"),
        ("zorp, BREAK, hat", "BREAK", "'BREAK'"),
        ("zorp,BREAK\nhat", "BREAK", "'BREAK hat'"),
        ("a cat AND a dog", "AND", "AND in capitals"),
        ("zorp, <lora:style_v2:0.8>, hat", "LoRA tags", "'<lora:style_v2:0.8>'"),
        ("<LyCO:a:1>", "LoRA tags", "'<LyCO:a:1>'"),
        ("<hypernet:a>", "LoRA tags", "trained as plain text"),
        ("a hat, embedding:bad_hands", "embeddings", "'embedding:bad_hands'"),
        (r"hat \[red\]", "escaped brackets", "which is trained as a backslash"),
    ],
)
def test_commands_of_other_programs(caption: str, kind: str, said: str) -> None:
    (finding,) = found("hat", caption).values()
    assert (finding.kind, finding.severity, finding.files) == (kind, NOTE, ("1.png",))
    assert said in finding.what and finding.advice.endswith(".")


def test_a_far_place_in_a_long_sentence_is_quoted() -> None:
    finding = found("a word " * 40 + "BREAK" + " a word" * 40)["BREAK"]
    assert "BREAK" in finding.what.split("for example")[1] and len(finding.what) < 200


def test_absurd_captions_do_not_stop_the_doctor() -> None:
    long = " " * 20_000 + "AND"
    for caption in ("(" * 20_000, "(" * 10_000 + ")" * 10_000, "AND " * 5_000, long, "{" * 20_000, "|||" * 6_000):
        found(caption)


def test_captions_of_regularization_pictures_are_trained_and_examined_too() -> None:
    own = dataset("(a)", "a hat")
    kept = replace(own.pictures[0], is_regularization=True)
    for pictures in (own.pictures, (kept, own.pictures[1])):
        found = {finding.kind: finding for finding in examine(own.with_pictures(pictures), [None, None]).findings}
        assert len(found["prompt weights"].files) == 1


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("a cat, [red, hat", "[red"), ("a {red hat", "a {red hat"), ("red], hat", "red]"), ("[a}", "[a}")],
)
def test_brackets_without_a_partner_are_named(text: str, quoted: str) -> None:
    assert repr(quoted) in found(text)["unbalanced brackets"].what
    assert found("[a] {b} [[c]]") == found('{"a": "[b"}') == {}


def test_json_without_the_trigger_is_named() -> None:
    captions = ['{"subject": "a zorp"}', '{"subject": "a hat"}', "a hat"]
    names = ["0.png", "1.png", "2.png"]
    kinds = {finding.kind: finding for finding in check_captions(dataset(*captions, trigger="zorp"), names, None)}
    assert kinds["no trigger in JSON"].files == ("1.png",) and kinds["no trigger"].files == ("2.png",)
    assert kinds["no trigger in JSON"].what == "1 picture has a JSON caption without the trigger 'zorp'."
    assert "into a text of the JSON" in kinds["no trigger in JSON"].advice


def test_json_is_not_counted_as_tags() -> None:
    captions = [f'{{"a": "b", "c": {n}, "d": ["e", "f"]}}' for n in range(8)]
    assert check_tags(dataset(*captions), [f"{n}.png" for n in range(8)]) == []
