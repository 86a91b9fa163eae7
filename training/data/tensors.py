"""Conversion between ComfyUI's IMAGE tensors and pictures on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..disk import disk_trouble, write_whole
from ..errors import UserError
from ..events import counted
from ..settings import Settings, knob
from .dataset import Dataset, Picture
from .words import clean_trigger, with_trigger


@dataclass(frozen=True)
class ImagesSettings(Settings):
    """How pictures from the graph become a dataset."""

    captions: str = knob("", "One caption for all pictures, or a list with one caption per picture.", multiline=True)
    repeats: int = knob(1, "How often each picture is seen per epoch.", min=1, max=10_000)
    trigger: str = knob("", "Trigger word. It is added in front of every caption that lacks it.")
    name: str = knob("images", "Name of the dataset in reports and in the LoRA's metadata.")


def image_tensor(image: Image.Image) -> Tensor:
    """Convert a picture to an IMAGE [1, H, W, 3], 0 to 1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]


def dataset_from_images(
    images: Sequence[Tensor], captions: Sequence[str], *, folder: Path, repeats: int, trigger: str, name: str
) -> Dataset:
    """Write IMAGE batches as PNG files and list them as a dataset.

    Files are named by their content, so the same pictures give the same dataset.

    Args:
        images: Batches [B, H, W, 3 or 4], 0 to 1, of any sizes.
        captions: One for all, or one for each picture.
        folder: Where the files go.
        repeats: How often an epoch shows each picture.
        trigger: Added in front of each caption that lacks it.
        name: Name of the dataset.

    Raises:
        UserError: There is no picture, the number of captions is neither one nor the number of pictures, or the
            folder cannot be written.
    """
    frames = [frame for batch in images for frame in batch]
    if not frames:
        raise UserError("The images input has no picture. Connect a node that gives at least one.")
    if len(captions) not in (1, len(frames)):
        raise UserError(
            f"There are {counted(len(captions), 'caption')} for {counted(len(frames), 'picture')}. "
            "Give one caption for all, or one for each."
        )
    texts = list(captions) * len(frames) if len(captions) == 1 else list(captions)
    pictures = []
    for frame, text in zip(frames, texts, strict=True):
        path, size = _write(frame, folder)
        pictures.append(
            Picture(path, size, with_trigger(text.strip(), trigger), repeats, concept=name, fingerprint=path.stem)
        )
    return Dataset(tuple(pictures), name=name, trigger=clean_trigger(trigger))


def write_masks(masks: Sequence[Tensor], folder: Path) -> list[Path]:
    """Write MASK batches as grey PNG files.

    Args:
        masks: Batches [B, H, W] or single masks [H, W], 0 to 1, of any sizes.
        folder: Where the files go.

    Raises:
        UserError: The folder cannot be written.
    """
    return [_write(frame, folder)[0] for mask in masks for frame in mask.reshape(-1, *mask.shape[-2:])]


def _write(frame: Tensor, folder: Path) -> tuple[Path, tuple[int, int]]:
    # Rounded as ComfyUI rounds when it saves an image.
    array = (frame.detach().cpu().float().clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    pixel_hash = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:32]
    path = folder / f"{pixel_hash}.png"
    image = Image.fromarray(array)
    if not path.exists():
        try:
            write_whole(path, lambda part: image.save(part, format="PNG", compress_level=1))
        except OSError as error:
            raise UserError(disk_trouble(error, folder)) from error
    return path, image.size
