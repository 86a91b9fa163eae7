"""When a caption has its trigger, and where its tags end: one rule for scanning, the doctor and prior preservation."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from lora_workbench.training.data import words
from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.data.mixing import with_prior_preservation
from lora_workbench.training.review.doctor import examine

# kohya_ss #545, BooruDatasetTagManager #108.
HAS = [
    ("zorp，一个女孩", "zorp", True),
    ("一个zorp女孩", "zorp", True),
    ("zorpy girl", "zorp", False),
    ("a Zorp's hat", "zorp", True),
    ("(zorp:1.2), hat", "zorp", True),
    ("zorp-like", "zorp", True),
    ("zorp_2", "zorp", False),
    ("zorp2", "zorp", False),
    ("ézorp", "zorp", False),
    ("my_char woman", "my_char", True),
    ("my char woman", "my_char", True),
    ("my_char woman", "My Char", True),
    ("my  char", "my char", True),
    ("mychar", "my_char", False),
    ("a _zorp_ hat", "_zorp_", True),
    ("a zorp hat", "_zorp_", True),
    ("a zorpy hat", "_zorp_", False),
    ("a hat", "_", False),
    ("my_charming woman", "my_char", False),
    ("一只小猫咪", "小猫", True),
    ("zorpㄅ", "zorp", True),
    ("zorpｶﾞｰﾙ", "zorp", True),
    ("zorp々", "zorp", True),
    ("ㅋzorpㅋ", "zorp", True),
    ("zorp", "zorp。", True),
    ("一只小狗", "小猫", False),
    ("ゾープちゃん", "ゾープ", True),
    ("나는 조르프를 본다", "조르프", True),
    ("zorp", "zorp, ", True),
    ("zorp", "，zorp、", True),
    ("zorp", " , ", False),
    ("a c++ cat", "c++", True),
    (unicodedata.normalize("NFD", "a zörp"), "zörp", True),
    (r"a miku \(vocaloid\)", "miku (vocaloid)", True),
    ("a Miku (Vocaloid) hat", r"miku_\(vocaloid\)", True),
    ("a miku vocaloid", "miku (vocaloid)", False),
    ("a zörp", unicodedata.normalize("NFD", "zörp"), True),
]


@pytest.mark.parametrize(("text", "trigger", "has"), HAS)
def test_one_rule_says_whether_a_text_has_its_trigger(text: str, trigger: str, has: bool) -> None:
    assert words.calls(text, trigger) is has
    clean = words.clean_trigger(trigger)
    assert words.with_trigger(text, trigger) == (text if has or not clean else f"{clean}, {text}")


@pytest.mark.parametrize(("text", "trigger", "has"), [row for row in HAS if words.clean_trigger(row[1])])
def test_the_doctor_and_prior_preservation_agree(text: str, trigger: str, has: bool) -> None:
    trigger = words.clean_trigger(trigger)
    learned = Picture(Path("a.png"), (8, 8), text)
    dataset = Dataset((learned,), trigger=trigger)
    assert ("no trigger" not in [f.kind for f in examine(dataset, [None]).findings]) is has
    kept = dataset.with_pictures((learned, replace(learned, is_regularization=True)))
    assert ("trigger on kept pictures" in [f.kind for f in examine(kept, [None, None]).findings]) is has
    if has:
        copy = with_prior_preservation(dataset, "thing").pictures[1]
        assert copy.is_regularization and "thing" in copy.caption and not words.calls(copy.caption, trigger)
    else:
        with pytest.raises(ValueError, match="No caption has the trigger"):
            with_prior_preservation(dataset, "thing")


@pytest.mark.parametrize(
    ("folder", "trigger", "caption"),
    [
        ("my_char woman", "my_char", "my_char woman"),
        ("my_char woman", "my char", "my_char woman"),
        ("my_character", "", "my_character"),
        ("woman", "my_char", "my_char, woman"),
        ("", "my_char", "my_char"),
        ("小猫 cat", "小猫", "小猫 cat"),
    ],
)
def test_a_folders_words_stay_as_kohya_keeps_them(folder: str, trigger: str, caption: str) -> None:
    assert words.fallback_caption(folder, trigger) == caption
    picture = Picture(Path("a.png"), (8, 8), caption, class_word=folder)
    assert not words.has_own_caption(picture, trigger)
    assert words.has_own_caption(replace(picture, caption=f"{caption}, red hat"), trigger)


def test_commas_of_all_scripts_separate_tags() -> None:
    assert words.split_tags("zorp，红帽子、 1girl, solo，") == ["zorp", "红帽子", "1girl", "solo"]
    assert words.tag_counts(["zorp，hat", "zorp、cat"])["zorp"] == 2


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"a": 1}', True), (' [1, {"b": null}] ', True), ('{\n"a": "b",\n"c": []\n}', True),
        ('{"a": "two\nlines"}', True),
        (r'{"a": "b \(c\)"}', True), ("", False), ("1", False), ("null", False), ('"a, b"', False), ("{a|b}", False),
        ("[a]", False), ("{'a': 1}", False), ('zorp, {"a": 1}', False), ('{"a": 1}\n{"b": 2}', False), ("{", False),
        ("[" * 20_000, False), ("[" * 10_000 + "]" * 10_000, False),
    ],
)  # fmt: skip
def test_json_is_an_object_or_an_array(text: str, is_json: bool) -> None:
    assert words.is_json(text) is is_json


def test_json_gets_no_trigger_in_front() -> None:
    for caption in ('{"a": "hat"}', '{\n"a": "hat"\n}', "[]"):
        assert words.with_trigger(caption, "zorp") == caption
    assert words.with_trigger('{"a": 1}\nhat', "zorp") == '{"a": 1}\nzorp, hat'


def test_prior_preservation_leaves_json_whole() -> None:
    caption = '{\n"a": "zorp hat",\n"b": ["zorp,  x"]\n}'
    dataset = Dataset((Picture(Path("a.png"), (8, 8), caption),), trigger="zorp")
    prior = with_prior_preservation(dataset, "thing").pictures[1]
    assert prior.caption == caption.replace("zorp", "thing")
