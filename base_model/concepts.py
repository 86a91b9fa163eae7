"""Things the base model has never seen, for the demo and the learning benchmark: a character and an object.

Each is drawn by rule in varied poses, sizes, places and colours of what it wears, so that a LoRA has to learn what
stays the same. `zorp` is what defaults are tuned on; `quib` is kept out of tuning and only reported.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .world import BACKGROUNDS, COLORS, SIDE, Color, Point, shade

_OVER = 4
_INK = (32, 30, 44)
TEAL: Color = (32, 168, 160)
PLUM: Color = (120, 44, 104)


@dataclass(frozen=True)
class Pose:
    """What varies from picture to picture.

    Attributes:
        background: One of BACKGROUNDS.
        wears: Colour of what it wears, one of COLORS.
        middle: Where it stands, as shares of the picture's side.
        size: Its height as a share of the picture's side.
        lean: How far it leans, in degrees.
        wave: How high its arms (or fins) are, -1 to 1.
        gaze: Where it looks, -1 (left) to 1 (right).
    """

    background: str
    wears: str
    middle: Point = (0.5, 0.53)
    size: float = 0.78
    lean: float = 0.0
    wave: float = 0.0
    gaze: float = 0.0


# Teal on mint and the like is hard to see; such backgrounds are left out.
_GROUNDS = ("white", "gray", "navy", "cream", "lavender", "sky", "charcoal")
_WORN = ("red", "yellow", "orange", "purple", "pink", "white")


def random_pose(rng: random.Random, number: int) -> Pose:
    """Draw a pose by lot; backgrounds and colours go round, so that a few pictures show all of them."""
    return Pose(
        background=_GROUNDS[number % len(_GROUNDS)],
        wears=_WORN[(number * 5 + 1) % len(_WORN)],
        middle=(0.5 + rng.uniform(-0.06, 0.06), 0.53 + rng.uniform(-0.03, 0.03)),
        size=rng.uniform(0.7, 0.86),
        lean=rng.uniform(-14, 14),
        wave=rng.uniform(-1, 1),
        gaze=rng.uniform(-1, 1),
    )


def pictures(concept: str, count: int, seed: int) -> list[tuple[Image.Image, str]]:
    """Draw `count` pictures of a concept (`zorp` or `quib`), each with its caption."""
    rng = random.Random(f"{concept} {seed}")
    draw, worn = CONCEPTS[concept]
    found = []
    for number in range(count):
        pose = random_pose(rng, number)
        found.append((draw(pose), f"{concept} wearing a {pose.wears} {worn} on a {pose.background} background"))
    return found


class _Pen:
    """Draws in a character's own units: x from -1 (left) to 1, y from -1 (top) to 1, leaning with it."""

    def __init__(self, pose: Pose) -> None:
        self.side = SIDE * _OVER
        self.picture = Image.new("RGB", (self.side, self.side), BACKGROUNDS[pose.background])
        self.draw = ImageDraw.Draw(self.picture)
        self.pose = pose
        self.unit = pose.size * self.side / 2
        self.line = max(1, round(self.unit * 0.055))

    def at(self, x: float, y: float) -> Point:
        angle = math.radians(self.pose.lean)
        x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        return self.pose.middle[0] * self.side + x * self.unit, self.pose.middle[1] * self.side + y * self.unit

    def oval(self, x: float, y: float, w: float, h: float, fill: Color, line: bool = True) -> None:
        """An ellipse around (x, y) with half axes w and h."""
        points = [self.at(x + w * math.cos(t * math.pi / 32), y + h * math.sin(t * math.pi / 32)) for t in range(64)]
        self.shape(points, fill, line)

    def polygon(self, corners: list[Point], fill: Color, line: bool = True) -> None:
        """A filled outline."""
        self.shape([self.at(*corner) for corner in corners], fill, line)

    def shape(self, points: list[Point], fill: Color, line: bool) -> None:
        """A filled outline in pixels, inked around."""
        self.draw.polygon(points, fill=fill)
        if line:
            self.draw.line([*points, points[0], points[1]], fill=_INK, width=self.line, joint="curve")

    def stroke(self, corners: list[Point], color: Color = _INK, width: float = 1.0) -> None:
        """A line with round ends, `width` times the ink's."""
        points = [self.at(*corner) for corner in corners]
        wide = round(self.line * width)
        self.draw.line(points, fill=color, width=wide, joint="curve")
        for x, y in (points[0], points[-1]):
            self.draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=color)

    def done(self) -> Image.Image:
        """The picture at its final size."""
        return self.picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_zorp(pose: Pose) -> Image.Image:
    """A round teal creature with two antennae, big eyes, one tooth, and a scarf."""
    pen, dark = _Pen(pose), shade(TEAL, -0.25)
    for sign in (-1, 1):
        pen.oval(0.3 * sign, 0.86, 0.24, 0.13, dark)  # feet
        pen.stroke([(0.22 * sign, -0.45), (0.3 * sign, -0.75), (0.42 * sign, -0.9)])
        pen.oval(0.42 * sign, -0.92, 0.1, 0.1, (250, 200, 40))
        reach = 0.25 - 0.4 * pose.wave * (1 if sign > 0 else 0.8)
        pen.stroke([(0.6 * sign, 0.2), (0.88 * sign, reach)], _INK, 3.6)
        pen.stroke([(0.6 * sign, 0.2), (0.88 * sign, reach)], TEAL, 1.8)
    pen.oval(0, 0.12, 0.68, 0.74, TEAL)
    pen.oval(0, 0.5, 0.38, 0.3, shade(TEAL, 0.55), line=False)
    color = COLORS[pose.wears]
    pen.polygon([(-0.62, 0.26), (-0.3, 0.36), (0.3, 0.36), (0.62, 0.26), (0.6, 0.42), (0.3, 0.54), (-0.3, 0.54),
                 (-0.6, 0.42)], color)  # fmt: skip
    pen.polygon([(0.2, 0.5), (0.42, 0.46), (0.46, 0.82), (0.26, 0.84)], color)
    for sign in (-1, 1):
        pen.oval(0.26 * sign, -0.16, 0.22, 0.26, (255, 255, 255))
        pen.oval(0.26 * sign + 0.09 * pose.gaze, -0.13, 0.1, 0.13, _INK, line=False)
        pen.oval(0.26 * sign + 0.09 * pose.gaze + 0.04, -0.19, 0.035, 0.045, (255, 255, 255), line=False)
    pen.stroke([(-0.16, 0.16), (-0.08, 0.2), (0.08, 0.2), (0.16, 0.16)])
    pen.polygon([(0.01, 0.2), (0.1, 0.19), (0.06, 0.29)], (255, 255, 255))
    return pen.done()


def draw_quib(pose: Pose) -> Image.Image:
    """A plum teapot-bird: a pear body, a long beak, a crest of three feathers, striped legs, and a hat."""
    pen = _Pen(pose)
    for sign in (-1, 1):
        for part in range(4):
            top = 0.5 + part * 0.11
            color = (250, 230, 120) if part % 2 else _INK
            pen.stroke([(0.2 * sign, top), (0.2 * sign, top + 0.11)], color, 2.0)
        pen.stroke([(0.2 * sign, 0.95), (0.2 * sign + 0.16, 0.95)], _INK, 2.0)
    pen.polygon([(-0.5, 0.1), (-0.98, -0.15 - 0.3 * pose.wave), (-0.9, 0.25 - 0.2 * pose.wave), (-0.5, 0.42)],
                shade(PLUM, -0.3))  # fmt: skip
    pen.oval(-0.02, 0.22, 0.58, 0.48, PLUM)
    pen.oval(0.16, -0.32, 0.36, 0.34, PLUM)
    pen.oval(0.02, 0.34, 0.3, 0.26, (240, 214, 226), line=False)
    turn = 1 if pose.gaze >= 0 else 0.82
    pen.polygon([(0.46, -0.4), (1.0 * turn, -0.22), (0.46, -0.14)], (244, 150, 40))
    pen.oval(0.26, -0.38, 0.13, 0.13, (255, 255, 255))
    pen.oval(0.26 + 0.05 * pose.gaze, -0.37, 0.06, 0.06, _INK, line=False)
    for lean in (-0.3, -0.16, -0.02):
        pen.polygon([(lean, -0.5), (lean - 0.16, -0.74), (lean + 0.1, -0.56)], (120, 214, 120))
    color = COLORS[pose.wears]
    pen.polygon([(0.0, -0.62), (0.44, -0.66), (0.42, -0.96), (0.04, -0.93)], color)
    pen.stroke([(-0.1, -0.6), (0.56, -0.66)], _INK, 3.0)
    pen.stroke([(-0.1, -0.6), (0.56, -0.66)], color, 1.4)
    return pen.done()


CONCEPTS: dict[str, tuple[Callable[[Pose], Image.Image], str]] = {
    "zorp": (draw_zorp, "scarf"),
    "quib": (draw_quib, "hat"),
}
