"""ComfyUI's folders, the only ones we read from and write to."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..disk import sweep_unfinished


def runs_folder() -> Path:
    """Where runs are kept: `output/lora_workbench`."""
    return Path(folder_paths.get_output_directory()) / "lora_workbench"


def cache_folder() -> Path:
    """Where latents and encoded captions are kept; may be deleted at any time."""
    return runs_folder() / "cache"


def temp_images_folder() -> Path:
    """Where pictures that came as tensors lie until the server ends."""
    return Path(folder_paths.get_temp_directory()) / "lora_workbench"


def edits_folder() -> Path:
    """Where the gallery's edits are kept."""
    return runs_folder() / "edits"


# Where captioners are put: the folder that other packs use, and a key of the older taggers for extra_model_paths.yaml.
_CAPTIONERS = ("LLM", "wd14_tagger")


def captioners_root() -> Path:
    """Where captioners are fetched to."""
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
    """The first of ComfyUI's LoRA folders: where SaveLoRA writes and LoraLoader looks."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def forget_lora_list() -> None:
    """Make ComfyUI read its LoRA folder anew, so that a fresh file is in LoraLoader's list at once."""
    folder_paths.filename_list_cache.pop("loras", None)


def input_folders(key: str) -> list[Path]:
    """ComfyUI's input folder, and after it those that a key of extra_model_paths.yaml names."""
    folders = [Path(folder_paths.get_input_directory())]
    if key in folder_paths.folder_names_and_paths:
        folders += [Path(folder) for folder in folder_paths.get_folder_paths(key)]
    return folders


def sweep_folders() -> None:
    """Remove what processes that are gone left unfinished in the folders that we write to."""
    sweep_unfinished(runs_folder())
    sweep_unfinished(loras_folder(), deep=False)
    sweep_unfinished(temp_images_folder(), deep=False)
