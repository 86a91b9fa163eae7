"""A cache of tensors on disk, keyed by everything they depend on, so that nothing is computed twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from ..disk import disk_trouble, write_whole
from ..errors import UserError

# The format number of an entry. Entries without one are from before tensors were checked.
FORMAT = "2"


class NotFiniteTensor(UserError):
    """A tensor holds NaN or infinity, so it is not cached. Who made it says of what, and what to do."""


def cache_key(*parts: object) -> str:
    """Hash the parts that a cached value depends on. The first names the kind of value and its version."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def is_finite(value: Any) -> bool:
    """Whether no tensor in a value, its lists and its dicts holds NaN or infinity."""
    if isinstance(value, Tensor):
        # torch has no isfinite for eight bits.
        narrow = value.is_floating_point() and value.element_size() == 1
        return bool(torch.isfinite(value.float() if narrow else value).all())
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(is_finite, value))


class TensorCache:
    """A folder of small safetensors files, each named by its key.

    Writes are atomic, so two runs can share the folder. A file damaged by a power failure is recomputed. The folder can
    be deleted at any time.

    Every tensor in it is finite: `put` refuses others. An entry of an older format is checked when it is first asked
    for. It gets the format number, or is removed, so that it is computed again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether a key has a readable entry. Of an entry in the present format, only the header is read."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("format") == FORMAT:
                    return True
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, ValueError):
            _remove(path)
            return False
        return self.get(key) is not None

    def stamp(self) -> str:
        """What changes when an entry is added, without reading any: the last change of the folder's parts."""
        try:
            return str(max((part.stat().st_mtime_ns for part in self.folder.iterdir()), default=0))
        except OSError:
            return "0"

    def size(self, key: str) -> int:
        """Bytes of an entry; 0 without one."""
        try:
            return self._path(key).stat().st_size
        except OSError:
            return 0

    def put(self, key: str, tensors: dict[str, Tensor], note: Any = None) -> None:
        """Store tensors, with a note of anything that JSON can represent.

        Raises:
            NotFiniteTensor: A tensor holds NaN or infinity. Nothing is stored.
            UserError: The disk is full or the folder cannot be written.
        """
        plain = _finite(tensors)
        try:
            write_whole(self._path(key), lambda part: save_file(plain, part, header_of(note)))
        except (OSError, SafetensorError) as error:
            raise UserError(disk_trouble(error, self.folder)) from error

    def get(self, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """Return (tensors, note) of a key, or None if its file is missing, unreadable or not finite.

        An unreadable file, such as after a power failure, is removed, so that it is recomputed. So is an entry of an
        older format that is not finite.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
            tensors, metadata = load(data), _metadata(data)
            note = json.loads(metadata.get("note", "null"))
            if metadata.get("format") == FORMAT:
                return tensors, note
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError):
            _remove(path)
            return None
        try:
            self.put(key, tensors, note)
        except NotFiniteTensor:
            _remove(path)
            return None
        except UserError:
            pass  # the entry is good; without its number it is checked again next time
        return tensors, note


class Overlay(TensorCache):
    """A cache that reads another and writes nothing: its own entries stay in memory.

    Args:
        under: The cache on disk.
    """

    def __init__(self, under: TensorCache) -> None:
        super().__init__(under.folder)
        self._under = under
        self._own: dict[str, tuple[dict[str, Tensor], Any]] = {}

    def __contains__(self, key: str) -> bool:
        """Whether a key has an entry, here or on disk."""
        return key in self._own or key in self._under

    def size(self, key: str) -> int:
        """Bytes of an entry on disk, or that it would have there; 0 without one."""
        if key not in self._own:
            return self._under.size(key)
        tensors, note = self._own[key]
        return len(save(tensors, header_of(note)))

    def put(self, key: str, tensors: dict[str, Tensor], note: Any = None) -> None:
        """Keep tensors in memory.

        Raises:
            NotFiniteTensor: A tensor holds NaN or infinity. Nothing is kept.
        """
        self._own[key] = _finite(tensors), note

    def get(self, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """Return (tensors, note) of a key, or None."""
        return self._own[key] if key in self._own else self._under.get(key)


def header_of(note: Any = None) -> dict[str, str]:
    """The metadata of an entry."""
    return {"format": FORMAT, "note": json.dumps(note)}


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors as an entry has them.

    Raises:
        NotFiniteTensor: A tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise NotFiniteTensor(f"The tensor {name} is not finite, so it is not cached. Load its model in fp32.")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which stands in its header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__") or {}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
