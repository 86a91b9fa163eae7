"""Read a folder of pictures as a dataset: kohya's `10_my_character` folders, captions next to the pictures.

Only headers are read, so thousands of pictures take seconds. A picture with an intact header and a damaged body is
detected when it is encoded.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..disk import file_stamp, require_regular
from ..errors import UnreadableImage, UserError
from ..events import Cancelled, Sink, counted
from ..settings import Settings, knob
from .dataset import REPEATS, Dataset, Picture
from .images import IMAGE_SUFFIXES, read_size
from .words import MOST_CHARACTERS, clean_trigger, fallback_caption, with_trigger

log = logging.getLogger(__name__)

# In order of preference.
CAPTION_SUFFIXES = (".txt", ".caption")
MASK_SUFFIX = "_mask"
_REPORT_EVERY = 100  # pictures

# Files of operating systems and network drives. Names that start with a dot are ignored as well.
_SYSTEM_FILES = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class LoadSettings(Settings):
    """Which folder is read, and how."""

    folder: str = knob(
        "",
        "Folder of pictures in ComfyUI's input folder, or in a folder listed under lora_datasets in "
        "extra_model_paths.yaml.",
    )
    trigger: str = knob(
        "", "Word that calls what is learned. It is added in front of every caption that lacks it. Choose a rare word."
    )
    background: str = knob(
        "#ffffff", "Colour behind transparent pixels and in padding: #rrggbb, white, grey or black.", advanced=True
    )


@dataclass(frozen=True)
class _Folder:
    """One folder: its pictures, each with its caption file and mask, and the repeats and class from its name."""

    path: Path
    concept: str
    repeats: float
    class_word: str
    files: tuple[tuple[Path, Path | None, Path | None], ...]


def scan_folder(
    root: Path, *, trigger: str = "", background: tuple[int, int, int] = (255, 255, 255), sink: Sink | None = None
) -> Dataset:
    """Read a folder and everything below it as a dataset.

    A folder named `<N>_<class words>` shows everything below it N times per epoch. The nearest such name applies, and
    the root's own name counts. The caption is the text file next to the picture (`.txt` before `.caption`), else the
    class words. Every real folder is read once, however many links lead to it, so that a loop of links ends and no
    picture is counted twice by accident.

    Args:
        root: The folder.
        trigger: The trigger word of the concept, added in front of each caption that lacks it.
        background: (r, g, b), 0 to 255: shows through transparent pixels.
        sink: Receives the progress and is checked for a cancel.

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
    pictures: list[Picture] = []
    skipped: list[str] = []
    folders = list(_folders(root, skipped))
    total, done = sum(len(folder.files) for folder in folders), 0
    for folder in folders:
        if folder.repeats == 0:
            skipped.append(
                f"{folder.path} was left out with its {counted(len(folder.files), 'picture')}, because the number in "
                "its name asks for 0 repeats. Rename it to use them."
            )
            continue
        for path, caption_file, mask in folder.files:
            if sink and done % _REPORT_EVERY == 0:
                if sink.cancelled():
                    raise Cancelled
                sink.phase("reading the folder", done, total)
            done += 1
            try:
                picture = _picture(path, read_size(path), caption_file, folder, trigger)
            except UnreadableImage as error:
                skipped.append(str(error))
                continue
            pictures.append(replace(picture, mask=mask))
    if not pictures:
        raise _no_pictures(root, skipped)
    pictures.sort(key=lambda picture: _natural(picture.path.relative_to(root)))
    for sentence in skipped:
        log.warning("%s", sentence)
    repeats = REPEATS.fullmatch(root.name)
    name = (repeats[2] if repeats else root.name) or root.name or "dataset"
    return Dataset(tuple(pictures), name, root, trigger, background, tuple(skipped))


def folder_fingerprint(root: Path) -> str:
    """Fingerprint a folder: 64 hex digits that change if and only if what `scan_folder` reads changes.

    Based on the names, sizes and modification times of the pictures, their captions and masks. A missing folder gives
    `missing` instead of an error, because the host calls this before it runs a node.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    if not os.path.isdir(root):
        return "missing"
    lines = [
        f"{path.relative_to(root).as_posix()}|{file_stamp(path)}"
        for folder in _folders(root, [])
        for files in folder.files
        for path in files
        if path is not None
    ]
    # Two pictures can share one caption file. File names may contain bytes that are not valid text.
    return hashlib.sha256("\n".join(sorted(set(lines))).encode("utf-8", "surrogateescape")).hexdigest()


def _picture(path: Path, size: tuple[int, int], caption_file: Path | None, folder: _Folder, trigger: str) -> Picture:
    """One picture of the manifest, with its own caption or the class words of its folder."""
    caption = _read_caption(caption_file) if caption_file else ""
    return Picture(
        path=path,
        size=size,
        caption=with_trigger(caption, trigger) if caption else fallback_caption(folder.class_word, trigger),
        repeats=folder.repeats,
        concept=folder.concept,
        class_word=folder.class_word,
        fingerprint=file_stamp(path),
    )


def _folders(root: Path, skipped: list[str]) -> Iterator[_Folder]:
    """Walk the folders with pictures in an order independent of the file system. Appends problems to `skipped`."""
    seen: dict[str, str] = {}
    # (repeats, class word) from each folder's name, or from the nearest such name above it.
    named: dict[str, tuple[float, str]] = {}

    def unreadable(error: OSError) -> None:
        skipped.append(f"{error.filename} cannot be opened ({error.strerror}). Change its permissions.")

    for here, names, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(here)
        if real in seen:
            skipped.append(f"{here} leads to {seen[real]}, which was read already.")
            names.clear()
            continue
        seen[real] = here
        path = Path(here)
        # Links last, so that a folder is read under its own name, not under that of a link to it.
        links = {name for name in names if os.path.islink(path / name)}
        names[:] = [*sorted(set(names) - links), *sorted(links)]
        names[:] = [name for name in names if not _is_system_file(name)]
        match = REPEATS.fullmatch(path.name)
        named[here] = (_number(match[1]), match[2]) if match else named.get(str(path.parent), (1, ""))
        found = _files(path, files)
        if found:
            concept = root.name if path == root else path.relative_to(root).as_posix()
            yield _Folder(path, concept, *named[here], found)


def _files(folder: Path, names: list[str]) -> tuple[tuple[Path, Path | None, Path | None], ...]:
    """The pictures of one folder, each with its caption file and its mask. Suffixes match in any case."""
    names = sorted(name for name in names if not _is_system_file(name))
    split = [os.path.splitext(name) for name in names]
    captions = {
        (stem, suffix.lower()): folder / (stem + suffix) for stem, suffix in split if suffix.lower() in CAPTION_SUFFIXES
    }

    def caption_of(stem: str) -> Path | None:
        return next((captions[stem, end] for end in CAPTION_SUFFIXES if (stem, end) in captions), None)

    pictures = [(stem, suffix) for stem, suffix in split if suffix.lower() in IMAGE_SUFFIXES]
    stems = {stem for stem, _ in pictures}
    # `cat_mask.png` next to `cat.jpg` is its mask, not another picture.
    masks = {
        stem.removesuffix(MASK_SUFFIX): folder / (stem + suffix) for stem, suffix in pictures
        if stem.endswith(MASK_SUFFIX) and stem.removesuffix(MASK_SUFFIX) in stems
    }  # fmt: skip
    taken = set(masks.values())
    return tuple(
        (folder / (stem + suffix), caption_of(stem), masks.get(stem)) for stem, suffix in pictures
        if folder / (stem + suffix) not in taken
    )  # fmt: skip


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _read_caption(path: Path) -> str:
    """The whole text of a caption file, without empty lines; kohya takes the first line and silently drops the rest.

    Raises:
        UnreadableImage: The caption is too long, so its picture cannot be used.
        UserError: The file cannot be opened, or is not UTF-8.
    """
    most_bytes = 4 * MOST_CHARACTERS + len(codecs.BOM_UTF8)  # the rest of a longer file is not read
    try:
        require_regular(path)
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except PermissionError as error:
        raise UserError(f"The caption {path} cannot be opened ({error.strerror}). Change its permissions.") from error
    except OSError as error:
        raise UserError(f"The caption {path} cannot be read ({error.strerror}). Replace or remove it.") from error
    if len(data) > most_bytes:
        raise _too_long(path)
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[start:].decode("utf-8")
        bad = text.find("\0")  # UTF-16 without a BOM decodes, with a zero after every letter
        bad = len(text[:bad].encode()) if bad >= 0 else -1
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        raise UserError(f"The caption {path} is not UTF-8 text (byte {start + bad}). Save it as UTF-8.")
    if len(text) > MOST_CHARACTERS:
        raise _too_long(path)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _too_long(path: Path) -> UnreadableImage:
    return UnreadableImage(
        f"The caption {path} has more than {MOST_CHARACTERS:,} characters, so its picture was left out. Shorten it."
    )


def _natural(path: Path) -> tuple[object, ...]:
    """A sort key that puts img2 before img10, the same on every system."""
    parts = [
        tuple(int(bit) if odd % 2 else bit for odd, bit in enumerate(re.split("([0-9]+)", part)))
        for part in unicodedata.normalize("NFC", path.as_posix()).casefold().split("/")
    ]
    return (parts, path.as_posix())


def _number(text: str) -> float:
    """Parse a number. One without a decimal point becomes an int."""
    return float(text) if "." in text else int(text)


def _no_pictures(root: Path, skipped: list[str]) -> UserError:
    """The error for a folder without a usable picture."""
    if skipped:
        return UserError(f"No picture in {root} can be used. {_first(skipped)}")
    kinds = ", ".join(IMAGE_SUFFIXES)
    return UserError(f"There are no pictures in {root} or its subfolders. Add files that end in {kinds}.")


def _first(sentences: list[str], most: int = 3) -> str:
    """The first few of many sentences."""
    rest = len(sentences) - most
    return " ".join(sentences[:most]) + (f" And {rest} more." if rest > 0 else "")
