"""The sheet of Compare Checkpoints: where its labels and pictures stand."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from lora_workbench.training.review import palette
from lora_workbench.training.review.checkpoint_sheet import Row, checkpoint_sheet
from PIL import Image
from support import sheets

LONG = "a portrait of zorp in a very long prompt that goes on and on, " * 6
COLORS = {(row, column): (60 * row + 20, 100 * column + 20, 200) for row in range(3) for column in range(2)}


def rows(sizes: list[tuple[int, int]]) -> list[Row]:
    labels = [("without LoRA", ""), ("step 100 · epoch 1", "strength 0.6"), ("step 2000000 · epoch 2000", "strength 1")]
    return [
        Row(*label, [Image.new("RGB", size, COLORS[row, column]) for column, size in enumerate(sizes)], row == 2)
        for row, label in enumerate(labels)
    ]


@pytest.mark.parametrize("sizes", [[(1024, 768), (300, 900)], [(64, 64), (64, 128)]])
def test_labels_stand_at_their_rows_and_columns(sizes: list[tuple[int, int]]) -> None:
    made = rows(sizes)
    width = checkpoint_sheet("run", ["zorp", LONG], made).width
    with patch.object(sheets, "WIDTH", width), sheets.drawn_text() as texts:
        sheet = checkpoint_sheet("run: 2 checkpoints", ["zorp", LONG], made)
    texts.check(sheet)
    boxes = dict(texts.texts)
    places = {key: _place(sheet, color) for key, color in COLORS.items()}
    for (row, column), place in places.items():
        shown = [min(side, round(side * 512 / max(sizes[column]))) for side in sizes[column]]
        assert [place[2] - place[0], place[3] - place[1]] == shown, "a picture was enlarged or has lost its shape"
        top = max(boxes["zorp"][3], boxes[next(text for text in boxes if text.startswith("a portrait"))][3])
        assert place[1] > top and place[0] == places[0, column][0] and place[1] == places[row, 0][1]
    assert abs(boxes["zorp"][0] - places[0, 0][0]) < 4
    starts = [box[1] for text, box in texts.texts if text.startswith(("without", "step"))]
    assert all(0 <= start - places[row, 0][1] < 12 for row, start in enumerate(starts)) and len(starts) == 3
    assert all(box[2] < places[0, 0][0] for text, box in texts.texts if text.startswith(("without", "step", "stren")))
    assert places[2, 0][1] < boxes["chosen"][1]
    chosen = _place(sheet, palette.BLUE)
    assert chosen[1] < places[2, 0][1] and chosen[1] > places[1, 0][1]


def _place(sheet: Image.Image, color: palette.Color) -> tuple[int, int, int, int]:
    """The box of all pixels of a colour."""
    box = Image.fromarray((np.asarray(sheet) == color).all(2)).getbbox()
    assert box
    return box


def test_many_pictures_make_no_huge_sheet() -> None:
    picture = Image.new("RGB", (512, 512))
    many = [Row(f"step {number}", "strength 1", [picture] * 4) for number in range(40)]
    sheet = checkpoint_sheet("run", ["a"] * 4, many)
    assert sheet.width * sheet.height < 30_000_000
    assert checkpoint_sheet("run", [""], [Row("base", "", [picture])]).height > 512
