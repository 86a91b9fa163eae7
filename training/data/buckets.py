"""Buckets: a few picture sizes of about equal area, so that pictures of similar shape are trained together.

After kohya's sd-scripts (`make_bucket_resolutions`), with three fixes. No bucket loses area to the longest side,
shapes are compared by ratio instead of difference, and pictures that are too small are named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import SettingError, UserError
from ..events import counted
from ..settings import Settings, knob
from .dataset import Dataset, Picture, Placement

Size = tuple[int, int]

# Enlargement from which the report mentions a picture. Below it the difference is invisible.
NOTICEABLE = 1.05


@dataclass(frozen=True)
class BucketConfig(Settings):
    """How pictures are sorted into buckets."""

    resolution: int = knob(
        512,
        "Buckets have about the area of a square with this side, in pixels. 512 suits SD 1.5; 1024 suits SDXL, SD3 "
        "and Flux. Smaller trains faster with less detail.",
        min=64,
        max=8192,
        step=64,
    )
    min_side: int = knob(
        0,
        "Shortest side of a bucket, in pixels. 0: half the resolution.",
        min=0,
        max=8192,
        step=8,
        advanced=True,
    )
    max_side: int = knob(
        0,
        "Longest side of a bucket, in pixels. 0: twice the resolution.",
        min=0,
        max=16384,
        step=8,
        advanced=True,
    )
    step: int = knob(
        64,
        "Bucket sides are multiples of this, in pixels. 64 fits every model. 32 or 16 crop less but make more "
        "buckets.",
        min=8,
        max=512,
        step=8,
        advanced=True,
    )
    upscale: bool = knob(
        True,
        "Enlarge pictures that are smaller than their bucket. Off: they get a smaller bucket, and pictures with a "
        "side below min side are left out.",
        advanced=True,
    )
    fit: str = knob(
        "crop",
        "crop: fill the bucket and cut off the edges equally. pad: keep the whole picture and fill the rest with the "
        "background, which is not trained.",
        choices=("crop", "pad"),
        advanced=True,
    )
    flip: bool = knob(
        False,
        "Mirror each picture left to right half of the time. Leave it off for text and asymmetric faces.",
        advanced=True,
    )
    random_crop: bool = knob(
        False,
        "Crop each picture at a random place, not in the middle. Needs fit crop. Each crop is encoded once and kept on "
        "disk; variants says how many.",
        advanced=True,
    )
    color_aug: bool = knob(
        False,
        "Change the colours in a third of the variants: the hue by up to 16 degrees, or the gamma by up to 5 percent. "
        "Each variant is encoded once and kept on disk.",
        advanced=True,
    )
    variants: int = knob(
        8,
        "Number of variants of each picture for random_crop and color_aug; one is drawn each time it is shown. More "
        "take longer to encode and more disk space. Ignored when both are off.",
        min=1,
        max=1000,
        advanced=True,
    )

    # Saved workflows hold values by position: a new setting goes to the end.
    ADDED_FROM: ClassVar[str] = "random_crop"

    @property
    def varies(self) -> bool:
        """Whether pictures have variants."""
        return self.random_crop or self.color_aug

    def __post_init__(self) -> None:
        """Reject settings that conflict.

        Raises:
            SettingError: Names the settings and values that would work.
        """
        super().__post_init__()
        if self.step % 8:
            below, above = self.step // 8 * 8, self.step // 8 * 8 + 8
            raise SettingError(f"step is {self.step}, not a multiple of 8 as latents need. Use {below} or {above}.")
        if self.resolution % self.step:
            below = self.resolution // self.step * self.step
            nearest = " or ".join(str(side) for side in (below, below + self.step) if side)
            raise SettingError(
                f"resolution is {self.resolution}, which is not a multiple of the step {self.step}. Use {nearest}."
            )
        if self.random_crop and self.fit == "pad":
            raise SettingError(
                "random crop is on, but fit is 'pad', which crops nothing. Set fit to crop, or turn random crop off."
            )
        low, high = side_limits(self.resolution, self.min_side, self.max_side, self.step)
        if low > self.resolution:
            raise SettingError(
                f"min side is {low}, more than the resolution {self.resolution}. Lower it, or set 0 for automatic."
            )
        if high < self.resolution:
            raise SettingError(
                f"max side is {high}, less than the resolution {self.resolution}. Raise it, or set 0 for automatic."
            )


def side_limits(resolution: int, min_side: int, max_side: int, step: int) -> tuple[int, int]:
    """The shortest and longest side of a bucket: 0 becomes half and twice the resolution."""
    low = min_side or max(step, round(resolution / 2 / step) * step)
    return low, max_side or round(resolution * 2 / step) * step


def bucket_sizes(resolution: int, min_side: int = 0, max_side: int = 0, step: int = 64) -> list[Size]:
    """List the buckets: for each width the greatest height whose area stays within the square's.

    Args:
        resolution: Side of the square in pixels, a multiple of `step`.
        min_side: Shortest side allowed; 0 for half the resolution.
        max_side: Longest side allowed; 0 for twice the resolution. A width whose height would exceed it gets no
            bucket. kohya cuts the height instead, and trains 512 x 1024 at a resolution of 1024.
        step: Sides are multiples of it.

    Returns:
        (width, height) pairs, sorted, each with its mirror image (height, width).
    """
    low, high = side_limits(resolution, min_side, max_side, step)
    area = resolution * resolution
    sizes: set[Size] = set()
    for width in range(-(-low // step) * step, high + 1, step):
        height = area // width // step * step
        if low <= height <= high:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def choose_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape is nearest to a picture's, by the ratio of their aspect ratios.

    kohya compares the difference of width / height, which makes portraits seem closer to one another than landscapes.
    A tie goes to the larger area, then to the wider bucket.
    """
    wanted = math.log(size[0] / size[1])

    def distance(bucket: Size) -> tuple[float, int, int]:
        # Rounded, because a shape and its mirror image differ in the last bit.
        away = round(abs(math.log(bucket[0] / bucket[1]) - wanted), 9)
        return away, -bucket[0] * bucket[1], -bucket[0]

    return min(buckets, key=distance)


def assign_buckets(dataset: Dataset, config: BucketConfig) -> Dataset:
    """Assign every picture a bucket and its placement in it.

    Args:
        dataset: Any dataset. Existing placements are replaced.
        config: The checked settings.

    Returns:
        The bucketed dataset. `skipped` names the pictures that are too small, which occurs only with `upscale` off.

    Raises:
        UserError: No picture is left.
    """
    sizes = bucket_sizes(config.resolution, config.min_side, config.max_side, config.step)
    low, high = side_limits(config.resolution, config.min_side, config.max_side, config.step)
    kept: list[Picture] = []
    skipped: list[str] = []
    for picture in dataset.pictures:
        placement = _fill(picture.size, choose_bucket(picture.size, sizes), config.fit)
        if not config.upscale and _enlarges(placement, picture.size):
            own = _own_bucket(picture.size, config.resolution, high, config.step)
            if min(own) < max(low, config.step):
                width, height = picture.size
                skipped.append(
                    f"{picture.path} is {width} x {height} pixels, too small for the shortest side of {low}. "
                    "Turn upscale on, or lower min side."
                )
                continue
            placement = _fill(picture.size, own, config.fit)
        kept.append(
            replace(
                picture, placement=placement, flip=config.flip, random_crop=config.random_crop,
                color_aug=config.color_aug, variants=config.variants if config.varies else 1, own_resolution=None,
            )
        )  # fmt: skip
    if not kept:
        raise UserError(f"No picture is large enough to train without enlarging. {skipped[0]}")
    return replace(
        dataset,
        pictures=tuple(kept),
        skipped=(*dataset.skipped, *skipped),
        bucket_step=config.step,
        resolution=config.resolution,
    )


def lost_share(placement: Placement) -> float:
    """The share lost to the bucket, 0 to 1: of the picture by cropping, or of the bucket by padding."""
    bucket = placement.bucket[0] * placement.bucket[1]
    scaled = placement.scaled[0] * placement.scaled[1]
    return 1 - min(bucket, scaled) / max(bucket, scaled)


def enlargement(picture: Picture) -> float:
    """The scale factor from a picture's file to its bucket; above 1 it is enlarged."""
    assert picture.placement is not None, "not bucketed"
    # By the longer side, which rounding to whole pixels changes least.
    side = 0 if picture.size[0] >= picture.size[1] else 1
    return picture.placement.scaled[side] / picture.size[side]


def bucket_report(dataset: Dataset) -> str:
    """Describe the buckets for a person: a summary, then the size, count, loss and enlargement of each."""
    buckets = dataset.buckets()
    total = f"{counted(len(dataset.pictures), 'picture')} in {counted(len(buckets), 'bucket')}"
    total += f", {dataset.images_per_epoch} per epoch"
    lines = [total + (f", {len(dataset.skipped)} left out" if dataset.skipped else "")]
    lines.append(f"mean difference of width / height: {aspect_error(dataset):.3f}")
    for (width, height), pictures in buckets.items():
        shown = round(sum(picture.repeats for picture in pictures))
        placements = [picture.placement for picture in pictures if picture.placement is not None]
        lost = sum(map(lost_share, placements)) / len(placements)
        word = "cut away" if placements[0].fit == "crop" else "padding"
        word += " at random" if any(picture.random_crop for picture in pictures) else ""
        line = f"{width} x {height}: {counted(len(pictures), 'picture')}, {shown} per epoch, {lost:.1%} {word}"
        upscaled = [times for times in map(enlargement, pictures) if times >= NOTICEABLE]
        if upscaled:
            line += f", {len(upscaled)} enlarged up to {max(upscaled):.1f} times"
        lines.append(line)
    if dataset.skipped:
        lines += [f"{len(dataset.skipped)} left out:", *dataset.skipped]
    return "\n".join(lines)


def aspect_error(dataset: Dataset) -> float:
    """Mean absolute difference of width / height between pictures and buckets (kohya's ss_bucket_info)."""
    errors = [
        abs(picture.size[0] / picture.size[1] - picture.placement.bucket[0] / picture.placement.bucket[1])
        for picture in dataset.pictures
        if picture.placement is not None
    ]
    return sum(errors) / len(errors) if errors else 0.0


def _fill(size: Size, bucket: Size, fit: str) -> Placement:
    """Scale a picture to cover its bucket (crop) or to fit inside it (pad), and centre it."""
    ratios = (bucket[0] / size[0], bucket[1] / size[1])
    if fit == "crop":
        scale = max(ratios)
        scaled = (max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale)))
        offset = ((scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)
    else:
        scale = min(ratios)
        scaled = (
            min(bucket[0], max(1, round(size[0] * scale))),
            min(bucket[1], max(1, round(size[1] * scale))),
        )
        offset = ((bucket[0] - scaled[0]) // 2, (bucket[1] - scaled[1]) // 2)
    return Placement(bucket, scaled, offset, fit)


def _enlarges(placement: Placement, size: Size) -> bool:
    return placement.scaled[0] > size[0] or placement.scaled[1] > size[1]


def _own_bucket(size: Size, resolution: int, max_side: int, step: int) -> Size:
    """The largest bucket that a picture fills without enlarging, within the resolution's area.

    A larger picture is shrunk to that area first. A side is cut to `max_side`. A side can come out as 0.
    """
    scale = min(1.0, resolution / math.sqrt(size[0] * size[1]))
    width, height = (min(int(side * scale), max_side) // step * step for side in size)
    return width, height
