"""What the doctor says of one picture and of several: the number, the verb, one imperative."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from lora_workbench.training.data.dataset import Dataset, Picture, Placement
from lora_workbench.training.review.doctor import Finding, examine
from lora_workbench.training.review.looks import Look


def _look(number: int, **values: object) -> Look:
    draw = random.Random(number)
    return replace(Look(draw.getrandbits(64), draw.getrandbits(64), 100.0, False, 0.0), **values)


def _found(bad: int, *, look: dict[str, object] | None = None, **changes: object) -> dict[str, Finding]:
    """The findings on 12 sound pictures of which the first `bad` have something else."""
    small = Placement((512, 512), (512, 512), (0, 0))
    sound = [
        Picture(Path(f"/set/{n}.png"), (512, 512), f"zorp at place {n}", placement=small) for n in range(12)
    ]
    pictures = [replace(picture, **changes) if n < bad else picture for n, picture in enumerate(sound)]
    looks = [_look(n, **(look or {} if n < bad else {})) for n in range(12)]
    examination = examine(Dataset(tuple(pictures), root=Path("/set"), trigger="zorp"), looks)
    return {finding.kind: finding for finding in examination.findings}


def test_the_sound_set_is_sound() -> None:
    assert _found(0) == {}


@pytest.mark.parametrize(
    ("kind", "change", "one", "more"),
    [
        ("no caption", {"caption": "zorp"}, "1 picture has no caption of its own.",
         "2 pictures have no caption of their own."),
        ("long captions", {"caption": "zorp, " * 40}, "1 picture has a caption of more than 75 tokens.",
         "2 pictures have captions of more than 75 tokens."),
        ("blurred", {"look": {"sharpness": 1.0}}, "1 picture is far less sharp than the rest.",
         "2 pictures are far less sharp than the rest."),
        ("rotated", {"look": {"rotated": True}}, "1 picture is stored rotated, with an EXIF orientation.",
         "2 pictures are stored rotated, with an EXIF orientation."),
        ("transparent", {"look": {"transparent": 0.5}}, "1 picture is partly transparent.",
         "2 pictures are partly transparent."),
        ("too small", {"size": (200, 200)}, "1 picture is smaller than its bucket and enlarged.",
         "2 pictures are smaller than their bucket and enlarged."),
        ("cropped", {"placement": Placement((512, 512), (1024, 512), (0, 0))},
         "1 picture loses more than a third to the crop.", "2 pictures lose more than a third to the crop."),
        ("trigger on kept pictures", {"is_regularization": True},
         "1 regularization picture has the trigger 'zorp' in the caption.",
         "2 regularization pictures have the trigger 'zorp' in the caption."),
    ],
)  # fmt: skip
def test_of_one_and_of_two(kind: str, change: dict[str, object], one: str, more: str) -> None:
    assert _found(1, **change)[kind].what == one
    assert _found(2, **change)[kind].what == more


def test_triggers_and_copies_of_one_and_of_two() -> None:
    assert _found(1, caption="a hat")["no trigger"].what == "1 picture lacks the trigger 'zorp'."
    assert _found(2, caption="a hat")["no trigger"].what == "2 pictures lack the trigger 'zorp'."
    assert _found(2, path=Path("/set/a.png"))["there twice"].what == "1 picture is in the dataset more than once."


def test_amounts_of_one_and_of_two() -> None:
    for count, said in ((1, "There is 1 picture."), (2, "There are 2 pictures.")):
        pictures = tuple(Picture(Path(f"/set/{n}.png"), (512, 512), f"zorp {n}") for n in range(count))
        examination = examine(Dataset(pictures, root=Path("/set")), [_look(n) for n in range(count)])
        assert [finding.what for finding in examination.findings] == [said]


def test_tags_of_one_and_of_two() -> None:
    def what(tags: str, first: str) -> list[str]:
        pictures = tuple(
            Picture(Path(f"/set/{n}.png"), (512, 512), f"{tags}, hat{n // 2}, place{n % 6}{first if not n else ''}")
            for n in range(12)
        )
        examination = examine(Dataset(pictures, root=Path("/set")), [_look(n) for n in range(12)])
        return [finding.what for finding in examination.findings]

    assert what("teal", ", sraf") == [
        "1 tag is on every picture: teal.", "1 of 14 tags is on one picture only."]  # fmt: skip
    assert what("teal, sea", ", sraf, hta") == [
        "2 tags are on every picture: sea, teal.", "2 of 16 tags are on one picture only."]  # fmt: skip
