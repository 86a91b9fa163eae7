"""Tensors kept on disk by a key that says all they depend on: what was computed once is never computed again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..disk import disk_trouble, write_whole
from ..errors import UserError


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
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            write_whole(self._path(key), lambda part: save_file(plain, part, {"note": json.dumps(note)}))
        except (OSError, SafetensorError) as error:
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




