"""ComfyUI's folders, the only ones we read from and write to."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..errors import UserError
from ..images import IMAGE_SUFFIXES

# Datasets outside the input folder: a key for extra_model_paths.yaml.
DATASETS_KEY = "lora_datasets"


def runs_folder() -> Path:
    """Where runs are kept: `output/lora_workbench`."""
    return Path(folder_paths.get_output_directory()) / "lora_workbench"


def cache_folder() -> Path:
    """Where latents and encoded captions are kept; may be deleted at any time."""
    return runs_folder() / "cache"


def temp_images_folder() -> Path:
    """Where pictures that came as tensors lie until the server ends."""
    return Path(folder_paths.get_temp_directory()) / "lora_workbench"


def loras_folder() -> Path:
    """The first of ComfyUI's LoRA folders: where SaveLoRA writes and LoraLoader looks."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def forget_lora_list() -> None:
    """Make ComfyUI read its LoRA folder anew, so that a fresh file is in LoraLoader's list at once."""
    folder_paths.filename_list_cache.pop("loras", None)


def _roots() -> list[Path]:
    roots = [Path(folder_paths.get_input_directory())]
    if DATASETS_KEY in folder_paths.folder_names_and_paths:
        roots += [Path(root) for root in folder_paths.get_folder_paths(DATASETS_KEY)]
    return roots


def dataset_folders() -> list[str]:
    """Names of folders a dataset can be read from: below ComfyUI's input folder and the `lora_datasets` paths.

    Folders two levels deep are listed too, hidden ones and those without a picture are not. Those outside input are
    listed by absolute path.
    """
    found: list[str] = []
    for number, root in enumerate(_roots()):
        for folder in sorted(_subfolders(root), key=lambda p: p.as_posix().casefold()):
            found.append(folder.relative_to(root).as_posix() if number == 0 else folder.as_posix())
        if number > 0 and root.is_dir():
            found.append(root.as_posix())
    return found


def _subfolders(root: Path, depth: int = 2) -> list[Path]:
    if not root.is_dir() or depth == 0:
        return []
    children = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and _has_pictures(p)]
    return children + [below for child in children for below in _subfolders(child, depth - 1)]


def _has_pictures(folder: Path, depth: int = 3) -> bool:
    """Whether a picture lies in a folder or up to two levels below it; the host itself makes folders without."""
    try:
        with os.scandir(folder) as entries:
            below = []
            for entry in entries:
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    return True
                if depth > 1 and entry.is_dir() and not entry.name.startswith("."):
                    below.append(Path(entry.path))
    except OSError:
        return False
    return any(_has_pictures(child, depth - 1) for child in below)


def resolve_dataset_folder(name: str) -> Path:
    """Return the folder a name stands for, if it is one we may read.

    Raises:
        UserError: The name is empty or leads out of ComfyUI's input folder and the `lora_datasets` paths.
    """
    if not name.strip():
        raise UserError(
            "No dataset folder is chosen: put a folder of pictures into ComfyUI's input folder and choose it here."
        )
    roots = [root.resolve() for root in _roots()]
    folder = (roots[0] / name).resolve()  # an absolute name stays as it is
    if not any(folder == root or root in folder.parents for root in roots):
        raise UserError(
            f"The folder {name!r} lies outside ComfyUI's input folder. Move it there, or list its parent under "
            f"{DATASETS_KEY} in extra_model_paths.yaml."
        )
    return folder
