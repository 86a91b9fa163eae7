"""What the engine reports while it works. The receiver is a Protocol, so the engine runs without a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Line = dict[str, Any]  # one line of a run's log; docs/log.md lists its kinds


class Cancelled(Exception):
    """The user pressed cancel. The engine raises it; it is never shown as an error."""


class Stopped(Cancelled):
    """The user ended this run with a button in its panel.

    Args:
        keeps: Whether what was trained is kept and the graph goes on.
    """

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.keeps = keeps


@dataclass(frozen=True)
class Place:
    """Where a run takes place; all empty outside a server.

    Attributes:
        workflow: Id of the workflow.
        node: Id of the node, with those of the subgraphs around it.
        prompt: Id of the prompt.
    """

    workflow: str = ""
    node: str = ""
    prompt: str = ""


NOWHERE = Place()


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step.

    Attributes:
        step: Steps done, from 1.
        total: Steps planned.
        epoch: Current epoch, from 1.
        epochs: Epochs planned.
        loss: Mean loss of this step's pictures.
        smoothed: Mean loss of about the last hundred steps.
        learning_rate: Learning rate of this step.
        seconds: Time since training began.
        seconds_per_step: Mean time of the most recent steps.
        concepts: Mean loss of this step's pictures by concept.
    """

    step: int
    total: int
    epoch: int
    epochs: int
    loss: float
    smoothed: float
    learning_rate: float
    seconds: float
    seconds_per_step: float
    concepts: Mapping[str, float] = field(default_factory=dict)


class Sink(Protocol):
    """Receives progress and answers whether the user pressed cancel."""

    def phase(self, text: str, done: int, total: int) -> None:
        """Report work before training: `done` of `total` pictures or captions."""

    def step(self, event: StepEvent) -> None:
        """Report one optimizer step."""

    def tell(self, text: str) -> None:
        """Report a sentence, such as what was left out or how the run ended."""

    def hint(self, text: str) -> None:
        """Report a sentence that stays in view until the end of the run."""

    def record(self, run: str, line: Line) -> None:
        """Report one line of a run's log.

        Args:
            run: Id of the run.
            line: What JSON can represent.
        """

    def cancelled(self) -> bool:
        """Whether a cancel is pending. Does not clear it."""

    def take_cancel(self) -> None:
        """Clear the pending cancel, so that the rest of the graph runs."""


class SilentSink:
    """Reports nothing and is never cancelled: for tests and scripts."""

    def phase(self, text: str, done: int, total: int) -> None:
        """Do nothing."""

    def step(self, event: StepEvent) -> None:
        """Do nothing."""

    def tell(self, text: str) -> None:
        """Do nothing."""

    def hint(self, text: str) -> None:
        """Do nothing."""

    def record(self, run: str, line: Line) -> None:
        """Do nothing."""

    def cancelled(self) -> bool:
        """Never."""
        return False

    def take_cancel(self) -> None:
        """Do nothing."""


def describe(event: StepEvent) -> str:
    """Describe a step in one line: loss, speed and time left."""
    left = max(0.0, (event.total - event.step) * event.seconds_per_step)
    rate = f"{1 / event.seconds_per_step:.2f} it/s" if event.seconds_per_step > 0 else ""
    if 0 < 1 / max(event.seconds_per_step, 1e-9) < 1:
        rate = f"{event.seconds_per_step:.1f} s/it"
    return (
        f"step {event.step}/{event.total} · epoch {event.epoch}/{event.epochs} · loss {event.smoothed:.4f} · "
        f"{rate} · {clock(left)} left"
    )


def clock(seconds: float) -> str:
    """Format a duration for a person: 42 s, 3:05, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def lasted(seconds: float) -> str:
    """Say how long something took: 42 s, 2 min, 1 h 3 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun: `1 picture`, `2 pictures`, `2 batches`.

    Args:
        number: How many.
        noun: The singular.
        plural: The plural, if it is not the singular plus `s`.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
