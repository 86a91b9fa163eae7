"""What the files of one folder are: pictures, and what belongs to a picture: caption, mask, control pictures."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from .dataset import REPEATS
from .images import picture_suffixes

# In order of preference.
CAPTION_SUFFIXES = (".txt", ".caption")
FIELDS_SUFFIX = ".json"
# Captions of many pictures in one file, as Hugging Face's imagefolder has them.
TABLES = ("metadata.jsonl", "metadata.csv")

MASK, CONTROL = "mask", "control"
# `cat_mask.png` next to `cat.jpg` is its mask. OneTrainer has `-masklabel` and `-condlabel`. musubi-tuner numbers the
# control pictures of a picture that has several.
_ENDS = {
    MASK: re.compile(r"(.+)[-_. ](?:mask|masklabel)"),
    CONTROL: re.compile(r"(.+)[-_. ](?:control|condlabel)(?:_\d{1,4})?"),
}
_MARKS = ("mask", "control", "condlabel")  # one of them is in every such name
_NUMBERED = re.compile(r"(.+)_\d{1,4}")
# Without their picture they are left out, while `carnival_mask.png` is a picture then.
_NEVER_PICTURES = ("-masklabel", "-condlabel")
_FOLDERS = {
    MASK: re.compile(r"(?:(.+)[-_ ])?masks?(?:label)?"),
    CONTROL: re.compile(r"(?:(.+)[-_ ])?(?:controls?|conditioning)(?:[-_ ]images?)?"),
}

# Files of operating systems and network drives. Names that start with a dot are ignored as well.
_SYSTEM_FILES = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "desktop.ini"}


@dataclass
class PictureFiles:
    """A picture's files.

    Attributes:
        path: The picture.
        caption: Its caption: a text, or a .json file that may hold one.
        mask: Its mask.
        controls: Its control pictures, for edit and ControlNet models.
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
        orphans: Masks and control pictures that fit no picture, or several.
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


def sort_files(folder: Path, names: Iterable[str], first: str = "") -> Files:
    """Tell pictures from companions, captions and everything else. Suffixes match in any case.

    Args:
        folder: The folder.
        names: The names of its files.
        first: Ending of captions that comes before CAPTION_SUFFIXES, such as `.tags`; may be empty.
    """
    split = [os.path.splitext(name) for name in sorted(names) if not is_system_file(name)]
    suffixes = picture_suffixes()
    shown = [(stem, end) for stem, end in split if end.lower() in suffixes]
    keys = {key(stem) for stem, _ in shown}
    names = keys | {key(stem + end) for stem, end in shown}
    companions: dict[str, dict[str, list[Path]]] = {MASK: {}, CONTROL: {}}
    found = Files([])
    pictures: list[tuple[str, str]] = []
    for stem, end in shown:
        kind, owner = next(((kind, owner) for kind in _ENDS if (owner := _owner(stem, kind, names))), ("", ""))
        if kind:
            companions[kind].setdefault(owner, []).append(folder / (stem + end))
        elif key(stem).endswith(_NEVER_PICTURES):
            found.orphans.append(folder / (stem + end))
        else:
            pictures.append((stem, end))
    captions = _Captions(folder, split, pictures, first)
    for stem, end in pictures:
        picture = PictureFiles(folder / (stem + end), captions.of(stem, end))
        found.pictures.append(picture)
        for name in (key(stem), key(stem + end)) if any(companions.values()) else ():
            for mask in companions[MASK].get(name, ()):
                found.unread += [mask] if picture.mask else []
                picture.mask = picture.mask or mask
            picture.controls += tuple(companions[CONTROL].get(name, ()))
    for stem, end in split:
        if (stem + end).lower() in TABLES:
            found.tables.append(folder / (stem + end))
        elif end.lower() not in suffixes and not captions.belongs(stem, end):
            found.unread.append(folder / (stem + end))
    return found


def companion_of(folder: str) -> tuple[str, str] | None:
    """What a folder of this name may hold: masks or control pictures, and the name of the folder they belong to.

    Returns:
        (kind, name): `zorp_masks` gives (MASK, "zorp"), and `mask` (MASK, ""). None for other names.
    """
    if REPEATS.fullmatch(folder):
        return None
    for kind, pattern in _FOLDERS.items():
        match = pattern.fullmatch(folder.lower())
        if match:
            return kind, folder[: len(match[1])] if match[1] else ""
    return None


def attach_folder(files: Files, nearest: Files | None, others: Sequence[Files], kind: str) -> None:
    """Give the pictures of a mask or control folder to the pictures of the same name, if there are such pictures.

    Those of no picture, or of several, become orphans. A folder in which no name fits stays a folder of pictures.

    Args:
        files: The folder's files. Changed.
        nearest: The folder whose pictures they belong to if a name fits. Changed.
        others: Folders whose pictures they may belong to otherwise. Changed.
        kind: MASK or CONTROL.
    """
    by_key: dict[str, list[PictureFiles]] = {}
    near = {name: [picture] for picture in (nearest.pictures if nearest else []) for name in _names(picture)}
    for folder in others:
        for picture in folder.pictures:
            for name in _names(picture):
                by_key.setdefault(name, []).append(picture)
    owners = {given.path: _owners(given.path.stem, kind, by_key | near) for given in files.pictures}
    if not any(owners.values()):
        return
    for path, found in owners.items():
        if len(found) != 1:
            files.orphans.append(path)
        elif kind == CONTROL:
            found[0].controls = (*found[0].controls, path)
        elif found[0].mask is None:
            found[0].mask = path
        else:
            files.unread.append(path)
    files.pictures = []


def _names(picture: PictureFiles) -> tuple[str, str]:
    return key(picture.path.stem), key(picture.path.name)


def _owners(stem: str, kind: str, by_key: dict[str, list[PictureFiles]]) -> list[PictureFiles]:
    """The pictures that a file in a folder of companions may belong to, by its name without what marks it."""
    numbered = _NUMBERED.fullmatch(key(stem)) if kind == CONTROL else None
    names = (key(stem), _owner(stem, kind, by_key.keys()), numbered[1] if numbered else "")
    return next((by_key[name] for name in names if name in by_key), [])


def _owner(stem: str, kind: str, names: Set[str]) -> str:
    """The key of the picture that a companion belongs to; empty if it is none, or its picture is not there."""
    whole = key(stem)
    if not any(word in whole for word in _MARKS):  # most names, told faster than by the pattern
        return ""
    match = _ENDS[kind].fullmatch(whole)
    return match[1] if match and match[1] in names else ""


class _Captions:
    """The caption files of one folder, by the names of their pictures.

    A caption is named as its picture, with or without the picture's suffix: `cat.txt` or `cat.jpg.txt`. If no name fits
    exactly, one that differs in case or Unicode form does, unless it is another picture's own.
    """

    def __init__(
        self, folder: Path, split: list[tuple[str, str]], pictures: list[tuple[str, str]], first: str
    ) -> None:
        self._text = (first, *CAPTION_SUFFIXES) if first else CAPTION_SUFFIXES
        self._exact = {
            (stem, end.lower()): folder / (stem + end)
            for stem, end in split
            if end.lower() in (*self._text, FIELDS_SUFFIX)
        }
        own = {name for stem, end in pictures for name in (stem, stem + end)}
        self._alike: dict[tuple[str, str], Path] = {}
        for (stem, end), path in self._exact.items():
            if stem not in own:
                self._alike.setdefault((key(stem), end), path)
        self._names = own | {key(name) for name in own}

    def of(self, stem: str, end: str) -> Path | None:
        """A picture's caption. Text comes before .json."""
        for suffixes in (self._text, (FIELDS_SUFFIX,)):
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
