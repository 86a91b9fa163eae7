"""Results of a long benchmark on disk, so that a stopped one continues; a finished one is deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..pack import ROOT
from .machine import describe_machine

FOLDER = ROOT / ".host" / "bench" / "unfinished"
# What results depend on; results of another state of these files are not reused.
SOURCES = (
    "training/**/*.py", "lab/**/*.py", "lab/base_model/card.json", "example_workflows/lora_5_learn_a_character.json",
)  # fmt: skip


class Unfinished:
    """Results of one benchmark by their names.

    Args:
        name: Of the benchmark, with its arguments; sources and machine are added.
        folder: Where the file is.
    """

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        belongs_to = hashlib.sha256(f"{name} {describe_machine()} {_STATE}".encode()).hexdigest()
        self._file = folder / f"{belongs_to[:16]}.jsonl"
        self._found: dict[str, Any] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # stopped while writing it
                    key, value = json.loads(line)
                    self._found[key] = value

    def once(self, key: object, measure: Callable[[], Any]) -> Any:
        """A stored result, or the one measured now; it must consist of JSON values."""
        key = str(key)
        if key not in self._found:
            self._found[key] = measure()
            if _state() != _STATE:
                raise SystemExit(f"A source file changed while {key!r} was measured. Start the benchmark again.")
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps([key, self._found[key]]))
        return self._found[key]

    def forget(self) -> None:
        """Delete the results: the benchmark has ended."""
        self._file.unlink(missing_ok=True)


def _state() -> str:
    files = sorted(file for pattern in SOURCES for file in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_STATE = _state()  # of the files this process has loaded
