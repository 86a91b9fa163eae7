"""The demo's training pictures, and where they lie on disk, as a person would lay them out. Pillow only."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...training.disk import write_whole

# What is learned, and what the model shall go on painting as it does: folders of ComfyUI's.
CONCEPT, PICTURES = "zorp", "input/lora_workbench_zorp/10_zorp"
KEPT, KEPT_COUNT, KEPT_SEED = "input/lora_workbench_known/1_known", 60, 0


_LIST = ".lora_workbench.json"  # what was written into a folder: the digest of each picture with its caption


def write_pictures(folder: Path, pictures: Sequence[tuple[Image.Image, str]]) -> list[Path]:
    """Write pictures and a caption file beside each, those that are not there.

    Both appear whole, the picture after its caption: what was being written when it was stopped is written anew.
    Pictures that were written here by another version and that nobody has changed since are replaced, or go where there
    are fewer now; whatever else is there stays as it is.

    Args:
        folder: Such as `input/zorp/10_zorp`; its pictures take its name without the number.
        pictures: (picture, caption) pairs.

    Returns:
        The pictures that were written.
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
    """What was written here before; nothing where the list is missing or damaged."""
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
    """The digest of a picture that lies there with its caption; empty where one of both does not."""
    try:
        return _digest(file.read_bytes(), file.with_suffix(".txt").read_bytes())
    except OSError:
        return ""
