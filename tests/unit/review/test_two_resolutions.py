"""The doctor on one folder at two resolutions: as many pictures as files, and what each resolution costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.data.mixing import concat
from lora_workbench.training.review.doctor import Examination, Finding, examine
from lora_workbench.training.review.looks import Look


def photos(side: int = 700, folder: str = "/a", count: int = 12) -> Dataset:
    pictures = (
        Picture(Path(f"{folder}/{n:02d}.png"), (side, side), f"zorp at place {n}", concept=Path(folder).name)
        for n in range(count)
    )
    return Dataset(tuple(pictures), root=Path(folder), trigger="zorp")


def at(side: int, dataset: Dataset) -> Dataset:
    return assign_buckets(dataset, BucketConfig(resolution=side))


def examined(dataset: Dataset, unreadable: str = "") -> tuple[Examination, dict[str, Finding]]:
    numbers = {picture.path: n for n, picture in enumerate(dataset.pictures)}  # a look for each file
    looks = [
        None if picture.path.name == unreadable
        else Look(hash=(numbers[picture.path] + 1) * 0x9E3779B97F4A7C15 % 2**64,
                  mirrored=(numbers[picture.path] + 1) * 0xC2B2AE3D27D4EB4F % 2**64,
                  sharpness=1.0, rotated=False, transparent=0.0)
        for picture in dataset.pictures
    ]  # fmt: skip
    found = examine(dataset, looks)
    return found, {finding.kind: finding for finding in found.findings}


def test_a_second_resolution_is_no_second_picture():
    """sd-scripts #557."""
    examination, found = examined(concat([at(512, photos()), at(640, photos())]))
    assert examination.pictures == 12 and found == {}


def test_a_file_that_is_there_twice_at_one_resolution_is_found():
    dataset = at(512, photos())
    _, found = examined(concat([dataset, at(640, photos()), dataset]))
    assert len(found["there twice"].files) == 12


def test_each_resolution_is_looked_at_and_the_dearest_is_named():
    examination, found = examined(concat([at(512, photos()), at(1024, photos())]))
    assert found["too small"].files[0] == "11.png (1.5 × at 1024)" and len(found["too small"].files) == 12
    assert found["too small"].what.startswith("12 pictures are smaller")
    _, reverse = examined(concat([at(1024, photos()), at(512, photos())]))
    assert reverse["too small"].files == found["too small"].files
    # Far too small for one resolution only: nothing has to go.
    examination, _ = examined(concat([at(512, photos(500)), at(1024, photos(500))]))
    assert examination.excluded == frozenset()
    examination, _ = examined(at(1024, photos(500)))
    assert len(examination.excluded) == 12


def test_a_crop_at_one_of_two_resolutions_is_found():
    wide = photos().with_pictures(replace(picture, size=(5000, 700)) for picture in photos().pictures)
    padded = assign_buckets(wide, BucketConfig(resolution=256, fit="pad"))
    _, found = examined(concat([padded, at(512, wide)]))
    assert len(found["cropped"].files) == 12 and "at 512)" in found["cropped"].files[0]


def test_views_count_where_concepts_are_weighed():
    twice = [at(side, photos()) for side in (512, 576, 640, 704)]
    _, found = examined(concat([*twice, at(512, photos(folder="/b"))]))
    assert found["unbalanced"].what == "'a' is seen 48 times an epoch, 'b' 12 times."


def test_an_unreadable_file_is_one_picture():
    examination, found = examined(concat([at(512, photos()), at(640, photos())]), unreadable="03.png")
    assert found["unreadable"].what == "1 picture cannot be read." and examination.pictures == 12
