"""Masks: which parts of a picture are learned, and how much the rest counts.

A mask comes from a `<name>_mask` file next to the picture, from the picture's transparency, or from the graph. White
(or opaque) counts fully, black (or transparent) by the factor `Picture.outside`, grey in between. The weights are
normalised per picture (`objective.prediction_losses`), so that a small object on a large picture is not learned less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import UnreadableImage, UserError
from ..events import counted
from ..settings import Settings, knob
from . import images
from .dataset import Dataset, Picture

SOURCES = ("mask file, else transparency", "mask file", "transparency")
_SHAPE_TOLERANCE = 0.02  # how much the aspect ratios of a picture and its mask may differ


@dataclass(frozen=True)
class MaskSettings(Settings):
    """Where masks come from, and how much the outside counts."""

    source: str = knob(
        SOURCES[0],
        "Where the masks come from. 'mask file' is cat_mask.png next to cat.jpg. 'transparency' is the picture's own. "
        "A connected mask input replaces both.",
        choices=SOURCES,
    )
    outside: float = knob(
        0.1, "Loss weight outside the mask. 0.1 keeps the surroundings plausible; 0 ignores them completely.",
        min=0.0, max=1.0, step=0.05, rounded=True,
    )


def with_masks(
    dataset: Dataset, source: str, outside: float, given: Sequence[Path] = ()
) -> tuple[Dataset, int]:
    """Choose the mask of each picture.

    Args:
        dataset: Pictures with their mask files, if any.
        source: One of SOURCES.
        outside: Weight of the loss outside the mask, 0 to 1.
        given: Mask files from the graph, one for all pictures or one for each. They replace the source.

    Returns:
        The dataset, and the number of its pictures that have a mask. The others are trained whole.

    Raises:
        UserError: The number of masks is neither one nor the number of pictures.
    """
    learned = [picture for picture in dataset.pictures if not picture.is_regularization]
    if given and len(given) not in (1, len(learned)):
        raise UserError(
            f"There are {len(given)} masks for {counted(len(learned), 'picture')}. "
            "Connect one for all, or one for each."
        )
    masked = 0
    pictures = []
    for picture in dataset.pictures:
        if picture.is_regularization:  # preserved whole
            pictures.append(picture)
            continue
        mask = picture.mask if source != SOURCES[2] else None
        if mask is None and source != SOURCES[1] and _is_transparent(picture.path):
            mask = picture.path
        if given:
            mask = given[masked % len(given)]  # all pictures before this one have a mask too
        masked += mask is not None
        pictures.append(replace(picture, mask=mask, outside=outside))
    return dataset.with_pictures(tuple(pictures)), masked


def read_mask(picture: Picture) -> Image.Image:
    """Decode a picture's mask: L, upright, scaled to the picture's size.

    Raises:
        UnreadableImage: The file is missing, damaged or of a different shape.
    """
    assert picture.mask is not None, "has no mask"
    with images.opened(picture.mask) as image:
        turn = images.orientation(image)
        images.load(image)
        if picture.mask == picture.path:
            mask = image.convert("RGBA").getchannel("A")
        else:
            mask = images.opaque(image, (0, 0, 0)).convert("L")
    mask = images.turned(mask, turn)
    if abs((mask.width / mask.height) / (picture.size[0] / picture.size[1]) - 1) > _SHAPE_TOLERANCE:
        raise UnreadableImage(
            f"The mask {picture.mask.name} is {mask.width} x {mask.height} pixels, a different shape from "
            f"{picture.path.name} ({picture.size[0]} x {picture.size[1]}). Use a mask of the picture's shape."
        )
    return mask if mask.size == picture.size else mask.resize(picture.size, Image.Resampling.BILINEAR)


def latent_mask(picture: Picture, shape: tuple[int, int], flipped: bool) -> Tensor:
    """How much of each latent position lies inside the mask.

    Args:
        picture: A bucketed picture with a mask.
        shape: (h, w) of its latent.
        flipped: Whether the picture is mirrored.

    Returns:
        [h, w], 0 to 1.

    Raises:
        UnreadableImage: The mask cannot be read, or leaves nothing to learn.
    """
    assert picture.placement is not None, "not bucketed"
    mask = read_mask(picture)
    placed = images.place(mask, picture.placement, 0)
    pixels = torch.from_numpy(np.array(placed, dtype=np.float32) / 255)
    inside = F.interpolate(pixels[None, None], size=shape, mode="area")[0, 0]
    # One of several random crops may miss the mask.
    brightest = mask.getextrema()[1] if picture.random_crop else inside.max()
    if picture.outside == 0 and float(brightest) == 0:
        raise UnreadableImage(
            f"{picture.mask} is black over all of {picture.path.name} that is trained, and outside is 0. "
            "Correct the mask, or set outside above 0."
        )
    return inside.flip(-1).contiguous() if flipped else inside


def _is_transparent(path: Path) -> bool:
    try:
        with images.opened(path) as image:
            return image.has_transparency_data
    except UnreadableImage:  # reported when the picture is encoded
        return False
