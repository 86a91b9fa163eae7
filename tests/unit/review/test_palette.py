"""Text on a sheet: broken into lines, shortened, and free of characters that the font cannot draw."""

from __future__ import annotations

import pytest
from lora_workbench.training.review import palette
from lora_workbench.training.review.palette import elided, fitting, font, printable, wrapped


def test_lines_are_no_wider_than_they_may_be_and_keep_every_word() -> None:
    text = "some words and " + "x" * 300 + " and the rest of them"
    lines = wrapped(text, 16, 200)
    assert max(font(16).getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    # Filled: a line more than half empty comes only before a word that has a line of its own, and at the end.
    assert len(lines) <= 2 + font(16).getlength(text) / 150
    assert wrapped("short", 16, 200) == ["short"] and wrapped(" \n", 16, 200) == []
    assert wrapped("line\nbreak\tand tab", 16, 500) == ["line break and tab"]


def test_a_word_is_broken_only_if_it_is_wider_than_a_line() -> None:
    words = ["these", "words", "are", "short", "enough", "for", "any", "line"] * 3
    assert " ".join(wrapped(" ".join(words), 16, 100)).split() == words
    assert wrapped("ab", 16, 1) == ["a", "b"], "a letter that is too wide still has its line"


def test_a_file_name_loses_its_middle() -> None:
    name = "IMG_2023-10-04_at_the_lake_0001.png"
    short = elided(name, 11, 94)
    start, end = short.split("…")
    assert font(11).getlength(short) <= 94 and name.startswith(start) and name.endswith(end)
    assert len(start) >= 4 and len(end) >= 4 and abs(len(start) - len(end)) <= 1
    assert elided("0001.png", 11, 94) == "0001.png"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("zorp, a hat (2)", "zorp, a hat (2)"),
        ("café naïve", "cafe naive"),
        ("cafe\u0301", "cafe"),
        ("2.6 × – —", "2.6 x - -"),
        ("红色的小怪物", "…"),
        ("a 红色 小怪物 b", "a … b"),
        ("'红', '色'", "'…', '…'"),
        ("Привет мир!", "…!"),
        ("smile 😀\u200d", "smile …"),
        ("half \udce9", "half …"),
    ],
)
def test_what_the_font_cannot_draw_is_replaced(text: str, printed: str) -> None:
    assert printable(text) == printed


def test_a_name_in_other_letters_becomes_a_neutral_word() -> None:
    assert printable("小怪物_1.png", "picture 3") == "picture 3"
    assert printable("café.png", "picture 3") == "cafe.png"


def test_letters_shrink_as_far_as_they_can_be_read() -> None:
    assert fitting("+5 more", 15, 200) is font(15)
    smaller = fitting("+12345 more", 15, 60)
    assert smaller is not None and 8 <= smaller.size < 15 and smaller.getlength("+12345 more") <= 60
    assert fitting("+12345 more", 15, 20) is None and fitting("+1", 15, 200, 7) is None


def test_what_cannot_be_read_is_red_at_any_size() -> None:
    for size in ((108, 108), (3, 40), (40, 1)):
        image = palette.unreadable(size)
        assert image.size == size and palette.RED in {color for _, color in image.getcolors()}
