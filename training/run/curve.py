"""The curve of a run: its loss and learning rate over the steps, thinned to what a chart can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 2000  # points; a chart is narrower


class Curve:
    """Points of a run, each the mean of as many steps as keep their number below `MOST`."""

    def __init__(self) -> None:
        self.stride = 1
        self._points: list[_Point] = []

    def add(self, step: int, loss: float, rate: float, concepts: Mapping[str, float]) -> None:
        """Add a step; steps come in order, and a step that comes again replaces what was after it.

        Args:
            step: Its number, from 1.
            loss: Its mean loss.
            rate: Its learning rate.
            concepts: Mean loss by concept.
        """
        while self._points and self._points[-1].step >= step:
            self._points.pop()
        if self._points and self._points[-1].count < self.stride:
            self._points[-1].take(step, loss, rate, concepts)
            return
        self._points.append(_Point(step, loss, rate, concepts))
        if len(self._points) > MOST:
            self.stride *= 2
            pairs = zip(self._points[::2], self._points[1::2], strict=False)
            odd = self._points[-1:] if len(self._points) % 2 else []
            self._points = [one.joined(other) for one, other in pairs] + odd

    def columns(self) -> dict[str, Any]:
        """The points as columns of one length.

        `step` is the last of a point's steps and `count` their number, `loss` their mean, `rate` the last. By name,
        `concepts` holds means, None where none was, and `counts` the number of steps with that concept.
        """
        names = dict.fromkeys(name for point in self._points for name in point.concepts)
        return {
            "stride": self.stride,
            "step": [point.step for point in self._points],
            "loss": [point.loss / point.count for point in self._points],
            "rate": [point.rate for point in self._points],
            "count": [point.count for point in self._points],
            "concepts": {name: [point.concept(name) for point in self._points] for name in names},
            "counts": {name: [point.concepts.get(name, (0.0, 0))[1] for point in self._points] for name in names},
        }


class _Point:
    def __init__(self, step: int, loss: float, rate: float, concepts: Mapping[str, float]) -> None:
        self.step, self.loss, self.rate, self.count = step, loss, rate, 1
        self.concepts = {name: (value, 1) for name, value in concepts.items()}

    def take(self, step: int, loss: float, rate: float, concepts: Mapping[str, float]) -> None:
        self._join(step, loss, rate, 1, {name: (value, 1) for name, value in concepts.items()})

    def joined(self, other: _Point) -> _Point:
        self._join(other.step, other.loss, other.rate, other.count, other.concepts)
        return self

    def _join(self, step: int, loss: float, rate: float, count: int, concepts: dict[str, tuple[float, int]]) -> None:
        self.step, self.rate = step, rate
        self.loss += loss
        self.count += count
        for name, (total, number) in concepts.items():
            had, of = self.concepts.get(name, (0.0, 0))
            self.concepts[name] = had + total, of + number

    def concept(self, name: str) -> float | None:
        total, number = self.concepts.get(name, (0.0, 0))
        return total / number if number else None
