"""Measures what a picture looks like: perceptual hashes for near-duplicates, sharpness, and how it was stored.

JPEG files are decoded at a fraction of their size, so ten thousand pictures take less than a minute.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.dataset import Dataset, Picture
from ..data.images import load, opaque, opened, orientation, turned
from ..errors import UnreadableImage, UserError
from ..events import Cancelled, Sink

SHARPNESS_SIDE = 512  # longest side in pixels at which sharpness is compared
HASH_BITS = 64
_AHEAD = 64  # pictures handed to the threads before their results are collected
_BLOCK = 250  # pictures compared with all others at once
_HASHED_SIDE = 128  # longest side in pixels; the hash uses 32; from this many it is as good and faster


@dataclass(frozen=True)
class Look:
    """The measurements of one picture.

    Attributes:
        hash: Perceptual hash, 64 bits.
        mirrored: Perceptual hash of the mirrored picture.
        sharpness: Variance of the Laplacian of the grey values at 512 pixels. Flat art has low values, so compare
            pictures of one dataset only.
        rotated: Whether the file is stored rotated, with an EXIF orientation.
        transparent: Share of pixels that are not fully opaque.
    """

    hash: int
    mirrored: int
    sharpness: float
    rotated: bool
    transparent: float


def look_at(picture: Picture, background: tuple[int, int, int]) -> Look:
    """Decode a picture at a small size and measure it.

    Args:
        picture: A picture of a dataset.
        background: (r, g, b) behind transparent pixels.

    Raises:
        UnreadableImage: The picture cannot be read.
        UserError: The package ImageHash is not installed.
    """
    hashes = _imagehash()
    with opened(picture.path) as image:
        turn = orientation(image)
        longest = max(image.size)
        if longest > SHARPNESS_SIDE:
            # A JPEG decodes to at least this size, so nothing measured is lost.
            # Only grey values are measured, and JPEG stores them apart from the colours.
            image.draft("L", (SHARPNESS_SIDE, SHARPNESS_SIDE))
        load(image)
        clear = _transparent_share(image)
        grey = turned(image if image.mode == "L" and not clear else opaque(image, background).convert("L"), turn)
    if max(grey.size) > SHARPNESS_SIDE:
        grey.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BILINEAR)
    sharpness = _sharpness(np.asarray(grey).astype(np.int16))
    small = grey.copy()
    small.thumbnail((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.BOX)
    return Look(
        hash=_number(hashes.phash(small).hash),
        mirrored=_number(hashes.phash(small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).hash),
        sharpness=sharpness,
        rotated=turn != 1,
        transparent=clear,
    )


def _sharpness(grey: np.ndarray) -> float:
    """Return the variance of the Laplacian of grey values [H, W], int16.

    This is five times as fast as scipy's, which also handles the borders.
    """
    if min(grey.shape) < 3:
        return 0.0
    edges = grey[1:-1, :-2] + grey[1:-1, 2:]
    edges += grey[:-2, 1:-1]
    edges += grey[2:, 1:-1]
    edges -= 4 * grey[1:-1, 1:-1]
    flat = edges.ravel().astype(np.float32)
    return float(np.dot(flat, flat)) / flat.size - float(flat.mean()) ** 2


def _number(bits: np.ndarray) -> int:
    """Return a hash [8, 8] of booleans as one number, its first bit the highest."""
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def near_duplicates(
    looks: Sequence[Look], closest: int = 8, most: int | None = None
) -> list[tuple[int, int, bool]]:
    """Find pairs of pictures that look alike. Pictures with the same hash are paired each with the next.

    Args:
        looks: The measurements of all pictures.
        closest: Most bits that may differ, 0 to 64. Resized copies differ in 0, crops of a twentieth in about 6,
            unrelated pictures in about 30.
        most: Most pairs to find; None for all.

    Returns:
        (first, second, mirrored) with first < second, each pair once.
    """
    found: list[tuple[int, int, bool]] = []
    last: dict[int, int] = {}
    for number, look in enumerate(looks):
        if look.hash in last:
            found.append((last[look.hash], number, False))
        last[look.hash] = number
    # One picture stands for all with its hash: a hundred copies make a hundred pairs, not five thousand.
    some = sorted(last.values())
    plain = _signs([looks[number].hash for number in some])
    mirrored = _signs([looks[number].mirrored for number in some])
    for at in range(0, len(some), _BLOCK):
        if most is not None and len(found) >= most:
            return found[:most]
        block = slice(at, at + _BLOCK)
        # The product of two vectors of 1 and -1 is 64 minus twice the number of bits that differ.
        same, around = ((HASH_BITS - part[block] @ plain.T) / 2 for part in (plain, mirrored))
        for row, second in zip(*np.nonzero(np.minimum(same, around) <= closest), strict=True):
            first = at + int(row)
            if first < second:
                found.append((some[first], some[int(second)], bool(around[row, second] < same[row, second])))
    return found[:most]


def _signs(hashes: Sequence[int]) -> np.ndarray:
    """Return hashes as vectors of 1 and -1, [N, 64]."""
    octets = np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(octets, axis=1).astype(np.float32) * 2 - 1


def _transparent_share(image: Image.Image) -> float:
    if not image.has_transparency_data:
        return 0.0
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return float((alpha < 255).mean())


def _imagehash() -> Any:
    try:
        return importlib.import_module("imagehash")
    except ImportError as error:
        raise UserError(
            "Near-duplicates are found with the package ImageHash, which is not installed. Run in ComfyUI's Python: "
            'pip install "ImageHash>=4.3", then restart ComfyUI.'
        ) from error


def look_at_all(dataset: Dataset, sink: Sink) -> list[Look | None]:
    """Measure every picture, several at a time; None stands for one that cannot be read.

    Raises:
        Cancelled: Cancel was pressed between two pictures.
        UserError: The package ImageHash is not installed.
    """
    _imagehash()

    def look(picture: Picture) -> Look | None:
        try:
            return look_at(picture, dataset.background)
        except UnreadableImage:
            return None

    looks: list[Look | None] = []
    total = len(dataset.pictures)
    # Decoders release Python's global lock, so threads use every core.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        waiting = (pool.submit(look, picture) for picture in dataset.pictures)
        ahead: deque[Future[Look | None]] = deque(itertools.islice(waiting, _AHEAD))
        try:
            while ahead:
                if sink.cancelled():
                    raise Cancelled
                sink.phase("looking at pictures", len(looks), total)
                looks.append(ahead.popleft().result())
                ahead.extend(itertools.islice(waiting, 1))
        finally:
            for future in ahead:
                future.cancel()
    sink.phase("looking at pictures", total, total)
    return looks
