"""How often the reader finds in a model's pictures what the prompts ask for.

Figures, textures and drawing styles have no reader. They are painted for people to look at.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image, ImageDraw

from ..world import world
from ..world.figures import random_figure
from . import reader


def _elsewhere(rng: random.Random, *, held_out: bool = False) -> world.Scene:
    """A thing whose prompt names a size or a place: it is not both medium-sized and in the middle."""
    while True:
        scene = world.readable_scene(rng, held_out=held_out)
        if (scene.things[0].size, scene.things[0].place) != ("medium", "center"):
            return scene


# The rows: name in the card, title in README.md, how a random scene is drawn, whether its pairs are held out.
ROWS: tuple[tuple[str, str, Callable[..., world.Scene], bool], ...] = (
    ("known", "known pairs", partial(world.random_scene, plain=True), False),
    ("held_out", "held-out pairs", partial(world.random_scene, plain=True), True),
    ("elsewhere", "known pairs, size or place named", _elsewhere, False),
    ("held_out_elsewhere", "held-out pairs, size or place named", _elsewhere, True),
    ("related", "two things in a relation", world.related_scene, False),
)
PARTS = ("all", "shape", "color", "background", "stricter")
STRICTER = 0.75  # least overlap of each shape with what it is read as, for a stricter count

Shown = list[tuple[Image.Image, str, bool]]  # picture, prompt, whether it was read right


def measure(
    painter: Any, count: int, draw: Callable[..., world.Scene], held_out: bool
) -> tuple[dict[str, float], Shown]:
    """Paint pictures of one or two things each, and read them.

    Args:
        painter: A `Painter`.
        count: How many pictures.
        draw: Draws a random scene.
        held_out: Use held-out pairs of shape and colour only, instead of the others.

    Returns:
        For each of PARTS the share of pictures, 0 to 1, and the pictures.
    """
    rng = random.Random(f"evaluation {held_out}")
    scenes = [draw(rng, held_out=held_out) for _ in range(count)]
    prompts = [(world.sentence if number % 2 == 0 else world.tags)(scene) for number, scene in enumerate(scenes)]
    pictures = painter.paint(prompts, [1000 + number for number in range(count)])
    right, shown = dict.fromkeys(PARTS, 0), []
    for scene, prompt, picture in zip(scenes, prompts, pictures, strict=True):
        found = reader.read_pair(picture, scene.relation) if scene.relation else (reader.read(picture),)
        hits = {
            "shape": [reading.shape for reading in found] == [thing.shape for thing in scene.things],
            "color": [reading.color for reading in found] == [thing.color for thing in scene.things],
            "background": {reading.background for reading in found} == {scene.background},
        }
        hits["all"] = all(hits.values())
        hits["stricter"] = hits["all"] and min(reading.overlap for reading in found) >= STRICTER
        for name, hit in hits.items():
            right[name] += hit
        shown.append((picture, prompt, hits["all"]))
    return {name: hits / count for name, hits in right.items()}, shown


def paint_unread(painter: Any, what: str, count: int) -> Shown:
    """Paint what has no reader, "figures" or "decorated" things, for captions of both forms."""
    rng = random.Random(what)
    if what == "figures":
        captions = [(figure.sentence, figure.tags) for figure in (random_figure(rng) for _ in range(count))]
    else:
        scenes = [world.decorated_scene(rng) for _ in range(count)]
        captions = [(world.sentence(scene), world.tags(scene)) for scene in scenes]
    prompts = [both[number % 2] for number, both in enumerate(captions)]
    pictures = painter.paint(prompts, [2000 + number for number in range(count)])
    return [(picture, prompt, True) for picture, prompt in zip(pictures, prompts, strict=True)]


def contact_sheet(shown: Shown, columns: int = 10) -> Image.Image:
    """The pictures side by side, those read wrong with a red edge."""
    side = shown[0][0].width + 8
    sheet = Image.new("RGB", (columns * side, -(-len(shown) // columns) * side), (255, 255, 255))
    for number, (picture, _, right) in enumerate(shown):
        at = (number % columns * side + 4, number // columns * side + 4)
        if not right:
            edge = (at[0] - 3, at[1] - 3, at[0] + side - 6, at[1] + side - 6)
            ImageDraw.Draw(sheet).rectangle(edge, fill=(255, 0, 0))
        sheet.paste(picture, at)
    return sheet


def quality_table(quality: dict[str, Any]) -> str:
    """The card's shares as a table; the card also has those of the background."""
    heads = {"all": "all right", "shape": "shape", "color": "colour", "stricter": f"all right, overlap {STRICTER}"}
    lines = ["| prompts for | " + " | ".join(heads.values()) + " |", "| --- |" + " --- |" * len(heads)]
    for name, title, _, _ in ROWS:
        lines.append(f"| {title} | " + " | ".join(f"{quality[name][part]:.0%}" for part in heads) + " |")
    return "\n".join([*lines, "", f"{quality['pictures']} pictures a row; {quality['sampler']}."])
