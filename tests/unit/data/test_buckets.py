"""Buckets keep the area, take the nearest shape, and place every picture inside its bounds."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from lora_workbench.training.data import buckets
from lora_workbench.training.data.buckets import BucketConfig
from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.errors import SettingError, UserError


def _dataset(*sizes: tuple[int, int]) -> Dataset:
    return Dataset(tuple(Picture(Path(f"p{i}.png"), size, "", repeats=i + 1) for i, size in enumerate(sizes)))


def _placed(size: tuple[int, int], **settings: object) -> buckets.Placement:
    placement = buckets.assign_buckets(_dataset(size), BucketConfig(**settings)).pictures[0].placement
    assert placement is not None
    return placement


def test_buckets_match_kohya_where_kohya_is_right() -> None:
    sizes = buckets.bucket_sizes(512, 256, 1024)
    assert len(sizes) == 17 and sizes[0] == (256, 832) and sizes[-1] == (1024, 256)
    assert len(buckets.bucket_sizes(1024, 512, 2048)) == 33


def test_no_bucket_is_cut_to_the_longest_side() -> None:
    assert buckets.bucket_sizes(1024, 256, 1024) == [(1024, 1024)]
    sizes = buckets.bucket_sizes(1024, 512, 1344)
    assert (512, 1024) not in sizes and (1344, 768) in sizes


def test_automatic_limits() -> None:
    assert buckets.bucket_sizes(512) == buckets.bucket_sizes(512, 256, 1024)
    assert buckets.side_limits(64, 0, 0, 64) == (64, 128)


@pytest.mark.parametrize("step", [8, 32, 64])
@pytest.mark.parametrize("resolution", [256, 512, 768, 1024])
def test_invariants_of_bucket_lists(resolution: int, step: int) -> None:
    low, high = buckets.side_limits(resolution, 0, 0, step)
    sizes = buckets.bucket_sizes(resolution, step=step)
    assert (resolution, resolution) in sizes
    assert sizes == sorted(set(sizes))
    for width, height in sizes:
        assert (height, width) in sizes
        assert width % step == 0 and height % step == 0 and low <= min(width, height) <= max(width, height) <= high
        # As close to the area as one step of the shorter side allows, and never above it.
        assert resolution**2 - max(width, height) * step < width * height <= resolution**2


def test_shapes_are_compared_by_ratio() -> None:
    pair = [(256, 512), (512, 512)]
    # 0.72 is nearer to 1 by ratio (1.39 against 1.44); kohya's difference would say 0.5 (0.22 against 0.28).
    assert buckets.choose_bucket((720, 1000), pair) == (512, 512)
    assert buckets.choose_bucket((700, 1000), pair) == (256, 512)


def test_ties_take_the_larger_area_then_the_wider() -> None:
    assert buckets.choose_bucket((100, 100), [(256, 256), (512, 512), (384, 384)]) == (512, 512)
    for pair in ([(448, 576), (576, 448)], [(576, 448), (448, 576)]):
        assert buckets.choose_bucket((100, 100), pair) == (576, 448)


def test_a_portrait_is_treated_as_the_mirror_of_a_landscape() -> None:
    sizes, draw = buckets.bucket_sizes(512), random.Random(1)
    for _ in range(300):
        width, height = draw.randint(50, 3000), draw.randint(50, 3000)
        if width != height:
            assert buckets.choose_bucket((height, width), sizes) == buckets.choose_bucket((width, height), sizes)[::-1]


@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_invariants_of_placements(fit: str, upscale: bool) -> None:
    draw = random.Random(2)
    sizes = [(int(2 ** draw.uniform(6, 12)), int(2 ** draw.uniform(6, 12))) for _ in range(400)]
    config = BucketConfig(resolution=512, step=32, fit=fit, upscale=upscale, min_side=64)
    for picture in buckets.assign_buckets(_dataset(*sizes), config).pictures:
        placement = picture.placement
        assert placement is not None and placement.fit == fit
        for side in (0, 1):
            bucket, scaled, offset = placement.bucket[side], placement.scaled[side], placement.offset[side]
            assert bucket % 32 == 0 and 64 <= bucket <= 1024
            if fit == "crop":
                assert offset >= 0 and offset + bucket <= scaled
                assert abs((scaled - bucket - offset) - offset) <= 1
            else:
                assert offset >= 0 and offset + scaled <= bucket
                assert abs((bucket - scaled - offset) - offset) <= 1
            assert upscale or scaled <= picture.size[side]
            # The shape is kept to the pixel.
            other = placement.scaled[1 - side] / picture.size[1 - side] * picture.size[side]
            assert abs(scaled - other) <= 0.5 + 0.5 * picture.size[side] / picture.size[1 - side] + 1e-6
        touches = [placement.scaled[side] == placement.bucket[side] for side in (0, 1)]
        assert any(touches)
        assert placement.bucket[0] * placement.bucket[1] <= 512 * 512


def test_small_pictures_are_enlarged_only_when_asked() -> None:
    assert _placed((300, 300)).scaled == (512, 512)
    assert _placed((300, 300), upscale=False).bucket == (256, 256)
    assert _placed((512, 512), upscale=False).bucket == (512, 512)
    # One side is short but the area is large enough: shrunk to the area, not enlarged to the bucket.
    near = _placed((1000, 1050), resolution=1024, upscale=False)
    assert near.bucket == (960, 1024) and near.scaled[0] <= 1000


def test_max_side_limits_buckets_without_upscale_too() -> None:
    placement = _placed((2500, 100), upscale=False, min_side=64)
    assert placement.bucket == (1024, 64)
    assert placement.scaled == (1600, 64)


def test_a_picture_one_pixel_wide_stays_visible() -> None:
    assert _placed((5000, 1), fit="pad").scaled == (1024, 1)
    assert _placed((1, 5000), fit="pad").scaled == (1, 1024)


def test_small_pictures_are_skipped_and_named() -> None:
    dataset = _dataset((200, 200), (600, 600), (20, 20))
    bucketed = buckets.assign_buckets(dataset, BucketConfig(upscale=False))
    assert [picture.size for picture in bucketed.pictures] == [(600, 600)]
    assert len(bucketed.skipped) == 2 and "p0.png is 200 x 200 pixels" in bucketed.skipped[0]
    assert "upscale" in bucketed.skipped[0] and "256" in bucketed.skipped[0]
    with pytest.raises(UserError, match="No picture is large enough"):
        buckets.assign_buckets(_dataset((30, 30)), BucketConfig(upscale=False))


def test_bucketing_stores_its_settings_and_changes_nothing_else() -> None:
    dataset = _dataset((600, 400), (400, 600))
    bucketed = buckets.assign_buckets(dataset, BucketConfig(resolution=256, step=32, flip=True))
    assert (bucketed.bucket_step, bucketed.resolution) == (32, 256)
    assert all(picture.flip for picture in bucketed.pictures)
    assert bucketed.is_bucketed and not dataset.is_bucketed and dataset.pictures[0].placement is None
    again = buckets.assign_buckets(bucketed, BucketConfig())
    assert again.pictures == buckets.assign_buckets(dataset, BucketConfig()).pictures
    assert not any(picture.flip for picture in again.pictures)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resolution": 520}, "Use 512 or 576"),
        ({"step": 12}, "Use 8 or 16"),
        ({"min_side": 640}, "min side is 640, more than the resolution 512"),
        ({"max_side": 448}, "max side is 448, less than the resolution 512"),
        ({"fit": "stretch"}, "crop, pad"),
        ({"resolution": 0}, "at least 64"),
    ],
)
def test_conflicting_settings_are_rejected(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        BucketConfig(**settings)


def test_report_and_error() -> None:
    dataset = buckets.assign_buckets(_dataset((512, 512), (1024, 512), (100, 100)), BucketConfig())
    report = buckets.bucket_report(dataset).splitlines()
    assert report[0].startswith("3 pictures in 2 buckets, 6 per epoch")
    assert "512 x 512: 2 pictures, 4 per epoch, 0.0% cut away, 1 enlarged up to 5.1 times" in report
    wide = dataset.pictures[1].placement
    assert wide is not None and wide.bucket == (704, 320)
    lost = 1 - 704 * 320 / (wide.scaled[0] * wide.scaled[1])
    assert f"704 x 320: 1 picture, 2 per epoch, {lost:.1%} cut away" in report
    assert buckets.aspect_error(dataset) == pytest.approx((704 / 320 - 2) / 3)
    padded = buckets.assign_buckets(_dataset((1024, 512)), BucketConfig(fit="pad"))
    assert "9.1% padding" in buckets.bucket_report(padded)
    assert math.isclose(buckets.enlargement(padded.pictures[0]), 640 / 1024)
