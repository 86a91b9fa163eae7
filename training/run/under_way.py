"""The runs under way in this process, as the server's threads see them: their history and what is asked of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..events import Place
from .history import History

WISHES = ("sample", "save", "stop", "discard")
_MOST = 20  # runs remembered; the folder of a run can be gone


@dataclass
class UnderWay:
    """A run under way, or one that ended not long ago.

    Attributes:
        id: Its id.
        name: Its name, which is its folder's.
        folder: Where it lies.
        place: Where it takes place.
        history: What happened so far.
        wishes: What the user asked for and has not got yet.
        is_running: Whether it is still under way.
    """

    id: str
    name: str
    folder: Path
    place: Place
    history: History
    wishes: set[str] = field(default_factory=set)
    is_running: bool = True

    def wish(self, what: str) -> None:
        """Ask for one of `WISHES`; it is done between two steps."""
        with _lock:
            self.wishes.add(what)

    def take(self, what: str) -> bool:
        """Whether something was asked for; it then counts as done."""
        with _lock:
            asked = what in self.wishes
            self.wishes.discard(what)
        return asked

    @property
    def is_ending(self) -> bool:
        """Whether the user asked for its end."""
        with _lock:
            return bool(self.wishes & {"stop", "discard"})

    def told(self) -> dict[str, Any]:
        """What its panel shows."""
        told = self.history.told()
        ends = [line["outcome"] for line in told["lines"] if line["kind"] == "end"]
        return {"state": ends[-1] if ends else "running" if self.is_running else "ended", **told}


_lock = threading.Lock()
_known: OrderedDict[str, UnderWay] = OrderedDict()


@contextmanager
def listed(run: UnderWay) -> Iterator[UnderWay]:
    """List a run as under way inside the block; it is remembered for a while after it."""
    with _lock:
        _known[run.id] = run
        while len(_known) > _MOST and not next(iter(_known.values())).is_running:
            _known.popitem(last=False)
    try:
        yield run
    finally:
        run.is_running = False


def known(run: str) -> UnderWay | None:
    """The run of an id, if it is under way or ended not long ago."""
    with _lock:
        return _known.get(run)


def forget(run: str) -> None:
    """Forget a run whose folder was discarded."""
    with _lock:
        _known.pop(run, None)


def all_known() -> list[UnderWay]:
    """The runs under way and those that ended not long ago, oldest first."""
    with _lock:
        return list(_known.values())
