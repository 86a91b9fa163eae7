"""The folders a dataset can be read from."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .images import picture_suffixes
from .tree import not_text, readable

# Datasets outside the input folder: a key for extra_model_paths.yaml.
DATASETS_KEY = "lora_datasets"

# Folders that the example workflows name and nobody has.
PLACEHOLDERS = ("my_character", "my_character_more", "my_class")

_LISTED_DEPTH = 2
_LIST_HOLDS = 1.0  # seconds
_listed: dict[tuple[Path, ...], tuple[float, tuple[str, ...]]] = {}


def dataset_folders(roots: Sequence[Path]) -> list[str]:
    """List the folders a dataset can be read from, below ComfyUI's input folder and the `lora_datasets` paths.

    Folders up to two levels deep are listed if they hold a picture, directly or up to two levels below. Hidden folders
    are not listed. Folders outside input are listed by absolute path, and names that are not valid text with their
    bytes as numbers. ComfyUI asks several times for each prompt, so the answer is cached briefly.

    Args:
        roots: ComfyUI's input folder, then the `lora_datasets` paths.
    """
    now = time.monotonic()
    listed_at, names = _listed.get(tuple(roots), (-math.inf, ()))
    if now - listed_at < _LIST_HOLDS:
        return list(names)
    found: list[str] = []
    for number, root in enumerate(roots):
        any_picture, below = _with_pictures(root, _LISTED_DEPTH + 2)
        for folder in below:
            name = folder.relative_to(root)
            if len(name.parts) <= _LISTED_DEPTH:
                found.append(readable(name.as_posix() if number == 0 else folder.as_posix()))
        if number > 0 and any_picture:
            found.append(root.as_posix())
    _listed[tuple(roots)] = (now, tuple(found))
    return found


def _with_pictures(folder: Path, depth: int) -> tuple[bool, list[Path]]:
    """Whether a folder holds a picture, directly or below, and every folder below it that does."""
    own, found, suffixes = False, [], tuple(picture_suffixes())
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name.casefold())
    except OSError:  # deleted, or not readable
        return False, []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            inside, below = _with_pictures(Path(entry.path), depth - 1) if depth > 0 else (False, [])
            if inside:
                own = True
                found += [Path(entry.path), *below]
        elif entry.name.lower().endswith(suffixes):
            own = True
    return own, found


def missing_folder(name: str) -> str:
    """What is wrong with a folder that is not there, for a person."""
    if name.replace("\\", "/").partition("/")[0] in PLACEHOLDERS:
        return f"Choose your folder: {name} is a placeholder."
    return f"The folder {name!r} does not exist. Choose another folder."


def resolve_dataset_folder(name: str, roots: Sequence[Path]) -> Path:
    """Resolve a folder name, if reading that folder is allowed.

    Args:
        name: A path below the first root, or an absolute path.
        roots: ComfyUI's input folder, then the `lora_datasets` paths.

    Raises:
        UserError: The name is empty or leads out of ComfyUI's input folder and the `lora_datasets` paths.
    """
    if not name.strip():
        raise UserError(
            "No dataset folder is chosen. Put a folder of pictures into ComfyUI's input folder and choose it here."
        )
    if "\\x" in name and not (roots[0] / name).exists() and name in dataset_folders(roots):
        raise UserError(not_text(Path(name).parent if "/" in name else roots[0], [Path(name).name]))
    if re.match(r"[A-Za-z]:[\\/]", name) and os.name != "nt":
        raise UserError(f"{name} is a path on a disk of Windows. Choose a folder in ComfyUI's input folder.")
    # A path that Windows saved in a workflow. A backslash is a separator nowhere else, but a name may have one.
    if "\\" in name and not (roots[0] / name).exists():
        name = name.replace("\\", "/")
    # A link inside these folders is followed on purpose. Only `..` must not lead out of them.
    allowed = [Path(os.path.abspath(root)) for root in roots]
    folder = Path(os.path.abspath(allowed[0] / name))  # an absolute name stays as it is
    if not any(folder == root or root in folder.parents for root in allowed):
        raise UserError(
            f"The folder {name!r} is outside ComfyUI's input folder. Move it there, or list its parent under "
            f"{DATASETS_KEY} in extra_model_paths.yaml."
        )
    return folder
