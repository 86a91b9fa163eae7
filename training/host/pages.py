"""Sends the lines of a run's log to the pages that are open, a few times a second at most."""

from __future__ import annotations

import threading
import time

from ..events import Line, Place
from .server import send

EVENT = "lora_workbench.run"
_EVERY = 0.1  # seconds between two events


class Pages:
    """The pages that may show a run. Lines that come faster than `_EVERY` are sent together.

    Args:
        place: Where the run takes place. A page shows it in that node, if it has that workflow open.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lines: list[Line] = []
        self._run = ""
        self._sent_at = 0.0
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def add(self, run: str, line: Line) -> None:
        """Send a line now, or with the next ones."""
        with self._lock:
            self._lines.append(line)
            self._run = run
            self._send_or_wait()

    def _send_or_wait(self) -> None:
        wait = self._sent_at + _EVERY - time.monotonic()
        if wait <= 0:
            self._send()
        elif self._timer is None:
            self._timer = threading.Timer(wait, self._send_waiting)
            self._timer.daemon = True
            self._timer.start()

    def _send_waiting(self) -> None:
        with self._lock:
            self._timer = None
            if self._lines:
                self._send_or_wait()  # a line may have sent the others just now

    def _send(self) -> None:
        lines, self._lines = self._lines, []
        self._sent_at = time.monotonic()
        send(EVENT, {**vars(self._place), "run": self._run, "lines": lines})
