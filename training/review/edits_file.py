"""The edits made in the gallery: changed captions and excluded pictures, in one small file per dataset.

The file survives a reload of the page and a restart of the server. Each entry has a revision. If two people (or two
tabs) edit one picture at the same time, the second gets an error instead of overwriting the first.
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
from ..data.words import MOST_CHARACTERS
from ..disk import disk_trouble, write_whole
from ..errors import UserError

log = logging.getLogger(__name__)

_FORMAT = 1
_locks: dict[Path, threading.RLock] = {}
_locks_guard = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One picture's edits.

    Attributes:
        caption: The edited caption; None if the original holds.
        excluded: Whether the picture is left out.
        revision: Number of edits of this picture so far.
    """

    caption: str | None = None
    excluded: bool = False
    revision: int = 0


class Conflict(UserError):
    """The picture was edited elsewhere in the meantime; `entry` is its present state."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(f"{name} was changed elsewhere in the meantime. Look at it again before you save.")
        self.entry = entry


class EditsFile:
    """The edits of one dataset.

    Args:
        folder: The folder of all edits files.
        dataset: The dataset, identified by its folder, or by its name if its pictures came from the graph.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.path = folder / f"{dataset_key(dataset)}.json"

    def entries(self) -> dict[str, Entry]:
        """Return all edits by picture name (see `name_in`); an absent file has none.

        A damaged file is renamed, and the log says so.

        Raises:
            UserError: The file exists and cannot be opened. Its edits must not count as none.
        """
        try:
            with self._locked():  # no other thread is writing it
                text = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UserError(f"The edits in {self.path} cannot be read ({error.strerror}). Try again.") from error
        try:
            found = json.loads(text)
            return {name: Entry(**entry) for name, entry in found["pictures"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            self._set_aside()
            return {}

    def change(self, name: str, *, base: int, caption: str | None = None, excluded: bool | None = None) -> Entry:
        """Save one edit.

        Args:
            name: Name of the picture.
            base: The revision the edit is based on.
            caption: The new caption, or None to leave it unchanged.
            excluded: Whether the picture is left out, or None to leave that unchanged.

        Returns:
            The new entry.

        Raises:
            Conflict: The picture was edited since that revision.
            UserError: The caption is too long, or the file cannot be read or written.
        """
        if caption is not None and len(caption) > MOST_CHARACTERS:
            raise UserError(f"The caption has {len(caption)} characters. Shorten it to {MOST_CHARACTERS} at most.")
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
        """Save many edits in one write: all of them or none.

        Args:
            changes: The new entries, each with the revision the edit is based on.

        Raises:
            Conflict: One of the pictures was edited since its revision.
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
        """Return a hash of the effect of the edits."""
        return _stamp(self.path)

    def applied_to(self, dataset: Dataset) -> Dataset:
        """Return the dataset with the edits applied.

        Raises:
            UserError: Every picture is excluded, or the file cannot be read.
        """
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

        remaining = tuple(edited())
        if not remaining:
            raise UserError("Every picture of the dataset is left out. Include some again in Edit Captions.")
        return dataset.with_pictures(remaining)

    def _write(self, entries: Mapping[str, Entry]) -> None:
        text = json.dumps({"format": _FORMAT, "pictures": {n: asdict(entry) for n, entry in entries.items()}}, indent=1)
        try:
            write_whole(self.path, text)
        except OSError as error:
            raise UserError(disk_trouble(error, self.path.parent)) from error

    def _set_aside(self) -> None:
        """Rename a damaged file, so that the next edit does not overwrite it."""
        aside = next(
            path for path in (self.path.with_suffix(f".damaged{number or ''}") for number in itertools.count())
            if not path.exists()
        )  # fmt: skip
        log.error("LoRA Workbench: the gallery's edits in %s are damaged. The file is now %s.", self.path, aside)
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with _locks_guard:
            lock = _locks.setdefault(self.path, threading.RLock())
        with lock:
            yield


def dataset_key(dataset: Dataset) -> str:
    """Return a key of a dataset's edits. It depends on the folder alone, not on what was done to the dataset since."""
    source = str(dataset.root) if dataset.root else f"name:{dataset.name}"
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Watched:
    """Decides whether a node must run again: only if a dataset it showed was edited since.

    ComfyUI asks a node for its fingerprint before it knows the node's dataset. If the fingerprint differs from the last
    one, ComfyUI runs the node and all that depend on it. So the fingerprint changes if and only if an edit was saved
    after the node read them. Seeing a dataset for the first time changes nothing.
    """

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}
        self._read: dict[str, tuple[str, dict[Path, str]]] = {}

    def fingerprint(self, node: str) -> str:
        """Return the fingerprint ComfyUI gets before it runs a node."""
        last, stamps = self._read.get(node, ("", {}))
        now = {path: _stamp(path) for path in stamps}
        if now != stamps:
            # The last fingerprint is part of the hash, so no fingerprint ever stands for two states.
            last = hashlib.sha256(repr((last, sorted(now.items()))).encode("utf-8", "surrogateescape")).hexdigest()
        self._asked[node] = last
        return last

    def reads(self, node: str, edits: EditsFile) -> None:
        """Record which edits a node is about to read."""
        # Another graph may have shown other datasets under the same node id: all of them are watched.
        _, stamps = self._read.get(node, ("", {}))
        now = {path: _stamp(path) for path in stamps} | {edits.path: edits.stamp()}
        self._read[node] = (self._asked.get(node, ""), now)


def _stamp(path: Path) -> str:
    """Return a hash of the effect of the edits; an undone edit leaves no trace in it. Empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        edited = {name: (entry["caption"], entry["excluded"]) for name, entry in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    edited = {name: what for name, what in sorted(edited.items()) if what != (None, False)}
    return hashlib.sha256(json.dumps(edited).encode()).hexdigest() if edited else ""
