"""ComfyUI's folders, the only ones this pack reads from and writes to."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..disk import sweep_unfinished
from ..errors import UserError


def runs_folder() -> Path:
    """Return the folder of all runs: `output/lora_workbench`."""
    return Path(folder_paths.get_output_directory()) / "lora_workbench"


def cache_folder() -> Path:
    """Return the cache of latents and encoded captions; it may be deleted at any time."""
    return runs_folder() / "cache"


def temp_images_folder() -> Path:
    """Return the folder of pictures that came as tensors; they stay until the server ends."""
    return Path(folder_paths.get_temp_directory()) / "lora_workbench"


def edits_folder() -> Path:
    """Return the folder of the gallery's edits."""
    return runs_folder() / "edits"


def without_folders(text: str, key: str) -> str:
    """Shorten paths in a text to what is below ComfyUI's folders, which other computers may not know.

    Args:
        text: The text.
        key: The key of further folders in extra_model_paths.yaml.
    """
    folders = {*map(str, input_folders(key)), folder_paths.get_output_directory()}
    folders |= {folder_paths.get_temp_directory(), folder_paths.models_dir, folder_paths.base_path}
    for folder in sorted(map(os.path.abspath, folders), key=len, reverse=True):
        text = text.replace(folder + os.sep, "")
    return text


# Folders of captioners: the one other packs use, and the older taggers' key in extra_model_paths.yaml.
_CAPTIONERS = ("LLM", "wd14_tagger")


def captioners_root() -> Path:
    """Return the folder captioners are downloaded to."""
    return Path(folder_paths.models_dir) / _CAPTIONERS[0]


def captioner_folders() -> dict[str, Path]:
    """Folders that may hold a captioner, by name: those below models/LLM, up to two levels deep, and its relatives."""
    roots = [captioners_root()]
    for key in _CAPTIONERS:
        if key in folder_paths.folder_names_and_paths:
            roots += [Path(root) for root in folder_paths.get_folder_paths(key)]
    found: dict[str, Path] = {}
    for root in dict.fromkeys(roots):
        for folder in sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir()):
            if folder.suffix != ".part":  # a download under way
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def loras_folder() -> Path:
    """Return the first of ComfyUI's LoRA folders, in which Save LoRA writes and LoraLoader looks."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def lora_files() -> list[str]:
    """Names of the files in ComfyUI's LoRA folders, as LoraLoader lists them."""
    return list(folder_paths.get_filename_list("loras"))


def lora_file(name: str) -> Path:
    """Return the path of a file in ComfyUI's LoRA folders.

    Raises:
        UserError: There is none of this name.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise UserError(f"{name} is not in models/loras. Choose another file, or press R to read the list again.")
    return Path(path)


def forget_lora_list() -> None:
    """Make ComfyUI read its LoRA folder again, so that LoraLoader lists a new file at once."""
    folder_paths.filename_list_cache.pop("loras", None)


def input_folders(key: str) -> list[Path]:
    """Return ComfyUI's input folder, then the folders of a key in extra_model_paths.yaml."""
    folders = [Path(folder_paths.get_input_directory())]
    if key in folder_paths.folder_names_and_paths:
        folders += [Path(folder) for folder in folder_paths.get_folder_paths(key)]
    return folders


def sweep_folders() -> None:
    """Remove files that ended processes left unfinished in the folders this pack writes to."""
    sweep_unfinished(runs_folder())
    sweep_unfinished(loras_folder(), deep=False)
    sweep_unfinished(temp_images_folder(), deep=False)
