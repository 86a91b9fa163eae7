"""Reads a picture of the world without any learned model: which shape, which colour, on which background.

It knows the shapes, but nothing about the base model's training. The background is the colour of the border, the thing
is what differs from it. Its colour is its median, its shape the silhouette it overlaps best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from ..world.world import BACKGROUNDS, COLORS, SHAPES, Thing, shape_mask

_GRID = 48  # silhouettes are compared on a grid of this side
# Least overlap with the best shape. Drawn shapes reach 0.85; different ones overlap by 0.69 at most, except circle and
# square (0.83).
_CLEAR = 0.7
_CRUMBS = 0.05  # largest area outside the thing, as a share of it; more makes the picture unclear


@dataclass(frozen=True)
class Reading:
    """The contents of a picture.

    Attributes:
        shape: One of SHAPES, "unclear", or "nothing".
        color: One of COLORS, or "nothing".
        background: One of BACKGROUNDS.
        overlap: How well the silhouette fits its shape, 0 to 1 (intersection over union).
    """

    shape: str
    color: str
    background: str
    overlap: float


def read(picture: Image.Image) -> Reading:
    """Read one picture with one thing in it."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    background = nearest(ground_color(pixels), BACKGROUNDS)
    labels, areas = _patches(pixels, to_lab(pixels))
    mask, everything = _of_size(labels, areas, smallest=1.0), labels > 0
    if mask.sum() < 40:
        return Reading("nothing", "nothing", background, 0.0)
    core = ndimage.binary_erosion(mask, iterations=2)
    color = nearest(np.median(pixels[core if core.sum() > 20 else mask], axis=0), COLORS)
    shape, overlap = _best_shape(mask)
    alone = everything.sum() <= (1 + _CRUMBS) * mask.sum()
    return Reading(shape if overlap >= _CLEAR and alone else "unclear", color, background, overlap)


def read_pair(picture: Image.Image, relation: str) -> tuple[Reading, Reading]:
    """Read the two things of a relation in order: each half of the picture by itself."""
    across = relation in ("left of", "right of")
    width, height = picture.size
    middle = (width // 2, height) if across else (width, height // 2)
    halves = (
        read(picture.crop((0, 0, *middle))),
        read(picture.crop((width - middle[0], height - middle[1], width, height))),
    )
    return halves if relation in ("left of", "above") else (halves[1], halves[0])


def ground_color(pixels: np.ndarray) -> np.ndarray:
    """The colour of the background, [3]: the median of the border of a picture [H, W, 3]."""
    rim = max(2, pixels.shape[0] // 32)
    border = [pixels[:rim], pixels[-rim:], pixels[:, :rim], pixels[:, -rim:]]
    return np.median(np.concatenate([strip.reshape(-1, 3) for strip in border]), axis=0)


def foreground(pixels: np.ndarray, smallest: float = 0.05, lab: np.ndarray | None = None) -> np.ndarray:
    """Where a picture [H, W, 3] is not background, [H, W].

    Args:
        pixels: 0 to 255.
        smallest: Separate patches smaller than this share of the largest are ignored.
        lab: The same pixels in CIE Lab, for a caller that has them.
    """
    return _of_size(*_patches(pixels, to_lab(pixels) if lab is None else lab), smallest)


def _patches(pixels: np.ndarray, lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Separate patches that differ from the background: a label for each pixel [H, W], 0 is background; their areas."""
    differs = np.abs(lab - to_lab(ground_color(pixels))).max(axis=-1) > 12
    labels, _ = ndimage.label(ndimage.binary_opening(differs))
    return labels, np.bincount(labels.ravel())[1:]


def _of_size(labels: np.ndarray, areas: np.ndarray, smallest: float) -> np.ndarray:
    """Where the patches are that have this share of the largest one's area or more."""
    large = np.concatenate([[False], areas >= smallest * areas.max(initial=0)])
    return large[labels]


def nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name the colour of a palette that looks most like this one."""
    distances = np.linalg.norm(to_lab(np.array(list(palette.values()), np.float32)) - to_lab(color), axis=-1)
    return list(palette)[int(distances.argmin())]


def _best_shape(mask: np.ndarray) -> tuple[str, float]:
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    grid = np.asarray(Image.fromarray(cut).convert("L").resize((_GRID, _GRID), Image.Resampling.BOX)) > 127
    ratio = cut.shape[1] / cut.shape[0]
    scores = {}
    for shape in SHAPES:
        best = 0.0
        for turned, own_ratio in _silhouettes(shape):
            # The grid loses the aspect ratio: without it, a diamond is a square on its corner.
            likeness = min(ratio, own_ratio) / max(ratio, own_ratio)
            overlap = (grid & turned).sum() / max(1, (grid | turned).sum())
            best = max(best, float(overlap) * likeness**0.5)
        scores[shape] = best
    shape = max(scores, key=scores.__getitem__)
    return shape, scores[shape]


@lru_cache
def _silhouettes(shape: str) -> tuple[tuple[np.ndarray, float], ...]:
    found = []
    for turn in (-12, -8, -4, 0, 4, 8, 12):
        mask = np.asarray(shape_mask(Thing(shape, "red", extent=0.38, turn=turn), 256)) > 127
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        small = Image.fromarray(cut).convert("L").resize((_GRID, _GRID), Image.Resampling.BOX)
        found.append((np.asarray(small) > 127, cut.shape[1] / cut.shape[0]))
    return tuple(found)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB, 0 to 255, to CIE L*a*b* (D65), in which distance is roughly how different two colours look."""
    linear = rgb / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
