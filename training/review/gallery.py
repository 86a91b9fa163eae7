"""What the gallery in the browser is given: the datasets of this server by key, their pages and their thumbnails.

The browser names a dataset by a key made of where it lies, and a picture by its name within it; a path never crosses
the wire, and whoever guesses a key still gets nothing but the pictures of datasets that a graph has loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..captions.text_files import write_captions
from ..data import images
from ..data.dataset import Dataset, Picture, name_in
from ..data.words import least_tokens
from ..disk import GONE, file_stamp, write_whole
from ..errors import UserError
from .edits_file import EditsFile, Entry, dataset_key

THUMBNAIL = 256  # pixels of the longer side
MOST_ON_A_PAGE = 200
_MOST_DATASETS = 64


class Unknown(UserError):
    """There is no such dataset or picture on this server."""


@dataclass(frozen=True)
class Item:
    """One picture as the gallery shows it.

    Attributes:
        name: Its name within the dataset.
        caption: As it is now.
        original: As it came.
        excluded: Whether it is left out.
        revision: What an edit must name; see `Entry`.
        size: (width, height) in pixels.
        tokens: Of the caption; the least that there can be where no text encoder counted them.
        counted: Whether one did.
        stamp: Changes when the file does, for the browser's cache of thumbnails.
    """

    name: str
    caption: str
    original: str
    excluded: bool
    revision: int
    size: tuple[int, int]
    tokens: int
    counted: bool
    stamp: str


class Gallery:
    """The datasets that nodes of this server have shown, the last few of them.

    Args:
        edits_folder: Where edits are kept.
        thumbs_folder: Where thumbnails are kept; may be deleted at any time.
    """

    def __init__(self, edits_folder: Path, thumbs_folder: Path) -> None:
        self._edits_folder, self._thumbs_folder = edits_folder, thumbs_folder
        self._known: OrderedDict[str, tuple[Dataset, dict[str, Picture], Callable[[str], int] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def show(self, dataset: Dataset, count_tokens: Callable[[str], int] | None = None) -> str:
        """Make a dataset known and return its key."""
        key = dataset_key(dataset)
        by_name = {name_in(dataset, picture): picture for picture in dataset.without_copies()}
        with self._lock:
            self._known[key] = (dataset, by_name, count_tokens)
            self._known.move_to_end(key)
            while len(self._known) > _MOST_DATASETS:
                self._known.popitem(last=False)
        return key

    def edits(self, key: str) -> EditsFile:
        """The edits of a known dataset."""
        return EditsFile(self._edits_folder, self._dataset(key)[0])

    def names(self, key: str) -> list[str]:
        """The names of all pictures, in the dataset's order."""
        return list(self._dataset(key)[1])

    def page(self, key: str, start: int, count: int) -> list[Item]:
        """Some pictures in the dataset's order.

        Args:
            key: Of the dataset.
            start: The first, from 0.
            count: How many; never more than `MOST_ON_A_PAGE`.

        Raises:
            Unknown: There is no such dataset.
        """
        _, by_name, count_tokens = self._dataset(key)
        entries = self.edits(key).entries()
        chosen = list(by_name.items())[max(0, start) : max(0, start) + min(max(0, count), MOST_ON_A_PAGE)]
        return [_item(name, picture, entries.get(name, Entry()), count_tokens) for name, picture in chosen]

    def items(self, key: str, names: Iterable[str]) -> list[Item]:
        """Some pictures by name.

        Raises:
            Unknown: There is no such dataset or picture.
        """
        _, _, count_tokens = self._dataset(key)
        entries = self.edits(key).entries()
        return [_item(name, self._picture(key, name), entries.get(name, Entry()), count_tokens) for name in names]

    def write_text_files(self, key: str, over: bool) -> tuple[int, list[str]]:
        """Write the captions as they are now to .txt files beside the pictures; those left out are not written.

        Args:
            key: Of the dataset.
            over: Whether files that are there are written over.

        Returns:
            How many were written, and a sentence for each that could not be.

        Raises:
            Unknown: There is no such dataset.
        """
        dataset = self.edits(key).applied_to(self._dataset(key)[0])
        problems: list[str] = []
        return write_captions(dataset.without_copies(), dataset, over=over, problems=problems), problems

    def thumbnail(self, key: str, name: str) -> bytes:
        """A picture as a small JPEG, made once and kept.

        Raises:
            Unknown: There is no such dataset or picture.
            UnreadableImage: The file cannot be read.
        """
        dataset, _, _ = self._dataset(key)
        picture = self._picture(key, name)
        known = f"{picture.path}|{picture.fingerprint}|{dataset.background}|{THUMBNAIL}"
        digest = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()
        file = self._thumbs_folder / digest[:2] / f"{digest}.jpg"
        try:
            return file.read_bytes()
        except OSError:
            if file_stamp(picture.path) not in (picture.fingerprint, GONE) and not picture.is_of_the_graph:
                # It may be another file by now, or a link to one that was never part of the dataset.
                raise UserError(f"{name} was changed since it was loaded: queue the graph again.") from None
            blob = _shrunk(picture, dataset.background)
        _keep(file, blob)
        return blob

    def _dataset(self, key: str) -> tuple[Dataset, dict[str, Picture], Callable[[str], int] | None]:
        with self._lock:
            if key not in self._known:
                raise Unknown("This dataset is not loaded any more: queue the graph once to see it again.")
            return self._known[key]

    def _picture(self, key: str, name: str) -> Picture:
        picture = self._dataset(key)[1].get(name)
        if picture is None:
            raise Unknown(f"The dataset has no picture {name[:100]!r}.")
        return picture


def _item(name: str, picture: Picture, entry: Entry, count_tokens: Callable[[str], int] | None) -> Item:
    caption = picture.caption if entry.caption is None else entry.caption
    stamp = hashlib.sha256(f"{picture.path}|{picture.fingerprint}".encode("utf-8", "surrogateescape")).hexdigest()
    return Item(
        name=name, caption=caption, original=picture.caption, excluded=entry.excluded, revision=entry.revision,
        size=picture.size, tokens=(count_tokens or least_tokens)(caption), counted=count_tokens is not None,
        stamp=stamp[:12],
    )  # fmt: skip


def _shrunk(picture: Picture, background: tuple[int, int, int]) -> bytes:
    with images.opened(picture.path) as image:
        turn = images.orientation(image)
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # JPEG decodes at a fraction of its size
        image.load()
        small = images.turned(images.opaque(image, background), turn)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=82)
    return sink.getvalue()


def _keep(file: Path, blob: bytes) -> None:
    """Write a thumbnail; where that fails it is made again the next time, which is no one's trouble."""
    with contextlib.suppress(OSError):
        write_whole(file, blob)


def as_json(item: Item) -> dict[str, Any]:
    """An item as the browser gets it."""
    return {
        "name": item.name, "caption": item.caption, "original": item.original, "excluded": item.excluded,
        "revision": item.revision, "width": item.size[0], "height": item.size[1], "tokens": item.tokens,
        "counted": item.counted, "stamp": item.stamp,
    }  # fmt: skip
