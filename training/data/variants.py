"""Variants of a picture: random crops and colours, so that a few pictures look like more.

kohya's trainer draws them each time a picture is shown, so it cannot cache latents then. Here each picture has a fixed
number of variants. They are drawn from the file's content and the variant's number, not from the run's seed, so the
cached latents serve the next run too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from ..draws import seed_for
from .dataset import Picture, Placement

_COLORED = 0.33  # share of the variants whose colours change
_HUE = 16.0  # degrees: 8 on OpenCV's scale of 180
_GAMMA = (0.95, 1.05)


@dataclass(frozen=True)
class Variant:
    """One crop and colouring of a picture.

    Attributes:
        placement: Its placement in the bucket.
        hue: Degrees by which its hues are turned, -16 to 16.
        gamma: Exponent of its brightness, 0.95 to 1.05.
    """

    placement: Placement
    hue: float = 0.0
    gamma: float = 1.0

    @property
    def color(self) -> tuple[float, ...]:
        """What a cache key covers besides the placement; empty if the colours are the file's."""
        return () if (self.hue, self.gamma) == (0, 1) else (self.hue, self.gamma)


def variants_of(picture: Picture, content: str) -> list[Variant]:
    """The variants of a picture, in order of their numbers; without random crop and colours, the picture as it is.

    Args:
        picture: Bucketed.
        content: Content hash of its file, in hexadecimal digits.
    """
    assert picture.placement is not None, "not bucketed"
    return [_variant(picture, picture.placement, int(content, 16), number) for number in range(picture.variants)]


def _variant(picture: Picture, place: Placement, content: int, number: int) -> Variant:
    """Draw one variant, as kohya's `trim_and_resize_if_required` and `AugHelper.color_aug` draw theirs.

    The crop is anywhere in the scaled picture. A third of the variants have other colours: half of these another hue,
    the others another gamma. Crop and colours have generators of their own.
    """
    if picture.random_crop:
        crop = random.Random(seed_for(content, "crop", number))
        corner = [crop.randint(0, whole - part) for whole, part in zip(place.scaled, place.bucket, strict=True)]
        place = replace(place, offset=(corner[0], corner[1]))
    color = random.Random(seed_for(content, "color", number))
    if not picture.color_aug or color.random() >= _COLORED:
        return Variant(place)
    if color.random() < 0.5:
        return Variant(place, hue=color.uniform(-_HUE, _HUE))
    return Variant(place, gamma=color.uniform(*_GAMMA))


def recolored(pixels: np.ndarray, variant: Variant) -> np.ndarray:
    """Change a picture's colours.

    Gamma is x^gamma on values of 0 to 1, as in albumentations' RandomGamma. kohya's trainer computes it on values of 0
    to 255 instead, where 0.95 makes white a grey of 193.

    Args:
        pixels: [H, W, 3], float32, 0 to 1.
        variant: Says how.

    Returns:
        The same shape, type and range.
    """
    if variant.hue:
        pixels = _turned(pixels, variant.hue)
    return pixels if variant.gamma == 1 else pixels ** np.float32(variant.gamma)


def _turned(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turn the hue in the HSV model (Smith 1978, "Color Gamut Transform Pairs"), without rounding to steps of 8 bits.

    With value V = max, chroma C = max - min and hue H in sixths of a turn, each channel is V - C * clip(min(k, 4 - k)),
    where k is (5 + H) mod 6 for red, (3 + H) mod 6 for green and (1 + H) mod 6 for blue, and clip is to 0 to 1.
    """
    red, green, blue = np.moveaxis(pixels, -1, 0)
    value, chroma = pixels.max(-1), np.ptp(pixels, axis=-1)
    divisor = np.where(chroma > 0, chroma, 1)
    hue = np.select(
        [value == red, value == green],
        [(green - blue) / divisor, 2 + (blue - red) / divisor],
        4 + (red - green) / divisor,
    )
    places = (np.array([5, 3, 1]) + hue[..., None] + degrees / 60) % 6
    share = np.minimum(places, 4 - places).clip(0, 1)
    return (value[..., None] - chroma[..., None] * share).astype(np.float32).clip(0, 1)
