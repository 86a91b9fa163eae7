"""Characters that the base model has never seen, for the demo and the learning benchmark.

Each is drawn by rule in varied poses, sizes, places and worn colours, so a LoRA has to learn what stays the same.
Defaults are tuned on `zorp`. `quib` was evaluated while they still changed. `gub` is held out and only reported. Their
forms are bold and without outlines, because 128 pixels have no room for fine ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from . import figures
from .figures import INK, Pen, Pose
from .world import COLORS, Color, shade

TEAL: Color = (32, 168, 160)
PLUM: Color = (120, 44, 104)
MOSS: Color = (124, 140, 44)
_SPOTS: Color = (216, 226, 140)

# Teal on mint and the like is hard to see; such backgrounds are left out.
_GROUNDS = ("white", "gray", "navy", "cream", "lavender", "sky", "charcoal")
_WORN = ("red", "yellow", "orange", "purple", "pink", "white")

TRAINED = (12, 0)  # how many pictures of a concept a LoRA is trained on, and their seed


def random_pose(rng: random.Random, number: int) -> Pose:
    """Draw a random pose; backgrounds and colours take turns, so that a few pictures show all of them."""
    return figures.random_pose(rng, _GROUNDS[number % len(_GROUNDS)], _WORN[(number * 5 + 1) % len(_WORN)])


def pictures(concept: str, count: int, seed: int) -> list[tuple[Image.Image, str]]:
    """Draw `count` pictures of a concept (one of CONCEPTS), each with its caption."""
    rng = random.Random(f"{concept} {seed}")
    found = []
    for number in range(count):
        pose = random_pose(rng, number)
        found.append((CONCEPTS[concept].draw(pose), caption(concept, pose.wears, pose.background)))
    return found


def draw_zorp(pose: Pose) -> Image.Image:
    """A round teal creature with two antennae, big eyes, one tooth, and a scarf."""
    pen, dark = Pen(pose), shade(TEAL, -0.35)
    for sign in (-1, 1):
        pen.oval(0.32 * sign, 0.86, 0.27, 0.15, dark)  # feet
        pen.stroke([(0.2 * sign, -0.45), (0.3 * sign, -0.72), (0.46 * sign, -0.84)], dark, 2.0)
        pen.oval(0.46 * sign, -0.86, 0.17, 0.17, (250, 200, 40))
        reach = 0.25 - 0.45 * pose.wave * (1 if sign > 0 else 0.8)
        pen.stroke([(0.6 * sign, 0.22), (0.9 * sign, reach)], dark, 4.4)
    pen.oval(0, 0.1, 0.7, 0.78, TEAL)
    color = COLORS[pose.wears]
    pen.polygon([(-0.64, 0.34), (-0.3, 0.42), (0.3, 0.42), (0.64, 0.34), (0.6, 0.58), (0.3, 0.68), (-0.3, 0.68),
                 (-0.6, 0.58)], color)  # fmt: skip
    pen.polygon([(0.16, 0.6), (0.44, 0.58), (0.5, 0.94), (0.22, 0.96)], color)
    for sign in (-1, 1):
        pen.oval(0.3 * sign, -0.16, 0.28, 0.32, (255, 255, 255))
        pen.oval(0.3 * sign + 0.12 * pose.gaze, -0.12, 0.14, 0.17, INK)
    pen.polygon([(-0.1, 0.19), (0.1, 0.19), (0.0, 0.36)], (255, 255, 255))  # the tooth
    return pen.done()


def draw_quib(pose: Pose) -> Image.Image:
    """A plum teapot-bird: a pear body, a long beak, a crest of three feathers, striped legs, and a hat."""
    pen = Pen(pose)
    for sign in (-1, 1):
        for part in range(3):
            top = 0.5 + part * 0.15
            color = (250, 230, 120) if part % 2 else INK
            pen.stroke([(0.22 * sign, top), (0.22 * sign, top + 0.15)], color, 2.6)
        pen.stroke([(0.22 * sign, 0.96), (0.22 * sign + 0.18, 0.96)], INK, 2.6)
    pen.polygon([(-0.4, 0.05), (-1.0, -0.2 - 0.3 * pose.wave), (-0.9, 0.3 - 0.2 * pose.wave), (-0.4, 0.5)],
                shade(PLUM, -0.35))  # fmt: skip
    for lean in (-0.34, -0.16, 0.02):
        pen.polygon([(lean + 0.1, -0.35), (lean - 0.26, -0.78), (lean + 0.26, -0.5)], (120, 214, 120))
    pen.oval(-0.02, 0.22, 0.6, 0.5, PLUM)
    pen.oval(0.16, -0.3, 0.4, 0.38, PLUM)
    pen.oval(0.04, 0.34, 0.34, 0.28, (240, 214, 226))
    turn = 1 if pose.gaze >= 0 else 0.84
    pen.polygon([(0.46, -0.44), (1.06 * turn, -0.2), (0.46, -0.06)], (244, 150, 40))
    pen.oval(0.26, -0.34, 0.19, 0.19, (255, 255, 255))
    pen.oval(0.27 + 0.07 * pose.gaze, -0.33, 0.1, 0.1, INK)
    color = COLORS[pose.wears]
    pen.polygon([(-0.02, -0.6), (0.46, -0.64), (0.44, -1.02), (0.02, -0.99)], color)
    pen.stroke([(-0.16, -0.58), (0.62, -0.66)], color, 3.0)
    return pen.done()


def draw_gub(pose: Pose) -> Image.Image:
    """A mossy jellyfish: a spotted dome on four swaying arms, one big eye, and a crown."""
    pen, dark = Pen(pose), shade(MOSS, -0.35)
    for x in (-0.48, -0.16, 0.16, 0.48):
        sway = 0.14 * pose.wave
        pen.stroke([(x, 0.3), (x + sway, 0.56), (x - sway, 0.76), (x + sway, 0.94)], dark, 4.0)
    pen.oval(0, 0.0, 0.74, 0.56, MOSS, 2.6)
    for x, y, size in ((-0.52, -0.2, 0.11), (0.54, -0.14, 0.13), (-0.5, 0.22, 0.14), (0.48, 0.28, 0.1)):
        pen.oval(x, y, size, size, _SPOTS)
    pen.oval(0, -0.08, 0.32, 0.32, (255, 255, 255))
    pen.oval(0.13 * pose.gaze, -0.06, 0.16, 0.18, INK)
    pen.stroke([(-0.2, 0.36), (0, 0.42), (0.2, 0.36)], INK, 1.6)
    pen.polygon([(-0.44, -0.46), (-0.5, -0.98), (-0.22, -0.72), (0, -1.02), (0.22, -0.72), (0.5, -0.98),
                 (0.44, -0.46)], COLORS[pose.wears])  # fmt: skip
    return pen.done()


@dataclass(frozen=True)
class Concept:
    """A character to learn.

    Attributes:
        draw: Draws it in a pose.
        worn: The thing it wears.
        own: Its fixed colours.
        wears: Worn colours that differ from those: first the ones seen in training, then one that is not.
    """

    draw: Callable[[Pose], Image.Image]
    worn: str
    own: tuple[Color, ...]
    wears: tuple[str, ...]


CONCEPTS = {
    "zorp": Concept(
        draw_zorp, "scarf", (TEAL, shade(TEAL, -0.35), (250, 200, 40), (255, 255, 255), INK),
        ("red", "purple", "pink", "blue"),
    ),
    "quib": Concept(
        draw_quib, "hat",
        (PLUM, shade(PLUM, -0.35), (244, 150, 40), (240, 214, 226), (120, 214, 120), (250, 230, 120),
         (255, 255, 255), INK),
        ("red", "purple", "blue"),
    ),
    "gub": Concept(
        draw_gub, "crown", (MOSS, shade(MOSS, -0.35), _SPOTS, (255, 255, 255), INK),
        ("red", "purple", "pink", "blue"),
    ),
}  # fmt: skip


def caption(concept: str, wears: str, background: str) -> str:
    """The caption of a picture of a concept, in training and in prompts."""
    return f"{concept} wearing a {wears} {CONCEPTS[concept].worn} on a {background} background"


def plain_caption(concept: str, background: str) -> str:
    """The same without the worn thing."""
    return f"{concept} on a {background} background"


def tags(concept: str, wears: str, background: str) -> str:
    """The same as a tagger would write it."""
    return f"{concept}, {wears} {CONCEPTS[concept].worn}, {background} background"
