"""What is done between two steps: notice slow ones, save, sample, measure, and do what the user asks for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from .advice import Slowdown
from .events import Sink, Stopped
from .host.memory import is_apart
from .ready import Ready
from .run.keeper import Keeper
from .run.state import Run
from .run.under_way import UnderWay


class Watcher(Protocol):
    """Something that looks at the run between two steps and changes nothing of it."""

    wish: str  # the one of `WISHES` that makes it look at once; empty for none

    def is_due(self, run: Run, epoch_ended: bool) -> bool:
        """Whether it looks now; also asked before the first step."""

    def look(self, run: Run) -> None:
        """Look at the run, which stands between two steps."""


class Between:
    """What is done between two steps of one run.

    Args:
        keeper: Keeps what the run makes.
        ready: What is trained.
        sink: Receives the story of the run.
        under_way: What the user asks for.
        watchers: What looks at the run.
    """

    def __init__(
        self, keeper: Keeper, ready: Ready, sink: Sink, under_way: UnderWay, watchers: Sequence[Watcher] = ()
    ) -> None:
        self._keeper, self._ready, self._sink, self._under_way = keeper, ready, sink, under_way
        self._watchers = watchers
        self._slowdown = Slowdown() if is_apart(ready.model.device) else None
        self._began = time.monotonic()

    def begin(self, run: Run) -> None:
        """Look at the run before its first step.

        Raises:
            Stopped: The user ended the run.
        """
        self._look(run, epoch_ended=False)
        self._obey()
        self._began = time.monotonic()

    def after_step(self, run: Run, epoch_ended: bool) -> None:
        """Do what is due after an optimizer step.

        Raises:
            Stopped: The user ended the run.
        """
        self._notice_slow_step()
        self._keeper.after_step(run, epoch_ended)
        if self._under_way.take("save"):
            self._keeper.save_now()
        self._obey()
        self._look(run, epoch_ended)
        self._obey()  # samples take long
        self._began = time.monotonic()

    def _obey(self) -> None:
        """End the run if the user asked for it.

        Raises:
            Stopped: Which says whether it is kept.
        """
        if self._under_way.take("discard"):
            raise Stopped(keeps=False)
        if self._under_way.take("stop"):
            raise Stopped(keeps=True)

    def _look(self, run: Run, epoch_ended: bool) -> None:
        asked = [watcher for watcher in self._watchers if watcher.wish and self._under_way.take(watcher.wish)]
        due = [watcher for watcher in self._watchers if watcher in asked or watcher.is_due(run, epoch_ended)]
        if due and run.step >= run.total:
            self._keeper.save_end()  # a process that dies of a last sample must not cost the training
        for watcher in due:
            watcher.look(run)

    def _notice_slow_step(self) -> None:
        if self._slowdown is None:
            return
        seconds = (time.monotonic() - self._began) / self._ready.setup.plan.config.gradient_accumulation
        if hint := self._slowdown.see(seconds, self._ready.seconds):
            self._keeper.hints += (hint,)
            self._sink.hint(hint)
