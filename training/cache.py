"""Tensors kept on disk by a key that says all they depend on: what was computed once is never computed again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError


class TensorCache:
    """A folder of small safetensors files, each under its key.

    Files appear whole or not at all, so two runs can share the folder, and one that a power failure cut off is made
    anew. It may be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def put(self, key: str, tensors: dict[str, Tensor], note: Any = None) -> None:
        """Store tensors, and anything JSON can hold beside them.

        Raises:
            UserError: The disk is full or the folder cannot be written.
        """
        path = self._path(key)
        part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, part, {"note": json.dumps(note)})
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise UserError(disk_trouble(error, self.folder)) from error

    def get(self, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """Return (tensors, note) of a key, or None when it is not there or not readable.

        A file that cannot be read (the power failed while it was written, say) is removed, so that it is made anew.
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


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        content = hashlib.sha256()
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def disk_trouble(error: Exception, folder: Path) -> str:
    """Say in one sentence why a folder could not be written."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number == errno.ENOSPC or "No space left" in text:
        return f"The disk is full: {folder} could not be written. Free some space and queue again."
    if number in (errno.EACCES, errno.EROFS, errno.EPERM) or "Permission denied" in text:
        return f"ComfyUI may not write to {folder}. Change the folder's permissions and queue again."
    return f"{folder} could not be written: {error}."
