"""Write captions to text files next to their pictures."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.caption_files import read_caption
from ..data.companions import FIELDS_SUFFIX, sort_files
from ..data.dataset import Dataset, Picture
from ..disk import sweep_unfinished, write_whole
from ..errors import UserError


def write_captions(pictures: Sequence[Picture], dataset: Dataset, *, over: bool, problems: list[str]) -> int:
    """Write captions to .txt files next to their pictures, each atomically.

    Args:
        pictures: The pictures whose captions are written.
        dataset: All pictures. Two with the same stem would share a file, so it is written for neither.
        over: Whether existing files are overwritten.
        problems: Receives one sentence for each caption that could not be written.

    Returns:
        The number of files written.
    """
    folders = {picture.path.parent for picture in pictures}
    for folder in folders:
        sweep_unfinished(folder, deep=False)
    existing = _captions(folders)
    owners = Counter(_target(path, existing.get(path)) for path in {picture.path for picture in dataset.pictures})
    written = 0
    for picture in pictures:
        own = existing.get(picture.path)
        file = _target(picture.path, own)
        if owners[file] > 1:
            problems.append(f"{file} was not written: two pictures have that name. Rename one of them.")
        elif over or own is None:
            try:
                if over:
                    _refuse_read_only(file)
                write_whole(file, picture.caption + "\n", overwrite=over)
                written += 1
            except FileExistsError:
                pass  # created meanwhile, and must not be overwritten
            except OSError as error:
                problems.append(f"{file} was not written ({error.strerror}). Change its permissions, or free space.")
    return written


def _captions(folders: set[Path]) -> dict[Path, Path]:
    """The caption file of each picture in some folders that has one. A .json file may be something else."""
    there = [sort_files(folder, os.listdir(folder)) for folder in folders if folder.is_dir()]
    found = (files for folder in there for files in folder.pictures)
    return {files.path: files.caption for files in found if files.caption and not _is_something_else(files.caption)}


def _is_something_else(caption: Path) -> bool:
    try:
        return caption.suffix.lower() == FIELDS_SUFFIX and read_caption(caption) is None
    except UserError:
        return False  # a caption, though none that can be read


def _target(path: Path, caption: Path | None) -> Path:
    """Where a picture's caption is written: to its text file, whatever its form of name, or to a new one."""
    return caption if caption and caption.suffix.lower() == ".txt" else path.with_suffix(".txt")


def _refuse_read_only(file: Path) -> None:
    """Raise for a read-only file. Writing replaces the file, which its own permissions would not prevent."""
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only", str(file))
