"""The demo's training pictures and their folders, laid out as a person would. Pillow only."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...training.disk import write_whole

# The character's pictures and the regularization pictures: folders of ComfyUI's.
CONCEPT, PICTURES = "zorp", "input/lora_workbench_zorp/10_zorp"
KEPT, KEPT_COUNT, KEPT_SEED = "input/lora_workbench_known/1_known", 60, 0


_LIST = ".lora_workbench.json"  # the written files: a digest of each picture with its caption


def write_pictures(folder: Path, pictures: Sequence[tuple[Image.Image, str]]) -> list[Path]:
    """Write missing pictures, each with a caption file.

    Both appear whole, the picture after its caption, so an interrupted call can be repeated. Unchanged pictures of
    another version are replaced, or deleted if there are fewer now. Everything else in the folder stays as it is.

    Args:
        folder: For example `input/zorp/10_zorp`; pictures are named like it, without the number.
        pictures: (picture, caption) pairs.

    Returns:
        The written pictures.
    """
    name = folder.name.split("_", 1)[-1]
    wanted = {}
    for number, (picture, caption) in enumerate(pictures, 1):
        png = io.BytesIO()
        picture.save(png, format="PNG")
        wanted[f"{name}_{number:02d}.png"] = png.getvalue(), f"{caption}\n".encode()
    digests = {file: _digest(*parts) for file, parts in wanted.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for file, digest in _listed(folder).items():
        if digest != digests.get(file) and digest == _lying(folder / file):
            (folder / file).unlink()
            (folder / file).with_suffix(".txt").unlink()
    written = []
    for file, (png, caption) in wanted.items():
        if not (folder / file).exists():
            if not (folder / file).with_suffix(".txt").exists():
                write_whole((folder / file).with_suffix(".txt"), caption)
            write_whole(folder / file, png)
            written.append(folder / file)
    ours = {file: digest for file, digest in digests.items() if digest == _lying(folder / file)}
    write_whole(folder / _LIST, json.dumps(ours, indent=1).encode())
    return written


def _listed(folder: Path) -> dict[str, str]:
    """The files written before; empty if the list is missing or damaged."""
    try:
        listed = json.loads((folder / _LIST).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(listed, dict):
        return {}
    return {file: digest for file, digest in listed.items() if Path(file).name == file}


def _digest(png: bytes, caption: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(png).digest() + caption).hexdigest()


def _lying(file: Path) -> str:
    """The digest of a picture in the folder with its caption; empty if one of them is missing."""
    try:
        return _digest(file.read_bytes(), file.with_suffix(".txt").read_bytes())
    except OSError:
        return ""
