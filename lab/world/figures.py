"""Figures made of parts that the base model knows: bodies with eyes, limbs and horns, in scarves and hats.

A large model has seen many characters before it learns one more. So has this one: it knows figures, but none of those
that a LoRA learns (`concepts.py`).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .world import BACKGROUNDS, COLORS, SIDE, Color, Point, article, shade

_OVER = 4
INK: Color = (32, 30, 44)
WHITE: Color = (255, 255, 255)

TOPS = ("antennae", "horns", "ears", "a crest")
WORN = ("scarf", "hat", "bow")
_VISIBLE = 100  # least difference of two colours that touch, the sum over red, green and blue


@dataclass(frozen=True)
class Pose:
    """The differences between pictures of one figure.

    Attributes:
        background: One of BACKGROUNDS.
        wears: The worn colour, one of COLORS.
        middle: Its place, as fractions of the picture's side.
        size: Its height as a fraction of the picture's side.
        lean: Its tilt in degrees.
        wave: How high its arms (or fins) are, -1 to 1.
        gaze: The direction of its eyes, -1 (left) to 1 (right).
    """

    background: str
    wears: str
    middle: Point = (0.5, 0.53)
    size: float = 0.78
    lean: float = 0.0
    wave: float = 0.0
    gaze: float = 0.0


def random_pose(rng: random.Random, background: str, wears: str) -> Pose:
    """Draw a random pose."""
    return Pose(
        background,
        wears,
        middle=(0.5 + rng.uniform(-0.06, 0.06), 0.53 + rng.uniform(-0.03, 0.03)),
        size=rng.uniform(0.7, 0.86),
        lean=rng.uniform(-14, 14),
        wave=rng.uniform(-1, 1),
        gaze=rng.uniform(-1, 1),
    )


class Pen:
    """Draws in a figure's own units: x from -1 (left) to 1, y from -1 (top) to 1, leaning with it."""

    def __init__(self, pose: Pose) -> None:
        self.side = SIDE * _OVER
        self.picture = Image.new("RGB", (self.side, self.side), BACKGROUNDS[pose.background])
        self.draw = ImageDraw.Draw(self.picture)
        self.pose = pose
        self.unit = pose.size * self.side / 2
        self.line = self.unit / 20

    def at(self, x: float, y: float) -> Point:
        """Where a point of the figure lies in the picture, in pixels."""
        angle = math.radians(self.pose.lean)
        x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        return self.pose.middle[0] * self.side + x * self.unit, self.pose.middle[1] * self.side + y * self.unit

    def oval(self, x: float, y: float, w: float, h: float, fill: Color, power: float = 2.0) -> None:
        """An ellipse around (x, y) with half axes w and h; a higher `power` makes it a box with round corners."""

        def bent(part: float) -> float:
            return math.copysign(abs(part) ** (2 / power), part)

        turns = [t * math.pi / 32 for t in range(64)]
        self.polygon([(x + w * bent(math.cos(t)), y + h * bent(math.sin(t))) for t in turns], fill)

    def polygon(self, corners: list[Point], fill: Color) -> None:
        """A filled outline."""
        self.draw.polygon([self.at(*corner) for corner in corners], fill=fill)

    def stroke(self, corners: list[Point], color: Color, width: float) -> None:
        """A line with round ends, `width` in twentieths of half the height."""
        points = [self.at(*corner) for corner in corners]
        wide = max(1, round(self.line * width))
        self.draw.line(points, fill=color, width=wide, joint="curve")
        for x, y in (points[0], points[-1]):
            self.draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=color)

    def done(self) -> Image.Image:
        """The picture at its final size."""
        return self.picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Figure:
    """The captioned properties of a figure; all others are random.

    Attributes:
        color: Of its body, one of COLORS; any colour if empty.
        top: The thing on its head, one of TOPS or empty.
        worn: The thing it wears, one of WORN or empty.
        wears: Its colour, one of COLORS.
        background: One of BACKGROUNDS.
    """

    color: str
    top: str
    worn: str
    wears: str
    background: str

    @property
    def sentence(self) -> str:
        """A caption as a person would write it."""
        parts = [article(f"{self.color} creature".strip()), f"with {self.top}" if self.top else ""]
        parts += [f"wearing {article(f'{self.wears} {self.worn}')}" if self.worn else ""]
        return " ".join(part for part in [*parts, f"on a {self.background} background"] if part)

    @property
    def tags(self) -> str:
        """A caption as a tagger would write it."""
        parts = [f"{self.color} creature".strip(), self.top.removeprefix("a ")]
        parts += [f"{self.wears} {self.worn}" if self.worn else "", f"{self.background} background"]
        return ", ".join(part for part in parts if part)


def random_figure(rng: random.Random) -> Figure:
    """Draw a random figure whose touching colours can be told apart."""
    background = rng.choice(list(BACKGROUNDS))
    ground = BACKGROUNDS[background]
    body = rng.choice([name for name, color in COLORS.items() if _apart(color, ground)])
    apart = [name for name, color in COLORS.items() if _apart(color, ground) and _apart(color, COLORS[body])]
    return Figure(
        color=body if rng.random() < 0.7 else "",
        top=rng.choice((*TOPS, "")),
        worn=rng.choice((*WORN, "")),
        wears=rng.choice(apart),
        background=background,
    )


def _apart(one: Color, other: Color) -> bool:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) > _VISIBLE


def _any_color(rng: random.Random, *others: Color) -> Color:
    """A random colour that can be told apart from others."""
    while True:
        color = (rng.randrange(20, 250), rng.randrange(20, 250), rng.randrange(20, 250))
        if all(_apart(color, other) for other in others):
            return color


def draw_figure(figure: Figure, rng: random.Random) -> Image.Image:
    """Draw a figure; its form, limbs, face, pose and other colours come from `rng`."""
    pen = Pen(random_pose(rng, figure.background, figure.wears))
    ground, cloth = BACKGROUNDS[figure.background], COLORS[figure.wears]
    color = COLORS[figure.color] if figure.color else _any_color(rng, ground, cloth)
    accent = _any_color(rng, color, ground) if rng.random() < 0.5 else rng.choice(list(COLORS.values()))
    limbs = accent if rng.random() < 0.3 else shade(color, rng.choice((-0.35, 0.35)))
    power = rng.choice((2.0, 2.0, 2.4, 4.0))
    wide, high = rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.8)
    if rng.random() < 0.35:  # a head of its own
        body = (0.0, 0.36, wide, 0.5)
        head = (0.0, -0.28, rng.uniform(0.36, 0.55), 0.42)
    else:
        body = head = (0.0, 0.1, wide, high)
    _legs(pen, rng, wide, limbs)
    _top(pen, rng, figure.top, head, accent)
    _arms(pen, rng, body, limbs)
    pen.oval(*body, color, power)
    if rng.random() < 0.3:  # a belly
        pen.oval(0, body[1] + 0.15, body[2] * 0.6, body[3] * 0.55, shade(color, 0.5))
    if head is not body:
        pen.oval(*head, color)
    neck = head[1] + head[3] * (0.85 if head is not body else 0.4)
    if figure.worn == "scarf":
        _scarf(pen, rng, neck, (head if head is not body else body)[2], cloth)
    elif figure.worn == "bow":
        for sign in (-1, 1):
            pen.polygon([(0, neck), (0.34 * sign, neck - 0.17), (0.34 * sign, neck + 0.17)], cloth)
        pen.oval(0, neck, 0.09, 0.1, shade(cloth, -0.35))
    _face(pen, rng, head, head is body, accent)
    if figure.worn == "hat":
        crown, brim = rng.uniform(0.2, 0.34), head[1] - head[3] * 0.8
        pen.polygon([(-crown, brim), (crown, brim), (crown * 0.85, brim - 0.36), (-crown * 0.85, brim - 0.36)], cloth)
        pen.stroke([(-crown * 1.6, brim), (crown * 1.6, brim)], cloth, 3.0)
    return pen.done()


Oval = tuple[float, float, float, float]  # middle and half axes


def _legs(pen: Pen, rng: random.Random, wide: float, color: Color) -> None:
    kind, apart = rng.randrange(4), rng.uniform(0.35, 0.6) * wide
    for sign in (-1, 1):
        if kind < 2:  # feet
            pen.oval(apart * sign, 0.86, rng.uniform(0.2, 0.28), 0.14, color)
        elif kind == 2:
            pen.stroke([(apart * sign, 0.6), (apart * sign, 0.94), (apart * sign + 0.14, 0.94)], color, 2.8)


def _arms(pen: Pen, rng: random.Random, body: Oval, color: Color) -> None:
    _, y, wide, high = body
    kind = rng.randrange(4)
    reach = y - 0.4 * pen.pose.wave
    for sign in (-1, 1):
        if kind < 2:
            pen.stroke([(wide * 0.85 * sign, y + 0.1 * high), ((wide + 0.26) * sign, reach)], color, 4.4)
        elif kind == 2:  # fins
            pen.polygon([(wide * 0.7 * sign, y - 0.2), ((wide + 0.3) * sign, reach - 0.12),
                         ((wide + 0.24) * sign, reach + 0.2), (wide * 0.7 * sign, y + 0.3)], color)  # fmt: skip


def _top(pen: Pen, rng: random.Random, top: str, head: Oval, color: Color) -> None:
    _, y, wide, high = head
    crown = y - high * 0.8
    for sign in (-1, 1):
        x = wide * rng.uniform(0.45, 0.6) * sign
        if top == "antennae":
            end = (x * 1.5, crown - rng.uniform(0.22, 0.34))
            pen.stroke([(x * 0.8, crown + 0.1), (x, crown - 0.12), end], shade(color, -0.35), 2.0)
            pen.oval(*end, 0.14, 0.14, color)
        elif top == "horns":
            pen.polygon([(x - 0.14, crown + 0.14), (x + 0.14, crown + 0.14), (x * 1.4, crown - 0.34)], color)
        elif top == "ears":
            pen.oval(x, crown, 0.17, rng.uniform(0.2, 0.36), color)
    if top == "a crest":
        for lean in (-0.24, 0.0, 0.24):
            pen.polygon([(lean - 0.13, crown + 0.12), (lean + 0.13, crown + 0.12), (lean * 1.7, crown - 0.36)], color)


def _scarf(pen: Pen, rng: random.Random, y: float, wide: float, color: Color) -> None:
    w, side = wide * 0.94, rng.choice((-1, 1))
    pen.polygon([(-w, y - 0.12), (-w * 0.5, y - 0.04), (w * 0.5, y - 0.04), (w, y - 0.12), (w * 0.95, y + 0.12),
                 (w * 0.5, y + 0.22), (-w * 0.5, y + 0.22), (-w * 0.95, y + 0.12)], color)  # fmt: skip
    pen.polygon([(0.2 * side, y + 0.15), (0.46 * side, y + 0.12), (0.52 * side, y + 0.48), (0.24 * side, y + 0.5)],
                color)  # fmt: skip


def _face(pen: Pen, rng: random.Random, head: Oval, whole: bool, beak: Color) -> None:
    _, y, wide, high = head
    look = y - high * (0.35 if whole else 0.1)
    eyes = rng.choices(((0.0,), (-1.0, 1.0), (-1.0, 0.0, 1.0)), (1, 6, 1))[0]
    size = wide * {1: rng.uniform(0.35, 0.5), 2: rng.uniform(0.3, 0.45), 3: rng.uniform(0.26, 0.3)}[len(eyes)]
    for place in eyes:
        x = place * (size * 2.1 if len(eyes) == 3 else max(size * 1.05, wide * 0.42))
        pen.oval(x, look, size, size * 1.12, WHITE)
        pen.oval(x + size * 0.4 * pen.pose.gaze, look + size * 0.1, size * 0.5, size * 0.58, INK)
    mouth, below = rng.randrange(4), look + size * 1.25
    if mouth == 0:  # a tooth
        pen.polygon([(-0.1, below), (0.1, below), (0, below + 0.17)], WHITE)
    elif mouth == 1:  # a smile
        pen.stroke([(-0.18, below + 0.02), (0, below + 0.1), (0.18, below + 0.02)], INK, 1.6)
    elif mouth == 2:
        pen.polygon([(-0.15, below - 0.05), (0.15, below - 0.05), (0, below + 0.22)], beak)
