"""The demo's sheet: any number of pictures, and texts of any length."""

from __future__ import annotations

import pytest
from lora_workbench.lab.demo.sheet import Row, picture_sheet
from PIL import Image
from support.sheets import drawn_text

PAINT = (240, 20, 220)


def _images(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (90, 120 if number % 2 else 60), PAINT) for number in range(count)]


@pytest.mark.parametrize("count", [1, 24, 25, 60, 150])
def test_any_number_of_pictures_is_shown_inside_the_sheet(count: int) -> None:
    sheet = picture_sheet("title", "note", [Row("row", "note", _images(count))], "footer")
    assert sheet.width == 1200
    painted = [(x, y) for x in range(1200) for y in range(sheet.height) if sheet.getpixel((x, y)) == PAINT]
    assert min(x for x, _ in painted) >= 40 and max(x for x, _ in painted) < 1160
    starts = sum((x - 1, y) not in set_ for set_ in [set(painted)] for x, y in painted)
    lines = sum(y - 1 not in set_ for set_ in [{y for _, y in painted}] for y in set_)
    assert lines == -(-count // 24)
    # Pictures of one line begin in each of its rows of pixels.
    assert starts == count * len({y for _, y in painted}) // lines
    assert len({y for _, y in painted}) // lines >= 20, "too small to see"


def test_texts_of_any_length_and_letters_are_drawn_whole() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    rows = [Row(words, words, _images(3)), Row("小怪物", "红色 note", _images(1)), Row("short", "", _images(2))]
    with drawn_text() as drawn:
        drawn.check(picture_sheet(words, f'Prompt: "{words}"', rows, words))
    said = drawn.all().replace('"', " ").split()
    assert all(said.count(word) == 5 for word in words.split())
    assert "… note" in drawn.all()


def test_a_sheet_of_short_texts_has_its_old_size() -> None:
    with drawn_text() as drawn:
        sheet = picture_sheet("title", "note", [Row("row", "note", _images(3))] * 2, "footer")
    drawn.check(sheet)
    assert sheet.size == (1200, 96 + 2 * (46 + 280 + 30) + 64)
