"""A cache of tensors on disk, keyed by everything they depend on, so that nothing is computed twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..disk import disk_trouble, write_whole
from ..errors import UserError


def cache_key(*parts: object) -> str:
    """Hash the parts that a cached value depends on. The first names the kind of value and its version."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


class TensorCache:
    """A folder of small safetensors files, each named by its key.

    Writes are atomic, so two runs can share the folder. A file damaged by a power failure is recomputed. The folder can
    be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def put(self, key: str, tensors: dict[str, Tensor], note: Any = None) -> None:
        """Store tensors, with a note of anything that JSON can represent.

        Raises:
            UserError: The disk is full or the folder cannot be written.
        """
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            write_whole(self._path(key), lambda part: save_file(plain, part, {"note": json.dumps(note)}))
        except (OSError, SafetensorError) as error:
            raise UserError(disk_trouble(error, self.folder)) from error

    def get(self, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """Return (tensors, note) of a key, or None if its file is missing or unreadable.

        An unreadable file, such as after a power failure, is removed, so that it is recomputed.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                return tensors, json.loads((file.metadata() or {}).get("note", "null"))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
