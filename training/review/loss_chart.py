"""One picture of how a run went: its loss raw and smoothed, learning rate, held-out loss, and what was saved when."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ..settings import Settings, knob
from . import palette
from .palette import Color

Points = list[tuple[float, float]]

_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 84, 32, 52  # of the plot; title and legend come on top
_TITLE = 44
_LEAST = 100  # pixels of the plot's height; rows of the legend that would take them are left out
_SMALL, _ROW = 13, 22  # size of letters, height of a row of the legend
_FINE = 2  # lines are drawn this many times as large and scaled down, so that they are smooth
_MOST_MARKS = 60  # epochs; more would hide the curve
_OUTLIERS = 0.01  # share of the raw losses at each end that may lie outside of the plot
_FAINT: Color = (68, 91, 112)
_CONCEPTS: tuple[Color, ...] = (
    (126, 206, 130), (196, 152, 240), (240, 140, 190), (96, 204, 196), (214, 176, 120), (160, 170, 250),
)  # fmt: skip


@dataclass(frozen=True)
class ChartSettings(Settings):
    """How a chart is drawn."""

    log_scale: bool = knob(False, "Logarithmic scale of the loss.")
    smoothing: float = knob(
        0.95, "Weight of the past in the smoothed line. 0 smooths nothing; use up to 0.99 for long runs.",
        min=0.0, max=0.999, step=0.01,
    )
    width: int = knob(1200, "Width in pixels.", min=480, max=4096)
    height: int = knob(600, "Height in pixels.", min=320, max=4096)


@dataclass(frozen=True)
class _Line:
    """A line or a kind of mark, with its name in the legend."""

    name: str
    color: Color
    points: Points
    width: int = 2
    dash: int = 0  # length of a dash in pixels; 0: a whole line
    dots: bool = False
    scales: bool = True  # whether all of it must be seen


def loss_chart(told: Mapping[str, Any], settings: ChartSettings = ChartSettings(), title: str = "") -> Image.Image:
    """Draw a run.

    Args:
        told: Its `curve` (columns `step`, `loss`, `rate`, `concepts`) and the other `lines` of its log.
        settings: How to draw it.
        title: What stands above it.

    Returns:
        An RGB picture of the size in the settings.
    """
    curve, weight = told["curve"], settings.smoothing
    raw = _finite(curve["step"], curve["loss"])
    if weight:
        lines = [_Line("loss", _FAINT, raw, 1, scales=False)]
        lines.append(_Line("smoothed", palette.BLUE, smoothed(raw, weight, _counts(curve, curve["count"])), 3))
    else:
        lines = [_Line("loss", palette.BLUE, raw, 3, scales=False)]
    measured = [line for line in told["lines"] if line["kind"] == "held_out"]
    held = list(dict.fromkeys(name for line in measured for name in line.get("concepts", ())))
    colors = dict(zip(dict.fromkeys([*curve["concepts"], *held]), _CONCEPTS, strict=False))
    if len(curve["concepts"]) > 1:
        for name in filter(colors.get, curve["concepts"]):
            points = _finite(curve["step"], curve["concepts"][name])
            lines.append(_Line(name, colors[name], smoothed(points, weight, _counts(curve, curve["counts"][name]))))
    if measured:
        steps = [line["step"] for line in measured]
        lines.append(_Line("held-out", palette.AMBER, _finite(steps, [line["loss"] for line in measured]), dots=True))
        base = measured[0]["base"]
        ends = [min([*steps, *curve["step"]]), max([*steps, *curve["step"]])]
        lines.append(_Line("held-out, base model", palette.AMBER, _finite(ends, [base, base]), dash=8))
        for name in filter(colors.get, held if len(held) > 1 else ()):
            losses = [line.get("concepts", {}).get(name, {}).get("loss") for line in measured]
            lines.append(_Line(f"held-out, {name}", colors[name], _finite(steps, losses), dash=4, dots=True))
    rates = _Line("learning rate", palette.QUIET, _finite(curve["step"], curve["rate"]), 1)
    if not any(rate for _, rate in rates.points):
        rates = _Line("", palette.QUIET, [])
    marks = {
        kind: sorted({line["step"] for line in told["lines"] if line["kind"] == kind})
        for kind in ("epoch", "checkpoint", "sample")
    }
    lines = [line for line in lines if line.points]
    return _Chart(settings, title, lines, rates, marks).draw()


def smoothed(points: Points, weight: float, counts: Mapping[float, int]) -> Points:
    """The exponential moving average of a line, without the pull towards zero at its start (Kingma & Ba 2014, 3).

    Args:
        points: Means of some steps each, by the last of them.
        weight: Weight of the past at each step, 0 to below 1.
        counts: How many steps each point is the mean of.
    """
    found, mean, share = [], 0.0, 0.0
    for step, value in points:
        kept = weight ** counts[step]
        mean = kept * mean + (1 - kept) * value
        share = kept * share + (1 - kept)
        found.append((step, mean / share))
    return found


def _counts(curve: Mapping[str, Any], counts: Sequence[int]) -> dict[float, int]:
    return dict(zip(curve["step"], counts, strict=True))


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many round numbers between two, 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    apart = next(power * step for step in (1, 2, 5, 10, 20) if (high - low) / (power * step) <= most - 1)
    return [number * apart for number in range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, with their doubles and fives if there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [10.0**power * step for power in powers for step in (1, 2, 5)]
    within = [value for value in every if low <= value <= high]
    few = len(powers) <= 4
    return within if few else [value for value in within if math.isclose(math.log10(value) % 1, 0, abs_tol=1e-9)]


def _finite(steps: Sequence[float], values: Sequence[float | None]) -> Points:
    pairs = zip(steps, values, strict=True)
    return [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]


class _Chart:
    """One chart, laid out.

    Args:
        settings: How to draw it.
        title: What stands above it.
        lines: On the scale of the loss.
        rates: On the scale at the right; may have no points.
        marks: Steps of each kind of mark.
    """

    def __init__(
        self, settings: ChartSettings, title: str, lines: list[_Line], rates: _Line, marks: dict[str, list[int]]
    ) -> None:
        if settings.log_scale:
            above = [(line, [(x, y) for x, y in line.points if y > 0]) for line in lines]
            lines = [_Line(**{**vars(line), "points": points}) for line, points in above if points]
        self.settings, self.title, self.lines, self.rates, self.marks = settings, title, lines, rates, marks
        width, height = settings.width, settings.height
        self.above = _TITLE if title else 0
        self.legend = self._legend()[: (height - self.above - _TOP - _BOTTOM - _LEAST) // _ROW]
        self.box = (_LEFT, self.above + _TOP + _ROW * len(self.legend), width - _RIGHT, height - _BOTTOM)
        every = [step for line in (*lines, rates) for step, _ in line.points]
        low, high = min(every, default=0), max(every, default=1)
        room = (high - low) * 0.01 or 0.5  # so that marks at the ends are whole
        self.x_range = (low - room, high + room)
        self.y_range = self._loss_range()
        self.rate_range = (0.0, 1.05 * max((rate for _, rate in rates.points), default=1.0) or 1.0)

    def _loss_range(self) -> tuple[float, float]:
        """What is seen of the loss: all of every line but a few outliers of the raw one."""
        values: list[float] = []
        for line in self.lines:
            found = sorted(value for _, value in line.points)
            cut = 0 if line.scales else int(len(found) * _OUTLIERS)
            values += found[cut : len(found) - cut]
        if not values:
            return 0.0, 1.0
        low, high = min(values), max(values)
        if self.settings.log_scale:
            room = max((high / low) ** 0.05, 1.05)
            return low / room, high * room
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return (max(low - room, 0.0) if low >= 0 else low - room), high + room

    def draw(self) -> Image.Image:
        """Draw all of it."""
        sheet = Image.new("RGB", (self.settings.width, self.settings.height), palette.GROUND)
        draw = ImageDraw.Draw(sheet)
        name = palette.elided(palette.printable(self.title), 22, self.settings.width - 2 * 32)
        draw.text((32, 34), name, palette.TEXT, palette.font(22), anchor="lm")
        left, top, right, bottom = self.box
        if not self.lines:
            draw.rectangle(self.box, palette.WELL)
            draw.text(
                ((left + right) / 2, (top + bottom) / 2), "No step was trained.", palette.QUIET, palette.font(16),
                anchor="mm",
            )  # fmt: skip
            return sheet
        self._draw_legend(draw)
        self._draw_axes(draw)
        sheet.paste(self._plot(), (left, top))
        return sheet

    # -- places ------------------------------------------------------------------------------

    def _x(self, step: float) -> float:
        """Where a step lies, in pixels from the plot's left edge."""
        low, high = self.x_range
        wide = self.box[2] - self.box[0] - 1
        return (step - low) / (high - low) * wide

    def _y(self, value: float) -> float:
        """Where a loss lies, in pixels from the plot's upper edge."""
        low, high = self.y_range
        if self.settings.log_scale:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (high - value) / (high - low) * (self.box[3] - self.box[1] - 1)

    def _rate_y(self, rate: float) -> float:
        low, high = self.rate_range
        return (high - rate) / (high - low) * (self.box[3] - self.box[1] - 1)

    @property
    def _loss_ticks(self) -> list[float]:
        low, high = self.y_range
        found = log_ticks(low, high) if self.settings.log_scale else []
        return found if len(found) > 3 else ticks(low, high, max(3, (self.box[3] - self.box[1]) // 50))

    @property
    def _step_ticks(self) -> list[float]:
        found = ticks(*self.x_range, max(3, (self.box[2] - self.box[0]) // 110))
        return [step for step in found if step >= 0 and abs(step - round(step)) < 1e-6]

    # -- parts -------------------------------------------------------------------------------

    def _plot(self) -> Image.Image:
        """Draw what lies between the axes, in fine and then scaled down."""
        left, top, right, bottom = self.box
        size = right - left, bottom - top
        plot = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), palette.WELL)
        draw = ImageDraw.Draw(plot)

        def place(x: float, y: float) -> tuple[float, float]:
            # A line far outside the plot would cost time and is cut off anyway.
            return (x + 0.5) * _FINE, (min(max(y, -size[1]), 2 * size[1]) + 0.5) * _FINE

        for value in self._loss_ticks:
            draw.line([place(0, self._y(value)), place(size[0], self._y(value))], (56, 59, 64), _FINE)
        epochs = self.marks["epoch"]
        for step in epochs[:: math.ceil(len(epochs) / _MOST_MARKS) or 1]:
            draw.line([place(self._x(step), 0), place(self._x(step), size[1])], (62, 65, 72), _FINE)
        rates = [place(self._x(step), self._rate_y(rate)) for step, rate in self.rates.points]
        _draw_line(draw, rates, palette.QUIET, _FINE, 3 * _FINE)
        for line in self.lines:
            points = [place(self._x(step), self._y(value)) for step, value in line.points]
            _draw_line(draw, points, line.color, line.width * _FINE, line.dash * _FINE)
            if line.dots or len(points) == 1:
                for x, y in points:
                    draw.ellipse((x - 4 * _FINE, y - 4 * _FINE, x + 4 * _FINE, y + 4 * _FINE), line.color)
        for kind, (height, color, mark) in _MARKS.items():
            for step in self.marks[kind]:
                mark(draw, place(self._x(step), height), 5 * _FINE, color)
        return plot.resize(size, Image.Resampling.BOX)

    def _draw_axes(self, draw: ImageDraw.ImageDraw) -> None:
        font = palette.font(_SMALL)
        left, top, right, bottom = self.box
        for value in self._loss_ticks:
            draw.text((left - 10, top + self._y(value)), f"{value:.4g}", palette.QUIET, font, anchor="rm")
        draw.text((left - 10, top - 14), "loss", palette.QUIET, font, anchor="rm")
        for step in self._step_ticks:
            place = left + self._x(step)
            draw.line((place, bottom, place, bottom + 4), palette.LINE)
            draw.text((place, bottom + 8), f"{step:,.0f}", palette.QUIET, font, anchor="mt")
        draw.text(((left + right) / 2, bottom + 28), "step", palette.QUIET, font, anchor="mt")
        if self.rates.points:
            for value in ticks(*self.rate_range, 6):
                draw.text((right + 10, top + self._rate_y(value)), f"{value:.3g}", palette.QUIET, font, anchor="lm")
            draw.text((right + 10, top - 14), "rate", palette.QUIET, font, anchor="lm")

    def _legend(self) -> list[list[tuple[str, Color, str]]]:
        """The rows of the legend: of each entry its name, its colour and what stands before it."""
        entries = [(line.name, line.color, "dashes" if line.dash else "line") for line in self.lines]
        if self.rates.points:
            entries.append((self.rates.name, palette.QUIET, "dashes"))
        entries += [(kind, color, kind) for kind, (_, color, _) in _MARKS.items() if self.marks[kind]]
        if self.marks["epoch"]:
            entries.append(("epoch", palette.LINE, "epoch"))
        rows: list[list[tuple[str, Color, str]]] = [[]]
        left = 0.0
        for name, color, kind in entries:
            name = palette.elided(palette.printable(name, "concept"), _SMALL, 220)
            wide = _entry_width(name)
            if rows[-1] and left + wide > self.settings.width - 2 * 32:
                rows.append([])
                left = 0.0
            rows[-1].append((name, color, kind))
            left += wide
        return rows

    def _draw_legend(self, draw: ImageDraw.ImageDraw) -> None:
        """Say what each line and mark is."""
        for number, row in enumerate(self.legend):
            left, middle = 32.0, self.above + 18 + number * _ROW
            for name, color, kind in row:
                if kind in _MARKS:
                    _MARKS[kind][2](draw, (left + 9, middle), 5, color)
                elif kind == "epoch":
                    draw.line((left + 9, middle - 7, left + 9, middle + 7), color)
                else:
                    _draw_line(draw, [(left, middle), (left + 18, middle)], color, 3, 5 if kind == "dashes" else 0)
                draw.text((left + 25, middle), name, palette.QUIET, palette.font(_SMALL), anchor="lm")
                left += _entry_width(name)


def _entry_width(name: str) -> float:
    return float(palette.font(_SMALL).getlength(name)) + 25 + 18


def _draw_line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], color: Color, width: int, dash: int
) -> None:
    """Draw a line through points, whole or in dashes."""
    if len(points) < 2:
        return
    if not dash:
        draw.line(points, color, width, joint="curve")
        return
    gone = 0.0  # pixels along the line
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        length = math.hypot(x1 - x0, y1 - y0)
        at = 0.0
        while at < length:
            end = min(length, (math.floor((gone + at) / dash + 1e-9) + 1) * dash - gone)
            if math.floor((gone + at) / dash + 1e-9) % 2 == 0:
                ends = [(x0 + (x1 - x0) * part / length, y0 + (y1 - y0) * part / length) for part in (at, end)]
                draw.line(ends, color, width)
            at = max(end, at + 0.5)
        gone += length


def _triangle(draw: ImageDraw.ImageDraw, place: tuple[float, float], size: float, color: Color) -> None:
    x, y = place
    draw.polygon([(x - size, y - size), (x + size, y - size), (x, y + size)], color)


def _diamond(draw: ImageDraw.ImageDraw, place: tuple[float, float], size: float, color: Color) -> None:
    x, y = place
    draw.polygon([(x - size, y), (x, y - size), (x + size, y), (x, y + size)], color)


_Mark = Callable[[ImageDraw.ImageDraw, tuple[float, float], float, Color], None]
# How far from the upper edge each kind of mark stands, its colour and its shape.
_MARKS: dict[str, tuple[int, Color, _Mark]] = {
    "checkpoint": (8, palette.RED, _triangle), "sample": (22, palette.TEXT, _diamond),
}  # fmt: skip
