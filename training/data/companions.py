"""What the files of one folder are: pictures, and what belongs to a picture: caption, mask, control pictures."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .images import picture_suffixes

# In order of preference.
CAPTION_SUFFIXES = (".txt", ".caption")
FIELDS_SUFFIX = ".json"
# Captions of many pictures in one file, as Hugging Face's imagefolder has them.
TABLES = ("metadata.jsonl", "metadata.csv")

# `cat_mask.png` next to `cat.jpg` is its mask. The ends with a hyphen are OneTrainer's.
MASK_ENDS = ("_mask", "-masklabel")
CONTROL_ENDS = ("_control", "-condlabel")
# Without their picture they are left out, while `carnival_mask.png` is a picture then.
_NEVER_PICTURES = ("-masklabel", "-condlabel")
MASK_FOLDERS = ("mask", "masks")
CONTROL_FOLDERS = ("control", "controls", "conditioning")
_NUMBERED = re.compile(r"(.+)_\d{1,4}")  # musubi-tuner numbers several control pictures of one picture

# Files of operating systems and network drives. Names that start with a dot are ignored as well.
_SYSTEM_FILES = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "desktop.ini"}


@dataclass
class PictureFiles:
    """A picture's files.

    Attributes:
        path: The picture.
        caption: Its caption: a text, or a .json file that may hold one.
        mask: Its mask.
        controls: What an edit or ControlNet model is shown beside it.
    """

    path: Path
    caption: Path | None = None
    mask: Path | None = None
    controls: tuple[Path, ...] = ()

    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.path, self.caption, self.mask, *self.controls) if path)


@dataclass
class Files:
    """The files of one folder.

    Attributes:
        pictures: In the order of their names.
        tables: Files with the captions of many pictures.
        orphans: Masks and control pictures whose picture is not there.
        unread: All other files.
    """

    pictures: list[PictureFiles]
    tables: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


def is_system_file(name: str) -> bool:
    """Whether a file or folder is of the operating system, or hidden."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def key(stem: str) -> str:
    """A name without regard to case and Unicode form: macOS decomposes letters, and Windows ignores case."""
    if stem.isascii():
        return stem.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def sort_files(folder: Path, names: Iterable[str]) -> Files:
    """Tell pictures from companions, captions and everything else. Suffixes match in any case.

    Args:
        folder: The folder.
        names: The names of its files.
    """
    split = [os.path.splitext(name) for name in sorted(names) if not is_system_file(name)]
    suffixes = picture_suffixes()
    shown = [(stem, end) for stem, end in split if end.lower() in suffixes]
    keys = {key(stem) for stem, _ in shown}
    masks: dict[str, Path] = {}
    controls: dict[str, list[Path]] = {}
    found = Files([])
    pictures: list[tuple[str, str]] = []
    for stem, end in shown:
        path = folder / (stem + end)
        if owner := _owner(stem, MASK_ENDS, keys):
            masks.setdefault(owner, path)
        elif owner := _owner(stem, CONTROL_ENDS, keys):
            controls.setdefault(owner, []).append(path)
        elif key(stem).endswith(_NEVER_PICTURES):
            found.orphans.append(path)
        else:
            pictures.append((stem, end))
    captions = _Captions(folder, split, pictures)
    for stem, end in pictures:
        found.pictures.append(
            PictureFiles(
                folder / (stem + end), captions.of(stem, end), masks.get(key(stem)), tuple(controls.get(key(stem), ()))
            )
        )
    for stem, end in split:
        path = folder / (stem + end)
        if path.name.lower() in TABLES:
            found.tables.append(path)
        elif end.lower() not in suffixes and not captions.belongs(stem, end):
            found.unread.append(path)
    return found


def attach_folder(files: Files, owners: Sequence[Files], *, masks: bool) -> None:
    """Give the pictures of a mask or control folder to the pictures of the same name, if there are such pictures.

    Those of no picture become orphans. A folder in which no name fits stays a folder of pictures.

    Args:
        files: The folder's files. Changed.
        owners: The folders whose pictures they may belong to, nearest first. Changed.
        masks: Whether they are masks; else control pictures.
    """
    by_key: dict[str, PictureFiles] = {}
    for folder in owners:
        for picture in folder.pictures:
            by_key.setdefault(key(picture.path.stem), picture)
    ends = MASK_ENDS if masks else CONTROL_ENDS
    pairs = []
    for given in files.pictures:
        stem = key(given.path.stem)
        numbered = _NUMBERED.fullmatch(stem)
        names = (stem, _owner(stem, ends, by_key), numbered[1] if numbered and not masks else "")
        pairs.append((given.path, next((by_key[name] for name in names if name in by_key), None)))
    if not any(owner for _, owner in pairs):
        return
    for path, owner in pairs:
        if owner is None:
            files.orphans.append(path)
        elif masks:
            owner.mask = owner.mask or path
        else:
            owner.controls = (*owner.controls, path)
    files.pictures = []


def _owner(stem: str, ends: Sequence[str], keys: Iterable[str]) -> str:
    """The key of the picture that a companion belongs to; empty if it is none, or its picture is not there."""
    whole = key(stem)
    names = (whole.removesuffix(end) for end in ends if whole.endswith(end))
    return next((name for name in names if name in keys), "")


class _Captions:
    """The caption files of one folder, by the names of their pictures.

    A caption is named as its picture, with or without the picture's suffix: `cat.txt` or `cat.jpg.txt`. If no name fits
    exactly, one that differs in case or Unicode form does, unless it is another picture's own.
    """

    def __init__(self, folder: Path, split: list[tuple[str, str]], pictures: list[tuple[str, str]]) -> None:
        self._exact = {
            (stem, end.lower()): folder / (stem + end)
            for stem, end in split
            if end.lower() in (*CAPTION_SUFFIXES, FIELDS_SUFFIX)
        }
        own = {name for stem, end in pictures for name in (stem, stem + end)}
        self._alike: dict[tuple[str, str], Path] = {}
        for (stem, end), path in self._exact.items():
            if stem not in own:
                self._alike.setdefault((key(stem), end), path)
        self._names = own | {key(name) for name in own}

    def of(self, stem: str, end: str) -> Path | None:
        """A picture's caption. Text comes before .json."""
        for suffixes in (CAPTION_SUFFIXES, (FIELDS_SUFFIX,)):
            for name in (stem, stem + end):
                for suffix in suffixes:
                    if (name, suffix) in self._exact:
                        return self._exact[name, suffix]
            if not self._alike:
                continue
            for name in (key(stem), key(stem + end)):
                for suffix in suffixes:
                    if (name, suffix) in self._alike:
                        return self._alike[name, suffix]
        return None

    def belongs(self, stem: str, end: str) -> bool:
        """Whether a file is named as a caption of some picture, read or not."""
        return (stem, end.lower()) in self._exact and (stem in self._names or key(stem) in self._names)
