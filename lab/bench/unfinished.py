"""What a long benchmark has measured so far, on disk: one that was stopped goes on, one that has ended is forgotten."""

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
# What results depend on; those of another state of it are not taken up.
SOURCES = ("training/**/*.py", "lab/**/*.py", "lab/base_model/card.json", "example_workflows/learn_a_character.json")


class Unfinished:
    """Results of one benchmark by their names.

    Args:
        name: Of the benchmark, with all that its results depend on beside the sources and the machine.
        folder: Where it is kept.
    """

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        belongs_to = hashlib.sha256(f"{name} {describe_machine()} {_STATE}".encode()).hexdigest()
        self._file = folder / f"{belongs_to[:16]}.jsonl"
        self._found: dict[str, Any] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # one was being written when it was stopped
                    key, value = json.loads(line)
                    self._found[key] = value

    def once(self, key: object, measure: Callable[[], Any]) -> Any:
        """A result, of what JSON knows, measured where it has not been yet."""
        key = str(key)
        if key not in self._found:
            self._found[key] = measure()
            if _state() != _STATE:
                raise SystemExit(f"A source changed while {key!r} was measured: begin again.")
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps([key, self._found[key]]))
        return self._found[key]

    def forget(self) -> None:
        """The benchmark has ended."""
        self._file.unlink(missing_ok=True)


def _state() -> str:
    files = sorted(file for pattern in SOURCES for file in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_STATE = _state()  # of what this process has read
