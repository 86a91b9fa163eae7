"""The demo's training pictures on disk, as a person would lay them out. Pillow only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def write_pictures(folder: Path, pictures: Sequence[tuple[Image.Image, str]]) -> list[Path]:
    """Write pictures and a caption file beside each; returns the pictures' paths.

    The folder appears when all of them are written, and takes the place of one that is there.

    Args:
        folder: Such as `input/zorp/10_zorp`; its pictures take its name without the number.
        pictures: (picture, caption) pairs.
    """
    name = folder.name.split("_", 1)[-1]
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    files = []
    for number, (picture, caption) in enumerate(pictures, 1):
        file = part / f"{name}_{number:02d}.png"
        picture.save(file)
        file.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        files.append(folder / file.name)
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    return files
