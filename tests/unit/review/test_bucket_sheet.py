"""The bucket sheet shows what is trained, stays within its size, and decodes no file twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_workbench.training.data import buckets
from lora_workbench.training.data.dataset import Dataset, Picture, Placement
from lora_workbench.training.review import bucket_sheet as sheet
from lora_workbench.training.review import palette
from PIL import Image
from support.sheets import drawn_text

PAINT = (240, 20, 220)


def _dataset(folder: Path, *sizes: tuple[int, int], repeats: int = 2, **settings: object) -> Dataset:
    pictures = []
    for index, size in enumerate(sizes):
        path = folder / f"{index}.png"
        Image.new("RGB", size, PAINT).save(path)
        pictures.append(Picture(path, size, "", repeats))
    return buckets.assign_buckets(Dataset(tuple(pictures)), buckets.BucketConfig(**settings))


def _like(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(np.asarray(image).astype(int) - color) < 6).all(-1)


def test_trained_and_cut_away_areas_are_told_apart(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, (1000, 500), resolution=512, min_side=512)
    placement = dataset.pictures[0].placement
    assert placement is not None and placement.bucket == (512, 512)
    drawn = sheet.bucket_sheet(dataset)
    assert drawn.mode == "RGB" and drawn.width == 1200
    dim = tuple(round(0.4 * paint + 0.6 * ground) for paint, ground in zip(PAINT, palette.GROUND, strict=True))
    bright, dimmed = _like(drawn, PAINT).sum(), _like(drawn, dim).sum()
    # The middle half of a picture of 2:1 is trained; outlines and corners take a little of both.
    assert bright > 5000 and 0.85 < bright / dimmed < 1.15
    assert _like(drawn, palette.BLUE).sum() > 300


def test_the_cut_out_stands_where_it_was_cut(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 200), PAINT)
    image.paste((10, 200, 30), (200, 0, 400, 200))
    image.save(tmp_path / "a.png")
    picture = Picture(tmp_path / "a.png", (400, 200), "", placement=Placement((200, 200), (400, 200), (200, 0)))
    drawn = sheet._draw_picture(picture, (200, 100), (255, 255, 255))
    assert _like(drawn, (10, 200, 30))[5:95, 105:195].all()
    assert not _like(drawn, PAINT).any(), "what is cut away is as bright as what is trained"


def test_random_crops_are_named(tmp_path: Path) -> None:
    for crop in (False, True):
        with drawn_text() as drawn:
            sheet.bucket_sheet(_dataset(tmp_path, (1000, 500), random_crop=crop))
        assert any("random crop" in text for text, _ in drawn.texts) == crop


def test_padding_is_hatched(tmp_path: Path) -> None:
    size = (160, 112)
    picture = Picture(tmp_path / "a.png", (500, 500), "", placement=Placement((800, 560), (560, 560), (120, 0), "pad"))
    Image.new("RGB", (500, 500), PAINT).save(picture.path)
    drawn = sheet._draw_picture(picture, size, (255, 255, 255))
    painted = _like(drawn, PAINT)
    assert painted[20:60, 30:130].all() and not painted[:, :23].any() and not painted[:, 138:].any()
    assert _like(drawn, palette.LINE)[:, :23].sum() > 50


def test_what_is_enlarged_carries_a_mark(tmp_path: Path) -> None:
    for size, marked in (((100, 100), True), ((510, 510), False), ((600, 600), False)):
        drawn = sheet.bucket_sheet(_dataset(tmp_path, size))
        assert bool(_like(drawn, palette.AMBER).any()) == marked


def test_each_bucket_is_there_and_the_rest_is_counted(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, *[(512, 512)] * 5, (400, 800))
    shown = [sheet._lay_out(bucket, pictures, 112, 3) for bucket, pictures in dataset.buckets().items()]
    assert [(block.bucket, block.summary, len(block.cells)) for block in shown] == [
        ((320, 704), "1 picture · 2 per epoch", 1),
        ((512, 512), "5 pictures · 10 per epoch", 3),
    ]
    assert shown[0].more is None and shown[1].more is not None and shown[1].more[1] == "+2 more"
    assert all(box[2] <= block.size[0] and box[3] <= block.size[1] for block in shown for _, box in block.cells)


def test_blocks_do_not_overlap_and_stay_on_the_sheet(tmp_path: Path) -> None:
    sizes = [(side, 640) for side in range(200, 1400, 40)] * 3
    dataset = _dataset(tmp_path, *sizes)
    blocks = [sheet._lay_out(bucket, pictures, 112, 12) for bucket, pictures in dataset.buckets().items()]
    places, bottom = sheet._flow(blocks)
    taken = np.zeros((bottom, palette.WIDTH), int)
    for block, (left, top) in zip(blocks, places, strict=True):
        assert left >= sheet._MARGIN and left + block.size[0] <= palette.WIDTH - sheet._MARGIN
        taken[top : top + block.size[1], left : left + block.size[0]] += 1
    assert taken.max() == 1 and taken[: sheet._HEADER_HEIGHT].max() == 0


def test_very_many_buckets_keep_to_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), PAINT).save(path)
    pictures = tuple(
        Picture(path, (64, 64), "", placement=Placement((64 + 8 * i, 64), (64 + 8 * i, 64 + 8 * i), (0, 0)))
        for i in range(600)
    )
    drawn = sheet.bucket_sheet(Dataset(pictures))
    assert drawn.width * drawn.height <= 4_000_000
    # What was left out is said at the foot, in the quiet colour.
    assert _like(drawn.crop((0, drawn.height - 30, 300, drawn.height)), palette.QUIET).any()


def test_shapes_that_are_hard_to_show(tmp_path: Path) -> None:
    for fit in ("crop", "pad"):
        drawn = sheet.bucket_sheet(_dataset(tmp_path, (4000, 10), (10, 4000), (1, 1), fit=fit))
        assert _like(drawn, PAINT).any()


def test_a_damaged_picture_does_not_cost_the_sheet(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, (512, 512), (512, 512))
    path = dataset.pictures[0].path
    assert not _like(sheet.bucket_sheet(dataset), palette.RED).any()
    path.write_bytes(path.read_bytes()[:60])
    drawn = sheet.bucket_sheet(dataset)
    assert _like(drawn, palette.RED).any() and _like(drawn, PAINT).any()


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_no_text_is_cut_off_or_covered(tmp_path: Path, fit: str) -> None:
    sizes = [(20, 800), (800, 20), (100, 100), (10, 10), (40, 400), (512, 512)] * 9
    dataset = _dataset(tmp_path, *sizes, fit=fit, repeats=12345)
    for number, picture in enumerate(dataset.pictures):
        if number % 4 == 0:
            picture.path.write_bytes(b"no picture")
    many = replace(dataset, pictures=dataset.pictures[:1] + dataset.pictures[5:6] * 20_000)
    for data, most in ((dataset, 12), (dataset, 3), (many, 1)):
        with drawn_text() as drawn:
            drawn.check(sheet.bucket_sheet(data, tile=40, max_per_bucket=most))
    assert "+19999" in drawn.all().splitlines()


def test_numbers_have_their_nouns(tmp_path: Path) -> None:
    for sizes, said in ((((64, 64),), "1 picture · 1 per epoch · 1 bucket"),
                        (((64, 64), (64, 192)), "2 pictures · 2 per epoch · 2 buckets")):  # fmt: skip
        with drawn_text() as drawn:
            sheet.bucket_sheet(_dataset(tmp_path, *sizes, repeats=1))
        assert said in drawn.all().splitlines()


def test_the_totals_leave_room_for_the_legend(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, (20, 800), (512, 512), repeats=10**48)
    with drawn_text() as drawn:
        drawn.check(sheet.bucket_sheet(dataset))
    assert f" · {2 * 10**48} per epoch · 2 buckets" in drawn.all()
