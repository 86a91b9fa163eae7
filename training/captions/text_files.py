"""Write captions to text files next to their pictures."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.dataset import Dataset, Picture
from ..data.scan import CAPTION_SUFFIXES
from ..disk import sweep_unfinished, write_whole


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
    owners = Counter(path.with_suffix("") for path in {picture.path for picture in dataset.pictures})
    folders = {picture.path.parent for picture in pictures}
    for folder in folders:
        sweep_unfinished(folder, deep=False)
    existing = _caption_files(folders)
    written = 0
    for picture in pictures:
        stem = picture.path.with_suffix("")
        # An existing .TXT is reused, because it is read like any .txt.
        file = existing.get((stem, ".txt"), picture.path.with_suffix(".txt"))
        if owners[stem] > 1:
            problems.append(f"{file} was not written: two pictures have that name. Rename one of them.")
        elif over or not any((stem, suffix) in existing for suffix in CAPTION_SUFFIXES):
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


def _caption_files(folders: set[Path]) -> dict[tuple[Path, str], Path]:
    """The caption files in some folders, by (path without suffix, suffix in lower case)."""
    files = (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    return {
        (file.with_suffix(""), file.suffix.lower()): file for file in files if file.suffix.lower() in CAPTION_SUFFIXES
    }


def _refuse_read_only(file: Path) -> None:
    """Raise for a read-only file. Writing replaces the file, which its own permissions would not prevent."""
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only", str(file))
