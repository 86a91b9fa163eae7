"""The datasets shown in the browser's gallery: pages of pictures, thumbnails and edits.

The browser names a dataset by a key, a hash of its folder, and a picture by its name within the dataset. No path
crosses the wire. Whoever guesses a key still gets only pictures of datasets that a graph has loaded.
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

THUMBNAIL = 256  # longer side in pixels
MOST_ON_A_PAGE = 200
_MOST_DATASETS = 64


class Unknown(UserError):
    """The dataset or picture is not known to this server."""


@dataclass(frozen=True)
class Item:
    """One picture as the gallery shows it.

    Attributes:
        name: Its name within the dataset.
        caption: The present caption.
        original: The caption before any edit.
        excluded: Whether the picture is left out.
        revision: The revision an edit must name; see `Entry`.
        size: (width, height) in pixels.
        tokens: Number of tokens in the caption; without a text encoder a lower bound.
        counted: Whether a text encoder counted the tokens.
        stamp: Changes with the file, for the browser's cache of thumbnails.
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
    """The datasets that nodes of this server showed most recently.

    Args:
        edits_folder: The folder of the edits files.
        thumbs_folder: The cache of thumbnails; may be deleted at any time.
    """

    def __init__(self, edits_folder: Path, thumbs_folder: Path) -> None:
        self._edits_folder, self._thumbs_folder = edits_folder, thumbs_folder
        self._known: OrderedDict[str, tuple[Dataset, dict[str, Picture], Callable[[str], int] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def show(self, dataset: Dataset, count_tokens: Callable[[str], int] | None = None) -> str:
        """Add a dataset and return its key."""
        key = dataset_key(dataset)
        by_name = {name_in(dataset, picture): picture for picture in dataset.without_copies()}
        with self._lock:
            self._known[key] = (dataset, by_name, count_tokens)
            self._known.move_to_end(key)
            while len(self._known) > _MOST_DATASETS:
                self._known.popitem(last=False)
        return key

    def edits(self, key: str) -> EditsFile:
        """Return the edits of a dataset."""
        return EditsFile(self._edits_folder, self._dataset(key)[0])

    def names(self, key: str) -> list[str]:
        """Return the names of all pictures in the dataset's order."""
        return list(self._dataset(key)[1])

    def page(self, key: str, start: int, count: int) -> list[Item]:
        """Return a range of pictures in the dataset's order.

        Args:
            key: Key of the dataset.
            start: Index of the first picture, from 0.
            count: Number of pictures, limited to `MOST_ON_A_PAGE`.

        Raises:
            Unknown: No dataset has this key.
        """
        _, by_name, count_tokens = self._dataset(key)
        entries = self.edits(key).entries()
        chosen = list(by_name.items())[max(0, start) : max(0, start) + min(max(0, count), MOST_ON_A_PAGE)]
        return [_item(name, picture, entries.get(name, Entry()), count_tokens) for name, picture in chosen]

    def items(self, key: str, names: Iterable[str]) -> list[Item]:
        """Return pictures by name.

        Raises:
            Unknown: The dataset or a picture is not known.
        """
        _, _, count_tokens = self._dataset(key)
        entries = self.edits(key).entries()
        return [_item(name, self._picture(key, name), entries.get(name, Entry()), count_tokens) for name in names]

    def write_text_files(self, key: str, over: bool) -> tuple[int, list[str]]:
        """Write the edited captions to .txt files next to the pictures, except for excluded pictures.

        Args:
            key: Key of the dataset.
            over: Whether existing files are overwritten.

        Returns:
            The number of files written, and a sentence for each file that could not be written.

        Raises:
            Unknown: No dataset has this key.
        """
        dataset = self.edits(key).applied_to(self._dataset(key)[0])
        problems: list[str] = []
        return write_captions(dataset.without_copies(), dataset, over=over, problems=problems), problems

    def thumbnail(self, key: str, name: str) -> bytes:
        """Return a picture as a small JPEG, made once and cached.

        Raises:
            Unknown: The dataset or picture is not known.
            UserError: The file was changed since the dataset was loaded.
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
                # It may be another file now, or a link to a file outside the dataset.
                raise UserError(f"{name} was changed since it was loaded. Queue the graph again.") from None
            blob = _shrunk(picture, dataset.background)
        _keep(file, blob)
        return blob

    def _dataset(self, key: str) -> tuple[Dataset, dict[str, Picture], Callable[[str], int] | None]:
        with self._lock:
            if key not in self._known:
                raise Unknown("This dataset is not loaded any more. Queue the graph once to see it again.")
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
        images.load(image)
        small = images.turned(images.opaque(image, background), turn)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=82)
    return sink.getvalue()


def _keep(file: Path, blob: bytes) -> None:
    """Cache a thumbnail. A failure is harmless: the thumbnail is made again next time."""
    with contextlib.suppress(OSError):
        write_whole(file, blob)


def as_json(item: Item) -> dict[str, Any]:
    """Return an item as the browser receives it."""
    return {
        "name": item.name, "caption": item.caption, "original": item.original, "excluded": item.excluded,
        "revision": item.revision, "width": item.size[0], "height": item.size[1], "tokens": item.tokens,
        "counted": item.counted, "stamp": item.stamp,
    }  # fmt: skip
