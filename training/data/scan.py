"""Read a folder of pictures as a dataset: kohya's `10_my_character` folders, captions next to the pictures.

Only headers are read, so thousands of pictures take seconds. A picture with an intact header and a damaged body is
detected when it is encoded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ..disk import file_stamp
from ..errors import SettingError, UnreadableImage, UserError
from ..events import Cancelled, Sink, counted
from ..settings import Settings, knob
from .caption_files import caption_of, decode_all, read_caption, read_table, tidy
from .companions import PictureFiles, key
from .dataset import REPEATS, Dataset, Picture
from .images import IMAGE_SUFFIXES, picture_suffixes, read_size
from .notes import notes
from .tree import Folder, Tree, read_tree
from .words import clean_trigger, fallback_caption, with_trigger

log = logging.getLogger(__name__)

_REPORT_EVERY = 100  # pictures


@dataclass(frozen=True)
class LoadSettings(Settings):
    """Which folder is read, and how."""

    folder: str = knob(
        "",
        "Folder of pictures in ComfyUI's input folder, or in a folder listed under lora_datasets in "
        "extra_model_paths.yaml.",
    )
    trigger: str = knob(
        "",
        "Word that calls what is learned. It is added in front of every caption that lacks it, except JSON. Choose a "
        "rare word.",
    )
    background: str = knob(
        "#ffffff", "Colour behind transparent pixels and in padding: #rrggbb, white, grey or black.", advanced=True
    )
    caption_extension: str = knob(
        "",
        "Ending of caption files that are read before .txt and .caption: .tags reads cat.tags for cat.jpg. Empty: only "
        "the usual ones.",
        advanced=True,
    )

    # Saved workflows hold values by position: a new setting goes to the end.
    ADDED_FROM: ClassVar[str] = "caption_extension"

    def __post_init__(self) -> None:
        """Refuse an ending that no caption can have.

        Raises:
            SettingError: The caption extension is a picture's, or no ending.
        """
        super().__post_init__()
        ending = caption_ending(self.caption_extension)
        if ending in picture_suffixes() or not re.fullmatch(r"|\.[^./\\\s]+", ending):
            raise SettingError(
                f"caption extension is {self.caption_extension!r}, which is no ending of text files. Enter one such as "
                ".tags, or leave it empty."
            )


def caption_ending(text: str) -> str:
    """An ending as it was meant: in lower case, with its dot, as in kohya's trainer. May be empty."""
    ending = text.strip().lower()
    return f".{ending}" if ending and not ending.startswith(".") else ending


def scan_folder(
    root: Path, *, trigger: str = "", background: tuple[int, int, int] = (255, 255, 255), sink: Sink | None = None
) -> Dataset:
    """Read a folder and everything below it as a dataset. See `scan_project`."""
    return scan_project(root, trigger=trigger, background=background, sink=sink)[0]


def scan_project(
    root: Path, *, trigger: str = "", background: tuple[int, int, int] = (255, 255, 255), sink: Sink | None = None,
    caption_extension: str = "",
) -> tuple[Dataset, Dataset]:  # fmt: skip
    """Read a folder and everything below it: pictures to learn, and the regularization pictures of a kohya project.

    Folders, repeats and companions are explained in `tree` and `companions`. The caption is the text next to the
    picture, else that of a table (`metadata.jsonl`), else the folder's class words.

    Args:
        root: The folder.
        trigger: The trigger word of the concept, added in front of each caption that lacks it.
        background: (r, g, b), 0 to 255: shows through transparent pixels.
        sink: Receives the progress and is checked for a cancel.
        caption_extension: Ending of caption files that are read before .txt and .caption; may be empty.

    Returns:
        The pictures to learn, and the regularization pictures, without trigger; there may be none of these.

    Raises:
        Cancelled: The user pressed cancel.
        UserError: The folder does not exist, has no usable picture, or has a caption file that cannot be read.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    if not os.path.exists(root):
        raise UserError(f"There is no folder {root}. Check the path.")
    if not os.path.isdir(root):
        raise UserError(f"{root} is a file. Choose the folder that holds the pictures.")
    trigger = clean_trigger(trigger)
    tree = read_tree(root, caption_ending(caption_extension))
    sentences: list[str] = []
    found = list(_pictures(tree, trigger, sentences, sink))
    found.sort(key=lambda picture: _natural(picture.path.relative_to(root)))
    learned = tuple(picture for picture in found if not picture.is_regularization)
    if not learned:
        raise _no_pictures(root, tree)
    for sentence in tree.skipped:
        log.warning("%s", sentence)
    repeats = REPEATS.fullmatch(root.name)
    name = (repeats[2] if repeats else root.name) or root.name or "dataset"
    # The node that joins them sets `is_regularization`.
    kept = tuple(replace(picture, is_regularization=False) for picture in found if picture.is_regularization)
    return (
        Dataset(learned, name, root, trigger, background, tuple(tree.skipped), notes=(*sentences, *notes(tree))),
        Dataset(kept, f"{name} reg", root, "", background),
    )


def folder_fingerprint(root: Path, caption_extension: str = "") -> str:
    """Fingerprint a folder: 64 hex digits that change if and only if what `scan_folder` reads changes.

    Based on the names, sizes and modification times of the pictures, their captions, masks and control pictures. A
    missing folder gives `missing` instead of an error, because the host calls this before it runs a node.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    if not os.path.isdir(root):
        return "missing"
    tree = read_tree(root, caption_ending(caption_extension))
    paths = [
        (path, f"{folder.concept}|{folder.is_regularization}")  # a new sibling can change what a folder is
        for folder in tree.folders for files in folder.pictures for path in files.all()
    ]  # fmt: skip
    paths += [(path, "") for path in tree.tables]
    lines = {f"{path.relative_to(root).as_posix()}|{file_stamp(path)}|{what}" for path, what in paths}
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8")).hexdigest()


def _pictures(tree: Tree, trigger: str, sentences: list[str], sink: Sink | None) -> Iterator[Picture]:
    """Every usable picture with its caption. What cannot be used goes to the tree's lists, encodings to `sentences`."""
    tables = _tables(tree, sentences)
    read: list[tuple[PictureFiles, Folder, tuple[int, int]]] = []
    captions: dict[Path, str | None] = {}
    not_utf8: dict[Path, bytes] = {}
    for files, folder in _files(tree, sink):
        try:
            size = read_size(files.path)
            found = read_caption(files.caption) if files.caption else None
        except UnreadableImage as error:
            tree.skipped.append(str(error))
            continue
        read.append((files, folder, size))
        if files.caption and isinstance(found, bytes):
            not_utf8[files.caption] = found
        elif files.caption and not isinstance(found, bytes):
            captions[files.caption] = found
    decoded, told = decode_all(not_utf8)
    sentences += told
    for files, folder, size in read:
        try:
            if files.caption in decoded:
                captions[files.caption] = caption_of(files.caption, decoded[files.caption])
            caption = captions[files.caption] if files.caption else None
            if caption is None:
                tree.unread += [files.caption] if files.caption else []
                caption = tidy(tables.get(key(str(files.path)), ""), files.path)
        except UnreadableImage as error:
            tree.skipped.append(str(error))
            continue
        own = "" if folder.is_regularization else trigger
        yield Picture(
            path=files.path,
            size=size,
            caption=with_trigger(caption, own) if caption else fallback_caption(folder.class_word, own),
            repeats=folder.repeats,
            concept=folder.concept,
            class_word=folder.class_word,
            fingerprint=file_stamp(files.path),
            is_regularization=folder.is_regularization,
            mask=files.mask,
            controls=files.controls,
        )


def _files(tree: Tree, sink: Sink | None) -> Iterator[tuple[PictureFiles, Folder]]:
    """Every picture's files, with progress and cancel."""
    total, done = sum(len(folder.pictures) for folder in tree.folders), 0
    for folder in tree.folders:
        if folder.repeats == 0:
            tree.skipped.append(
                f"{folder.path} was left out with its {counted(len(folder.pictures), 'picture')}, because the number "
                "in its name asks for 0 repeats. Rename it to use them."
            )
            continue
        for files in folder.pictures:
            if sink and done % _REPORT_EVERY == 0:
                if sink.cancelled():
                    raise Cancelled
                sink.phase("reading the folder", done, total)
            done += 1
            yield files, folder


def _tables(tree: Tree, sentences: list[str]) -> dict[str, str]:
    """The captions in tables, by the key of the picture's path."""
    captions: dict[str, str] = {}
    if not tree.tables:
        return captions
    there = {key(str(files.path)) for folder in tree.folders for files in folder.pictures}
    for path in tree.tables:
        rows, wrong, sentence = read_table(path)
        if not rows:
            tree.unread.append(path)
            continue
        found = {key(os.path.normpath(path.parent / name)): caption for name, caption in rows.items()}
        captions |= found
        without = wrong + len(found.keys() - there)
        if without:
            sentences.append(f"{counted(without, 'row')} of {path.name} without a picture or caption.")
        if sentence:
            sentences.append(sentence)
    return captions


def _natural(path: Path) -> tuple[object, ...]:
    """A sort key that puts img2 before img10, the same on every system."""
    parts = [
        tuple(int(bit) if odd % 2 else bit for odd, bit in enumerate(re.split("([0-9]+)", part)))
        for part in unicodedata.normalize("NFC", path.as_posix()).casefold().split("/")
    ]
    return (parts, path.as_posix())


def _no_pictures(root: Path, tree: Tree) -> UserError:
    """The error for a folder without a usable picture."""
    if tree.skipped:
        return UserError(f"No picture in {root} can be used. {_first(tree.skipped)}")
    kinds = ", ".join(IMAGE_SUFFIXES)
    more = "".join(f" {note}" for note in notes(tree))
    return UserError(f"There are no pictures in {root} or its subfolders. Add files that end in {kinds}.{more}")


def _first(sentences: list[str], most: int = 3) -> str:
    """The first few of many sentences."""
    rest = len(sentences) - most
    return " ".join(sentences[:most]) + (f" And {rest} more." if rest > 0 else "")
