"""The base model's training subjects: scenes of shapes and figures, each with two captions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PIL import Image

from . import world
from .figures import Figure, draw_figure, random_figure


@dataclass(frozen=True)
class Subject:
    """Something to draw repeatedly: what its captions leave open differs each time.

    Attributes:
        sentence: Its caption as a person would write it.
        tags: Its caption as a tagger would write it.
        draw: Draws it; the generator decides what the captions leave open.
    """

    sentence: str
    tags: str
    draw: Callable[[random.Random], Image.Image]


def of_scene(scene: world.Scene) -> Subject:
    """One or two shapes."""
    return Subject(world.sentence(scene), world.tags(scene), lambda rng: world.draw_scene(world.placed(scene, rng)))


def of_figure(figure: Figure) -> Subject:
    """A figure made of parts."""
    return Subject(figure.sentence, figure.tags, partial(draw_figure, figure))


def known_pictures(count: int, seed: int) -> list[tuple[Image.Image, str]]:
    """Draw captioned pictures of one thing each that the base model knows: regularization pictures.

    Two of three show shapes, the third a figure. All shapes, colours and backgrounds appear about equally often: in
    sixty purely random pictures one of eight shapes was missing.
    """
    rng, found, seen = random.Random(f"known {seed}"), [], Counter[tuple[str, str]]()
    for number in range(count):
        if number % 3 == 2:
            subject = of_figure(random_figure(rng))
        else:
            lot = [_one_thing(rng) for _ in range(50)]
            scene = min(lot, key=lambda scene: sum(seen[value] for value in _values(scene)))
            seen.update(_values(scene))
            subject = of_scene(scene)
        found.append((subject.draw(rng), (subject.sentence, subject.tags)[number % 2]))
    return found


def _one_thing(rng: random.Random) -> world.Scene:
    """A scene with one thing in it."""
    while (scene := world.random_scene(rng)).relation:
        pass
    return scene


def _values(scene: world.Scene) -> list[tuple[str, str]]:
    """The values of a scene of one thing that must appear equally often, as (kind, value)."""
    thing = scene.things[0]
    return [("shape", thing.shape), ("color", thing.color), ("background", scene.background)]
