"""ComfyUI's folders, the only ones we read from and write to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import folder_paths

from ..errors import UserError
from ..images import IMAGE_SUFFIXES

# Datasets outside the input folder: a key for extra_model_paths.yaml.
DATASETS_KEY = "lora_datasets"

_LISTED_DEPTH = 2
_LIST_HOLDS = 1.0  # seconds
_listed: list[tuple[float, tuple[str, ...]]] = []


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
    """Folders with a captioner in them, by name: an .onnx file, or a config.json with .safetensors."""
    roots = [captioners_root()]
    for key in _CAPTIONERS:
        if key in folder_paths.folder_names_and_paths:
            roots += [Path(root) for root in folder_paths.get_folder_paths(key)]
    found: dict[str, Path] = {}
    for root in dict.fromkeys(roots):
        for folder in sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir()):
            if folder.suffix == ".part":  # still being fetched
                continue
            whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
            if whole or any(folder.glob("*.onnx")):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


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

    Folders two levels deep are listed if a picture lies in or up to two levels below them; hidden ones are not. Those
    outside input are listed by absolute path. ComfyUI asks several times for each prompt, so an answer holds a moment.
    """
    now = time.monotonic()
    if _listed and now - _listed[0][0] < _LIST_HOLDS:
        return list(_listed[0][1])
    found: list[str] = []
    for number, root in enumerate(_roots()):
        any_picture, below = _with_pictures(root, _LISTED_DEPTH + 2)
        for folder in below:
            name = folder.relative_to(root)
            if len(name.parts) <= _LISTED_DEPTH:
                found.append(name.as_posix() if number == 0 else folder.as_posix())
        if number > 0 and any_picture:
            found.append(root.as_posix())
    _listed[:] = [(now, tuple(found))]
    return found


def _with_pictures(folder: Path, depth: int) -> tuple[bool, list[Path]]:
    """Whether a picture lies in a folder or below it, and every folder below of which that is true."""
    own, found = False, []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name.casefold())
    except OSError:  # gone, or not ours to read
        return False, []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            inside, below = _with_pictures(Path(entry.path), depth - 1) if depth > 0 else (False, [])
            if inside:
                own = True
                found += [Path(entry.path), *below]
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            own = True
    return own, found


def resolve_dataset_folder(name: str) -> Path:
    """Return the folder a name stands for, if it is one we may read.

    Raises:
        UserError: The name is empty or leads out of ComfyUI's input folder and the `lora_datasets` paths.
    """
    if not name.strip():
        raise UserError(
            "No dataset folder is chosen: put a folder of pictures into ComfyUI's input folder and choose it here."
        )
    # A link that someone made inside these folders is meant to be followed; only `..` must not lead out.
    roots = [Path(os.path.abspath(root)) for root in _roots()]
    folder = Path(os.path.abspath(roots[0] / name))  # an absolute name stays as it is
    if not any(folder == root or root in folder.parents for root in roots):
        raise UserError(
            f"The folder {name!r} lies outside ComfyUI's input folder. Move it there, or list its parent under "
            f"{DATASETS_KEY} in extra_model_paths.yaml."
        )
    return folder
