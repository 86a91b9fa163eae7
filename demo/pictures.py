"""The demo's training pictures, and where they lie on disk, as a person would lay them out. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

# What is learned, and what the model shall go on painting as it does: folders of ComfyUI's.
CONCEPT, PICTURES = "zorp", "input/lora_workbench_zorp/10_zorp"
KEPT, KEPT_COUNT, KEPT_SEED = "input/lora_workbench_known/1_known", 60, 0


def write_pictures(folder: Path, pictures: Sequence[tuple[Image.Image, str]]) -> list[Path]:
    """Write pictures and a caption file beside each, those that are not there; whatever else is there stays as it is.

    Both appear whole, the picture after its caption: what was being written when the power went is written anew.

    Args:
        folder: Such as `input/zorp/10_zorp`; its pictures take its name without the number.
        pictures: (picture, caption) pairs.

    Returns:
        The pictures that were written.
    """
    name = folder.name.split("_", 1)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (picture, caption) in enumerate(pictures, 1):
        file = folder / f"{name}_{number:02d}.png"
        if file.exists():
            continue
        part = file.with_suffix(".part")
        if not file.with_suffix(".txt").exists():
            part.write_text(caption + "\n", encoding="utf-8")
            part.replace(file.with_suffix(".txt"))
        picture.save(part, format="PNG")
        part.replace(file)
        written.append(file)
    return written
