"""What the base model is shown: scenes of shapes and figures made of parts, each with its two captions."""

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
    """Something to draw, again and again: what its captions leave open is different each time.

    Attributes:
        sentence: Its caption as a person would write it.
        tags: Its caption as a tagger would write it.
        draw: Draws it; what is left open comes from what it is given.
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
    """Draw pictures of one thing each with captions, as the base has seen them: what a LoRA shall not spoil.

    Two of three are shapes, the third is a figure. Of shapes, colours and backgrounds each is there about as often as
    the next: by lot alone, one of eight shapes was missing from sixty pictures.
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
    """What of a scene of one thing is to be there as often as the next, behind what it is."""
    thing = scene.things[0]
    return [("shape", thing.shape), ("color", thing.color), ("background", scene.background)]
