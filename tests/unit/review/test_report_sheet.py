"""The sheet of the doctor's findings: what it says, in which colours, and that all of it can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.review import palette
from lora_workbench.training.review.doctor import NOTE, SPOILS, WEAKENS, Examination, Finding
from lora_workbench.training.review.report_sheet import report_sheet
from PIL import Image
from support.sheets import Drawn, drawn_text

PAINT = (240, 20, 220)


def _dataset(folder: Path, *names: str) -> Dataset:
    for name in names:
        Image.new("RGB", (30, 20), PAINT).save(folder / name)
    return Dataset(tuple(Picture(folder / name, (30, 20), "") for name in names), root=folder)


def _draw(dataset: Dataset, *findings: Finding) -> tuple[Image.Image, Drawn]:
    with drawn_text() as drawn:
        sheet = report_sheet(dataset, Examination(findings, len(dataset.pictures)))
    drawn.check(sheet)
    assert sheet.mode == "RGB" and sheet.width == 1200
    return sheet, drawn


def _shown(sheet: Image.Image) -> int:
    """Number of pictures on the sheet, by their middle row of pixels."""
    found = 0
    for y in range(sheet.height):
        row = [sheet.getpixel((x, y)) == PAINT for x in range(sheet.width)]
        found = max(found, sum(here and not before for before, here in zip([False, *row], row, strict=False)))
    return found


@pytest.mark.parametrize(
    ("count", "shown", "more"), [(1, 1, ""), (10, 10, ""), (11, 10, "+1 more"), (15, 10, "+5 more")],
)
def test_ten_pictures_are_shown_and_the_rest_is_counted(tmp_path: Path, count: int, shown: int, more: str) -> None:
    names = [f"{number}.png" for number in range(count)]
    sheet, drawn = _draw(_dataset(tmp_path, *names), Finding(NOTE, "x", "What.", "Advice.", tuple(names)))
    lines = drawn.all().splitlines()
    assert _shown(sheet) == shown
    assert [line for line in lines if "more" in line] == ([more] if more else [])
    assert lines[0] == (f"{count} pictures, 1 finding" if count > 1 else "1 picture, 1 finding")


def test_groups_and_remarks_are_the_pictures_that_they_name(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    dataset = _dataset(tmp_path, *names, "a = b.png")
    files = ("0.png = 1.png", "2.png (2.6 ×)", "3.png (hat (red))", "3.png (scarf)", "a = b.png", "gone.png")
    sheet, drawn = _draw(dataset, Finding(NOTE, "x", "What.", "Advice.", files))
    assert _shown(sheet) == 5
    assert drawn.all().splitlines()[-5:] == [*names, "a = b.png"]


def test_every_colour_is_explained(tmp_path: Path) -> None:
    findings = [Finding(severity, "x", "What.", "Advice.") for severity in (SPOILS, WEAKENS, NOTE)]
    sheet, drawn = _draw(_dataset(tmp_path, "0.png"), *findings)
    for means in ("spoils the training", "weakens it", "worth knowing"):
        assert means in drawn.all().splitlines()
    for number, color in enumerate((palette.RED, palette.AMBER, palette.BLUE)):
        right = {x for x in range(600, 1200) for y in range(20, 60) if sheet.getpixel((x, y)) == color}
        assert right, "the legend lacks a colour"
        left = {y for y in range(60, sheet.height) if sheet.getpixel((33, y)) == color}
        assert left, f"finding {number} has no bar in its colour"
    assert "spoils" not in _draw(_dataset(tmp_path, "0.png"))[1].all(), "nothing to explain without a finding"


def test_long_texts_are_drawn_whole(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(150)]
    findings = [
        Finding(SPOILS, "x", " ".join(words), " ".join(reversed(words)), ("0.png",)),
        Finding(WEAKENS, "x", "The trigger " + "x" * 500, "Advice.", ("0.png",)),
    ]
    dataset = _dataset(tmp_path, "0.png")
    short, _ = _draw(dataset, *[Finding(SPOILS, "x", "What.", "Advice.", ("0.png",))] * 2)
    sheet, drawn = _draw(dataset, *findings)
    said = drawn.all().split()
    assert all(said.count(word) == 2 for word in words)
    assert sum(part.count("x") for part in said if set(part) == {"x"}) == 500
    assert sheet.height > short.height + 100


def test_names_in_any_letters_and_of_any_length(tmp_path: Path) -> None:
    names = ["IMG_2023-10-04_at_the_lake_with_everyone_0001.png", "小怪物.png", "café.png", "4.png"]
    finding = Finding(NOTE, "x", "The concept '红色' has 4 pictures.", "Add pictures.", tuple(names))
    _, drawn = _draw(_dataset(tmp_path, *names), finding)
    first, *others = drawn.all().splitlines()[-4:]
    assert first.startswith("IMG") and first.endswith("1.png") and "…" in first
    assert others == ["picture 2", "cafe.png", "4.png"]
    assert "The concept '…' has 4 pictures." in drawn.all()


def test_a_damaged_picture_does_not_cost_the_sheet(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, "0.png", "1.png")
    (tmp_path / "0.png").write_bytes(b"no picture")
    sheet, drawn = _draw(dataset, Finding(SPOILS, "x", "What.", "Advice.", ("0.png", "1.png")))
    assert _shown(sheet) == 1 and [text for text, _, _ in drawn.small] == ["damaged"]


def test_nothing_found_is_said(tmp_path: Path) -> None:
    assert _draw(_dataset(tmp_path, "0.png", "1.png"))[1].all() == "2 pictures, no problems found."
    assert _draw(_dataset(tmp_path, "0.png"))[1].all() == "1 picture, no problems found."
