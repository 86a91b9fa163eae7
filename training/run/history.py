"""The history of a run: every line of its log, for its folder, for the panel and for whoever asks later.

A line is a dict with `kind`: begin, step, memory, epoch, checkpoint, sample, held_out, hint or end. docs/log.md lists
what each holds. The same lines go to `log.jsonl`, to the browser, and into the chart.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from ..events import Line, SilentSink, Sink, StepEvent
from .curve import Curve

_WRITE_EVERY = 1.0  # seconds
_MEMORY_EVERY = 1.0  # seconds
_CHANGES_BY = 0.01  # memory that changes by a smaller share is not reported again
_MOST_UNWRITTEN = 10_000  # lines kept while the disk refuses them


class History:
    """What happened in a run, as a sink that stands before another one. Safe for a reader in another thread.

    Args:
        run: Id of the run.
        sink: Receives everything that this one receives, and each line.
        write: Appends text to the run's log.
        in_trouble: Receives what kept the log from being written; called once.
    """

    def __init__(
        self, run: str, sink: Sink, write: Callable[[str], None], in_trouble: Callable[[UserError], None]
    ) -> None:
        self.run, self._sink, self._write, self._in_trouble = run, sink, write, in_trouble
        self._curve, self._others, self._last = Curve(), list[Line](), Line()
        self._lock = threading.Lock()
        self._unwritten: list[str] = []
        self._written_at, self._refused = time.monotonic(), False
        self._memory, self._counted_at = ("", 0.0), 0.0
        self.listeners: list[Callable[[Line], None]] = []  # each gets every line too

    def add(self, kind: str, **values: Any) -> None:
        """Add a line.

        Args:
            kind: What happened.
            values: What JSON can represent.
        """
        line = {"kind": kind, **values}
        with self._lock:
            take(line, self._curve, self._others)
            if kind == "step":
                self._last = line
        self._unwritten.append(json.dumps(line) + "\n")  # ASCII, as U+2028 would break a line
        self._sink.record(self.run, line)
        for listener in self.listeners:
            listener(line)
        if kind != "step" or time.monotonic() - self._written_at >= _WRITE_EVERY:
            self._write_log()

    @property
    def has_ended(self) -> bool:
        """Whether the run has said how it ended."""
        with self._lock:
            return any(line["kind"] == "end" for line in self._others)

    def close(self) -> None:
        """Let go of everything but what happened; a run holds memory on the device."""
        self._sink, self._write, self._in_trouble = SilentSink(), _nowhere, _nowhere
        self.listeners.clear()

    def told(self) -> dict[str, Any]:
        """The run so far: `curve` with the thinned steps, `last` step, and all other `lines`."""
        with self._lock:
            return {"curve": self._curve.columns(), "last": dict(self._last), "lines": list(self._others)}

    def memory(self, rung: str, count: Callable[[], int | None], step: int, is_last: bool) -> None:
        """Take note of the memory in use, at most once a second; a line is added when it has changed.

        Args:
            rung: How the run fits into memory; another one is noted at once.
            count: Gives the most bytes that were taken on the device; None where nothing counts them. It is slow.
            step: Steps done.
            is_last: Whether the run is at its end, which is noted too.
        """
        last_rung, last_used = self._memory
        now = time.monotonic()
        if rung == last_rung and not is_last and now - self._counted_at < _MEMORY_EVERY:
            return
        self._counted_at, used = now, count()
        if rung != last_rung or abs((used or 0) - last_used) > last_used * _CHANGES_BY:
            self._memory = rung, float(used or 0)
            self.add("memory", step=step, rung=rung, bytes=used)

    def _write_log(self) -> None:
        self._written_at = time.monotonic()
        text = "".join(self._unwritten)
        try:
            self._write(text)
        except UserError as error:
            del self._unwritten[:-_MOST_UNWRITTEN]
            if not self._refused:
                self._refused = True
                self._in_trouble(error)
        else:
            self._unwritten.clear()

    # -- as a sink ---------------------------------------------------------------------------

    def phase(self, text: str, done: int, total: int) -> None:
        """Pass on."""
        self._sink.phase(text, done, total)

    def step(self, event: StepEvent) -> None:
        """Add a line, and pass on to a sink that may raise the host's cancel."""
        self.add(
            "step", step=event.step, epoch=event.epoch, loss=event.loss, rate=event.learning_rate,
            seconds=round(event.seconds, 3), seconds_per_step=round(event.seconds_per_step, 4),
            concepts=dict(event.concepts),
        )  # fmt: skip
        self._sink.step(event)

    def tell(self, text: str) -> None:
        """Pass on."""
        self._sink.tell(text)

    def hint(self, text: str) -> None:
        """Pass on, and add a line."""
        self._sink.hint(text)
        self.add("hint", text=text)

    def record(self, run: str, line: Line) -> None:
        """Pass on."""
        self._sink.record(run, line)

    def cancelled(self) -> bool:
        """Whether a cancel is pending."""
        return self._sink.cancelled()

    def take_cancel(self) -> None:
        """Clear the pending cancel."""
        self._sink.take_cancel()


def _nowhere(_: object) -> None:
    """Take what a closed history would write or say."""


def take(line: Line, curve: Curve, others: list[Line]) -> None:
    """Add a line to the curve or to the other lines."""
    if line["kind"] == "step":
        curve.add(line["step"], line["loss"], line["rate"], line.get("concepts") or {})
    else:
        others.append(line)


def read(text: str) -> dict[str, Any]:
    """What `History.told` says of a run, from the text of its log. Lines that were not written whole are left out."""
    curve, others, last = Curve(), list[Line](), Line()
    for row in text.splitlines():
        try:
            line = json.loads(row)
            take(line, curve, others)
        except (ValueError, KeyError, TypeError):
            continue
        last = line if line["kind"] == "step" else last
    return {"curve": curve.columns(), "last": last, "lines": others}
