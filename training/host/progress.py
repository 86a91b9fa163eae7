"""Shows progress in ComfyUI: its progress bar, the text in the node, and its cancel button."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management
import comfy.utils

from ..events import NOWHERE, Line, Place, StepEvent, describe
from .pages import Pages
from .server import node_text

# Shortest time between two texts. The bar moves with every step; the host throttles it.
_TEXT_EVERY = 0.2  # seconds


class NodeSink:
    """Shows progress on one node of the graph.

    Args:
        node_id: The node's unique id; None if the graph did not give it.
        place: Where a run takes place, for those who watch it.
    """

    def __init__(self, node_id: str | None, place: Place = NOWHERE) -> None:
        self.node_id = node_id
        self._pages = Pages(place)
        self._bars: dict[str, Any] = {}
        self._last_text = 0.0
        self._hints: list[str] = []

    def phase(self, text: str, done: int, total: int) -> None:
        """Show work before training: a progress bar of its own and one line."""
        self._bar(text, total).update_absolute(done, total)
        self._say(f"{text}: {done}/{total}", urgent=done == total)

    def step(self, event: StepEvent) -> None:
        """Show one optimizer step."""
        self._bar("training", event.total).update_absolute(event.step, event.total)
        self._say(describe(event), urgent=event.step in (1, event.total))

    def tell(self, text: str) -> None:
        """Show a sentence."""
        self._say(text, urgent=True)

    def hint(self, text: str) -> None:
        """Show a sentence from now on, below everything else that is shown."""
        self._hints.append(text)
        self._say("", urgent=True)

    def record(self, run: str, line: Line) -> None:
        """Send a line of a run's log to the pages that show it."""
        self._pages.add(run, line)

    def cancelled(self) -> bool:
        """Whether ComfyUI's cancel button was pressed."""
        return bool(comfy.model_management.processing_interrupted())

    def take_cancel(self) -> None:
        """Clear the cancel, so that the rest of the graph runs."""
        comfy.model_management.interrupt_current_processing(False)

    def _bar(self, name: str, total: int) -> Any:
        if name not in self._bars:
            self._bars[name] = comfy.utils.ProgressBar(total, node_id=self.node_id)
        return self._bars[name]

    def _say(self, text: str, urgent: bool) -> None:
        now = time.monotonic()
        if not (urgent or now - self._last_text >= _TEXT_EVERY):
            return
        self._last_text = now
        lines = [text, *(hint for hint in self._hints if hint not in text)]
        node_text(self.node_id, "\n".join(line for line in lines if line))


def is_host_interrupt(error: BaseException) -> bool:
    """Return whether an exception is ComfyUI's cancel, by name, as its base class differs between versions."""
    return type(error).__name__ == "InterruptProcessingException"


def host_interrupt() -> BaseException:
    """Return the exception that stops ComfyUI's queue as its cancel button does."""
    return comfy.model_management.InterruptProcessingException()  # type: ignore[no-any-return]
