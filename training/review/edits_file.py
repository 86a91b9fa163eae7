"""What a person changed in the gallery, kept in one small file per dataset: captions and pictures left out.

The file survives a reload of the page and a restart of the server. Each entry has a revision, so that of two people (or
two tabs) who edit one picture at the same time, the second is told instead of writing over the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data.dataset import Dataset, Picture, name_in
from ..disk import disk_trouble, write_whole
from ..errors import UserError

log = logging.getLogger(__name__)

LONGEST_CAPTION = 20_000  # characters
_FORMAT = 1
_locks: dict[Path, threading.RLock] = {}
_locks_guard = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One picture's edits.

    Attributes:
        caption: What it is called now; None where the caption is as it came.
        excluded: Whether it is left out.
        revision: Rises with each edit of this picture; 0 before the first.
    """

    caption: str | None = None
    excluded: bool = False
    revision: int = 0


class Conflict(UserError):
    """A picture was edited elsewhere meanwhile; `entry` is how it is now."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(f"{name} was changed elsewhere meanwhile: look at it again before you save.")
        self.entry = entry


class EditsFile:
    """The edits of one dataset.

    Args:
        folder: Where such files are kept.
        dataset: Which dataset: its folder decides, or its name where its pictures came from the graph.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.path = folder / f"{dataset_key(dataset)}.json"

    def entries(self) -> dict[str, Entry]:
        """All edits by picture, as `name_in` names them; none when the file is not there.

        A damaged file is set aside under another name, and the log says so.

        Raises:
            UserError: The file is there and cannot be opened: its edits are not to be taken for none.
        """
        try:
            with self._locked():  # nobody is writing it
                text = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UserError(f"The edits in {self.path} cannot be read ({error.strerror}): try again.") from error
        try:
            found = json.loads(text)
            return {name: Entry(**entry) for name, entry in found["pictures"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            self._set_aside()
            return {}

    def change(self, name: str, *, base: int, caption: str | None = None, excluded: bool | None = None) -> Entry:
        """Save one edit at once.

        Args:
            name: Of the picture.
            base: Revision that the person saw.
            caption: The new caption, or None to leave it.
            excluded: Whether it is left out, or None to leave that.

        Returns:
            The entry as it is now.

        Raises:
            Conflict: It was edited since.
            UserError: The caption is too long, or the file cannot be read or written.
        """
        if caption is not None and len(caption) > LONGEST_CAPTION:
            raise UserError(f"The caption has {len(caption)} characters: {LONGEST_CAPTION} at most.")
        with self._locked():
            entries = self.entries()
            entry = entries.get(name, Entry())
            if entry.revision != base:
                raise Conflict(name, entry)
            changed = replace(
                entry,
                caption=entry.caption if caption is None else caption,
                excluded=entry.excluded if excluded is None else excluded,
                revision=base + 1,
            )
            self._write({**entries, name: changed})
            return changed

    def change_all(self, changes: Mapping[str, Entry]) -> dict[str, Entry]:
        """Save many edits in one write: all, or where one was edited meanwhile none.

        Args:
            changes: The wanted entries, each with the revision that the person saw.

        Raises:
            Conflict: One of them was edited since.
        """
        with self._locked():
            entries = self.entries()
            for name, wanted in changes.items():
                now = entries.get(name, Entry())
                if now.revision != wanted.revision:
                    raise Conflict(name, now)
            changed = {name: replace(wanted, revision=wanted.revision + 1) for name, wanted in changes.items()}
            self._write({**entries, **changed})
            return changed

    def stamp(self) -> str:
        """Changes when what the edits come to does."""
        return _stamp(self.path)

    def applied_to(self, dataset: Dataset) -> Dataset:
        """The dataset with the edits in it."""
        entries = self.entries()
        shown = {id(picture) for picture in dataset.without_copies()}

        def edited() -> Iterator[Picture]:
            for picture in dataset.pictures:
                entry = entries.get(name_in(dataset, picture), Entry())
                if entry.excluded:
                    continue
                if entry.caption is None or id(picture) not in shown:
                    yield picture
                else:
                    yield replace(picture, caption=entry.caption)

        kept = tuple(edited())
        if not kept:
            raise UserError("Every picture of the dataset is left out: take some in again in the gallery.")
        return dataset.with_pictures(kept)

    def _write(self, entries: Mapping[str, Entry]) -> None:
        text = json.dumps({"format": _FORMAT, "pictures": {n: asdict(entry) for n, entry in entries.items()}}, indent=1)
        try:
            write_whole(self.path, text)
        except OSError as error:
            raise UserError(disk_trouble(error, self.path.parent)) from error

    def _set_aside(self) -> None:
        """Keep a file that says nothing under another name, so that the next edit does not write over it."""
        aside = next(
            path for path in (self.path.with_suffix(f".damaged{number or ''}") for number in itertools.count())
            if not path.exists()
        )  # fmt: skip
        log.error("LoRA Workbench: the gallery's edits in %s are damaged and were set aside as %s.", self.path, aside)
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with _locks_guard:
            lock = _locks.setdefault(self.path, threading.RLock())
        with lock:
            yield


def dataset_key(dataset: Dataset) -> str:
    """Names a dataset's edits: the same folder has the same key whatever was done to the dataset since."""
    source = str(dataset.root) if dataset.root else f"name:{dataset.name}"
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Watched:
    """Whether a node has to run again: only when a dataset that it showed was edited since.

    ComfyUI asks a node for its fingerprint before it knows the node's dataset, and runs again whatever hangs on a
    fingerprint that differs from the last one. So what is answered changes when, and only when, an edit was saved after
    the node read them; to know a dataset for the first time changes nothing.
    """

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}
        self._read: dict[str, tuple[str, dict[Path, str]]] = {}

    def fingerprint(self, node: str) -> str:
        """What ComfyUI is told of a node before it runs."""
        told, stamps = self._read.get(node, ("", {}))
        now = {path: _stamp(path) for path in stamps}
        if now != stamps:
            # With what was told before in it, so that no answer is ever given again for another state.
            told = hashlib.sha256(repr((told, sorted(now.items()))).encode("utf-8", "surrogateescape")).hexdigest()
        self._asked[node] = told
        return told

    def reads(self, node: str, edits: EditsFile) -> None:
        """Remember what a node is about to read."""
        # Under the id of this node another graph may have shown other datasets: all of them are watched.
        _, stamps = self._read.get(node, ("", {}))
        now = {path: _stamp(path) for path in stamps} | {edits.path: edits.stamp()}
        self._read[node] = (self._asked.get(node, ""), now)


def _stamp(path: Path) -> str:
    """A hash of what the edits come to: one that was taken back leaves no trace in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        counted = {name: (entry["caption"], entry["excluded"]) for name, entry in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    counted = {name: what for name, what in sorted(counted.items()) if what != (None, False)}
    return hashlib.sha256(json.dumps(counted).encode()).hexdigest() if counted else ""
