"""The world that the small base model knows: shapes, colours, backgrounds, textures, styles, and captions for them.

Everything is drawn by rule from a seed, so the training set is not shipped. Some pairs of shape and colour are held
out: no training picture shows them, and the evaluation asks for them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 128  # pixels of a picture
_OVER = 4  # drawn this many times larger, then shrunk, for smooth edges

Color = tuple[int, int, int]
Point = tuple[float, float]

COLORS: dict[str, Color] = {
    "red": (222, 48, 48),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (52, 165, 72),
    "blue": (44, 104, 226),
    "purple": (138, 62, 186),
    "pink": (246, 126, 178),
    "brown": (138, 84, 44),
    "black": (26, 26, 30),
    "white": (248, 248, 246),
}
BACKGROUNDS: dict[str, Color] = {
    "white": (250, 250, 250),
    "gray": (150, 152, 156),
    "navy": (24, 34, 84),
    "cream": (248, 232, 200),
    "mint": (176, 232, 206),
    "lavender": (206, 192, 240),
    "sky": (158, 208, 246),
    "charcoal": (54, 56, 62),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
TEXTURES = ("plain", "striped", "dotted")
STYLES = ("flat", "outlined", "shaded")
SIZES = {"small": 0.17, "medium": 0.27, "large": 0.38}  # half the object's extent, of the picture's side
PLACES: dict[str, Point] = {
    "center": (0.5, 0.5),
    "left": (0.31, 0.5),
    "right": (0.69, 0.5),
    "top": (0.5, 0.31),
    "bottom": (0.5, 0.69),
}

# Each shape is held out once and seen in nine other colours, each of eight colours once and seen in seven other shapes.
HELD_OUT = frozenset(
    {
        ("circle", "purple"), ("square", "orange"), ("triangle", "pink"), ("star", "green"),
        ("ring", "red"), ("cross", "yellow"), ("heart", "blue"), ("diamond", "brown"),
    }  # fmt: skip
)
# Never drawn: the object would vanish in its background.
_TOO_ALIKE = {("white", "white"), ("white", "cream"), ("black", "charcoal"), ("black", "navy")}


@dataclass(frozen=True)
class Thing:
    """One object; middle and extent are fractions of the picture's side."""

    shape: str
    color: str
    size: str = "medium"
    place: str = "center"
    texture: str = "plain"
    style: str = "flat"
    middle: Point = (0.5, 0.5)
    extent: float = 0.27
    turn: float = 0.0  # degrees


@dataclass(frozen=True)
class Scene:
    """A picture to draw: one thing, or two in a relation, on a background."""

    things: tuple[Thing, ...]
    background: str
    relation: str = ""  # "left of", "right of", "above", "below": the first thing to the second


def random_scene(rng: random.Random, *, held_out: bool = False, plain: bool = False) -> Scene:
    """Draw a random scene.

    Args:
        rng: The random generator.
        held_out: Use only held-out pairs of shape and colour, otherwise none.
        plain: One thing in the middle without texture, style or place, as in the evaluation.
    """
    while True:
        scene = _lot(rng, plain)
        pairs = [(thing.shape, thing.color) in HELD_OUT for thing in scene.things]
        visible = all((thing.color, scene.background) not in _TOO_ALIKE for thing in scene.things)
        if visible and (all(pairs) if held_out else not any(pairs)):
            return scene


def readable_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Draw a scene that the reader can read: one flat thing in one colour, of any size and place."""
    while True:
        scene = random_scene(rng, held_out=held_out)
        if not scene.relation and scene.things[0].texture == "plain" and scene.things[0].style == "flat":
            return scene


def related_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Draw a scene of two things in a relation."""
    while True:
        scene = random_scene(rng, held_out=held_out)
        if scene.relation:
            return scene


def decorated_scene(rng: random.Random) -> Scene:
    """Draw a scene of one thing with a texture, in a drawing style, or both."""
    while True:
        scene = random_scene(rng)
        if not scene.relation and (scene.things[0].texture != "plain" or scene.things[0].style != "flat"):
            return scene


def _lot(rng: random.Random, plain: bool) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    if plain:
        return Scene((Thing(rng.choice(SHAPES), rng.choice(list(COLORS))),), background)
    if rng.random() < 0.2:
        relation = rng.choice(("left of", "right of", "above", "below"))
        first, second = (Thing(rng.choice(SHAPES), rng.choice(list(COLORS)), "small") for _ in range(2))
        return Scene((first, second), background, relation)
    thing = Thing(
        rng.choice(SHAPES),
        rng.choice(list(COLORS)),
        rng.choices(list(SIZES), (1, 3, 2))[0],
        rng.choices(list(PLACES), (8, 1, 1, 1, 1))[0],
        rng.choices(TEXTURES, (6, 1, 1))[0],
        rng.choices(STYLES, (6, 1, 1))[0],
    )
    if thing.size == "large" and thing.place != "center":
        thing = replace(thing, size="medium")
    return Scene((thing,), background)


def placed(scene: Scene, rng: random.Random) -> Scene:
    """Fix what a caption leaves open: exact place, exact size, rotation."""
    things = []
    for number, thing in enumerate(scene.things):
        x, y = PLACES[thing.place]
        if scene.relation:
            sign = -1 if (scene.relation in ("left of", "above")) == (number == 0) else 1
            x, y = (0.5 + 0.23 * sign, 0.5) if "of" in scene.relation else (0.5, 0.5 + 0.23 * sign)
        extent = SIZES[thing.size] * rng.uniform(0.92, 1.08)
        middle = (x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03))
        things.append(replace(thing, middle=middle, extent=extent, turn=rng.uniform(-8, 8)))
    return replace(scene, things=tuple(things))


# -- captions ------------------------------------------------------------------------------------


def _noun(thing: Thing) -> str:
    words = [thing.size if thing.size != "medium" else "", thing.style if thing.style != "flat" else ""]
    words += [thing.texture if thing.texture != "plain" else "", thing.color, thing.shape]
    return " ".join(word for word in words if word)


def article(words: str) -> str:
    """Words with their indefinite article."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def sentence(scene: Scene) -> str:
    """A caption as a person would write it."""
    on = f"on {article(f'{scene.background} background')}"
    if scene.relation:
        first, second = (article(f"{thing.color} {thing.shape}") for thing in scene.things)
        return f"{first} {scene.relation} {second} {on}"
    (thing,) = scene.things
    where = {"center": "", "left": " on the left", "right": " on the right", "top": " at the top"}.get(
        thing.place, " at the bottom"
    )
    return f"{article(_noun(thing))}{where} {on}"


def tags(scene: Scene) -> str:
    """A caption as a tagger would write it."""
    if scene.relation:
        first, second = (f"{thing.color} {thing.shape}" for thing in scene.things)
        return f"{first}, {second}, {first} {scene.relation} {second}, {scene.background} background"
    (thing,) = scene.things
    parts = [f"{thing.color} {thing.shape}", thing.size if thing.size != "medium" else ""]
    parts += [thing.texture if thing.texture != "plain" else "", thing.style if thing.style != "flat" else ""]
    parts += [thing.place if thing.place != "center" else "", f"{scene.background} background"]
    return ", ".join(part for part in parts if part)


# -- drawing -------------------------------------------------------------------------------------


def outline(shape: str) -> list[Point]:
    """The corners of a shape inside the square from -1 to 1; a circle has many."""
    if shape in ("circle", "ring"):
        return [(math.cos(t * math.pi / 48), math.sin(t * math.pi / 48)) for t in range(96)]
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0, -0.95), (0.98, 0.78), (-0.98, 0.78)]
    if shape == "diamond":
        return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
    if shape == "star":
        points = []
        for spike in range(10):
            radius, angle = (1.02, 0.44)[spike % 2], -math.pi / 2 + spike * math.pi / 5
            points.append((radius * math.cos(angle), radius * math.sin(angle) + 0.06))
        return points
    if shape == "cross":
        w = 0.34
        arm = [(-w, -w), (-w, -1), (w, -1)]  # turned by a quarter three times
        return [point for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1)) for point in (
            (a * x - b * y, a * y + b * x) for a, b in arm)]
    if shape == "heart":
        curve = []
        for step in range(96):
            t = step * math.pi / 48
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            curve.append((x / 16.5, -(y + 2.5) / 15.5))
        return curve
    raise ValueError(shape)


def shape_mask(thing: Thing, side: int) -> Image.Image:
    """The thing's silhouette, L, `side` × `side`."""
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon(_corners(thing, side, 1.0), fill=255)
    if thing.shape == "ring":
        draw.polygon(_corners(thing, side, 0.56), fill=0)
    return mask


def _corners(thing: Thing, side: int, scale: float) -> list[Point]:
    angle = math.radians(thing.turn)
    cos, sin, extent = math.cos(angle), math.sin(angle), thing.extent * scale
    return [
        (
            (thing.middle[0] + extent * (x * cos - y * sin)) * side,
            (thing.middle[1] + extent * (x * sin + y * cos)) * side,
        )
        for x, y in outline(thing.shape)
    ]


def shade(color: Color, by: float) -> Color:
    """A colour lighter (by > 0) or darker (by < 0), -1 to 1."""
    target = 255 if by > 0 else 0
    red, green, blue = (round(part + (target - part) * abs(by)) for part in color)
    return red, green, blue


def draw_scene(scene: Scene, side: int = SIDE) -> Image.Image:
    """Draw a scene whose things have been placed; RGB, `side` × `side`."""
    large = side * _OVER
    background = BACKGROUNDS[scene.background]
    picture = Image.new("RGB", (large, large), background)
    for thing in scene.things:
        _draw_thing(picture, thing, background)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _draw_thing(picture: Image.Image, thing: Thing, background: Color) -> None:
    side = picture.width
    mask = shape_mask(thing, side)
    color = COLORS[thing.color]
    fill = Image.new("RGB", picture.size, color)
    if thing.texture != "plain":
        accent = shade(color, -0.45 if sum(color) > 330 else 0.5)
        fill.paste(accent, mask=_pattern(thing, side))
    if thing.style == "shaded":
        shadow = ImageChops.offset(mask, round(side * 0.02), round(side * 0.03)).filter(
            ImageFilter.GaussianBlur(side * 0.015)
        )
        picture.paste(shade(background, -0.45), mask=shadow.point(lambda v: v * 0.7))
        ramp = Image.linear_gradient("L").resize(picture.size)
        fill = Image.composite(Image.blend(fill, Image.new("RGB", fill.size, shade(color, -0.6)), 0.5), fill, ramp)
    picture.paste(fill, mask=mask)
    if thing.style == "outlined":
        line = (20, 20, 24) if sum(background) > 330 else (245, 245, 245)
        width = round(side * 0.028)
        draw = ImageDraw.Draw(picture)
        for scale in (1.0, 0.56) if thing.shape == "ring" else (1.0,):
            corners = _corners(thing, side, scale)
            draw.line([*corners, corners[0], corners[1]], fill=line, width=width, joint="curve")


def _pattern(thing: Thing, side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    step = side // 12
    if thing.texture == "striped":
        for at in range(-side, side * 2, step):
            slant = at + side * 0.5
            draw.polygon([(at, 0), (at + step * 0.5, 0), (slant + step * 0.5, side), (slant, side)], 255)
    else:
        for row, y in enumerate(range(0, side, round(step * 0.8))):
            for x in range((row % 2) * step // 2, side, step):
                radius = step * 0.24
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask
