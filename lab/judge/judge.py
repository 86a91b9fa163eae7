"""Judges what a LoRA has learned of a concept and what it has spoiled, without any learned model.

- Likeness: how close its pictures are to held-out pictures of the concept. The thing in a picture is cut out, scaled,
  and described by the layout of its colours (CIE Lab) and its edges (histograms of oriented gradients). Hundreds of
  drawn pictures cover the poses, so the distance to the nearest ones is what no pose explains. Likeness is 1 for fresh
  drawn pictures and 0 for the base model's, with the same prompts and noise.
- Editability: the share of pictures that show the concept and also the prompt's background, and its worn colour. Where
  a prompt names both, the training set never shows the two together. Prompts are worded as in training, with the
  background alone, and as tags. A picture shows the concept if it is a quarter of the way from the base model's
  pictures to drawn ones. It must also be further than 95 of 100 of the base's own for captions of the concept, for
  prompts like these, and for other figures. So neither a smear in the right colour counts nor a figure that is a little
  alike.
- Preservation: the share of prompts without the trigger that are read right, compared with the base's share for the
  same noise. Some wrong ones turn right: `spoiled` counts those that were right and no longer are. `drift` is the mean
  colour difference of those pictures (CIE 1976 delta E). `leaked` is the share of other figures, without the trigger,
  that turn into the concept.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.feature import hog

from ..world import concepts, figures, world
from . import reader

_REFERENCES, _FRESH = (400, 1000), (60, 2000)
# Prompts and noise for choosing settings, and others for reporting results. Series 1, 3, 5, 7 and 9 were seen while
# settings still changed, and the judge was corrected after 11. Series 13 has other noise and mostly other scenes, but
# captions from the same half.
TUNING, REPORTING = 0, 13
_NEAREST = 3
ALIKE = 48  # pictures for likeness; the noise of two dozen is as large as the difference of two settings
_SHOWN = 0.25  # likeness below which no picture shows the concept
# The wordings of the prompts for editability, in turns; the second names no colour.
WORDINGS = ("as in training", "with the background alone", "as tags")
_NOTHING = np.array([50.0, 0.0, 0.0], np.float32)  # the grey put in place of the background


@dataclass(frozen=True)
class Preserved:
    """Results for prompts without the trigger; all but `drift` are shares, 0 to 1.

    Attributes:
        kept: Prompts that are read right.
        lost: The base's share of those less this one.
        spoiled: Prompts that the base paints right and this model does not. Newly right ones are not subtracted.
        drift: Mean colour difference of those pictures to the base's.
        leaked: Other figures that show the concept, but do not with the base.
    """

    kept: float
    lost: float
    spoiled: float
    drift: float
    leaked: float


@dataclass(frozen=True)
class Judgement(Preserved):
    """Scores of a model; shares are 0 to 1.

    Attributes:
        likeness: 0 like the base model, 1 like drawn pictures of the concept.
        shown: The share of pictures that show the concept.
        worded: The same for each of WORDINGS.
        ground: Pictures that show the concept on the prompt's background.
        worn: Pictures that show the concept in the prompt's worn colour.
    """

    likeness: float
    shown: float
    worded: tuple[float, ...]
    ground: float
    worn: float


class Judge:
    """Judges models on one concept, all with the same prompts and noise.

    Args:
        painter: A `Painter`.
        concept: Which of CONCEPTS.
        count: Pictures for editability; likeness uses ALIKE.
        series: TUNING or REPORTING: which prompts and noise.
        scenes: Pictures for preservation; twice the count by default.
        kept: Captions of regularization pictures, which preservation leaves out.

    Attributes:
        least: Likeness beyond which a picture shows the concept.
    """

    def __init__(
        self,
        painter: Any,
        concept: str,
        count: int = 24,
        series: int = TUNING,
        scenes: int | None = None,
        kept: Collection[str] = (),
    ) -> None:
        scenes = 2 * count if scenes is None else scenes
        self.painter, self.concept = painter, concept
        self._gallery = _Gallery([picture for picture, _ in concepts.pictures(concept, *_REFERENCES)])
        rng = random.Random(f"{concept} {series}")
        self._alike = _new_captions(concept, ALIKE, series, rng)
        self._asked = _new_combinations(concept, count, series, rng)
        self._scenes = [_new_scene(series, kept, rng) for _ in range(scenes)]
        self._kin = [_new_figure(series, kept, rng) for _ in range(scenes // 2)]
        self._seeds = list(range(5000 * (series + 1), 5000 * (series + 1) + max(count, scenes, ALIKE)))
        self._real = self._gallery.distance([picture for picture, _ in concepts.pictures(concept, *_FRESH)])
        alike = self.painter.paint(self._alike, self._seeds[:ALIKE])
        self._base = self._gallery.distance(alike)
        self._before, kin = self._paint_scenes(None), self._paint_kin(None)
        self._was_right = self._right(self._before)
        by_itself = [[self.likeness([one]) for one in pictures] for pictures in (alike, self._paint_asked(None), kin)]
        self.least = max(_SHOWN, *(float(np.quantile(found, 0.95)) for found in by_itself if found))
        self._like_it = self._show_it(kin)

    def judge(self, model: Any) -> Judgement:
        """Sample from a MODEL and score it."""
        likeness = self.likeness(self.painter.paint(self._alike, self._seeds[:ALIKE], model))
        pictures = self._paint_asked(model)
        shown = self._show_it(pictures)
        obeyed = np.array([self._obeyed(*one) for one in zip(pictures, self._asked, strict=True)]) & shown[:, None]
        colored = [names_color(number) for number in range(len(obeyed))]
        return Judgement(
            likeness=likeness,
            shown=float(shown.mean()),
            worded=tuple(float(shown[first :: len(WORDINGS)].mean()) for first in range(len(WORDINGS))),
            ground=float(obeyed[:, 0].mean()),
            worn=float(obeyed[colored, 1].mean()),
            **asdict(self.preservation(model)),
        )

    def preservation(self, model: Any) -> Preserved:
        """Score a MODEL on prompts without the trigger."""
        after = self._paint_scenes(model)
        before, now = self._was_right, self._right(after)
        return Preserved(
            kept=float(now.mean()),
            lost=float(before.mean() - now.mean()),
            spoiled=float((before & ~now).mean()),
            drift=float(np.mean([_moved(a, b) for a, b in zip(self._before, after, strict=True)])),
            leaked=float((self._show_it(self._paint_kin(model)) & ~self._like_it).mean()),
        )

    def likeness(self, pictures: Sequence[Image.Image]) -> float:
        """Likeness of pictures to the concept: 0 for the base's pictures for such prompts, 1 for drawn ones."""
        return (self._base - self._gallery.distance(pictures)) / (self._base - self._real)

    def _show_it(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Which pictures show the concept."""
        return np.array([self.likeness([picture]) > self.least for picture in pictures])

    def _obeyed(self, picture: Image.Image, asked: tuple[str, str]) -> tuple[bool, bool]:
        """Whether a picture has the prompt's background, and its worn colour."""
        wears, ground = asked
        return reader.read(picture).background == ground, worn(picture, self.concept) == wears

    def _paint_asked(self, model: Any) -> list[Image.Image]:
        words = (concepts.caption, lambda concept, _, ground: concepts.plain_caption(concept, ground), concepts.tags)
        prompts = [words[number % len(words)](self.concept, *asked) for number, asked in enumerate(self._asked)]
        return list(self.painter.paint(prompts, self._seeds[: len(prompts)], model))

    def _paint_scenes(self, model: Any) -> list[Image.Image]:
        forms = (world.sentence, world.tags)
        prompts = [forms[number % 2](scene) for number, scene in enumerate(self._scenes)]
        return list(self.painter.paint(prompts, self._seeds[: len(prompts)], model))

    def _paint_kin(self, model: Any) -> list[Image.Image]:
        prompts = [(figure.sentence, figure.tags)[number % 2] for number, figure in enumerate(self._kin)]
        return list(self.painter.paint(prompts, self._seeds[: len(prompts)], model))

    def _right(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        hits = []
        for picture, scene in zip(pictures, self._scenes, strict=True):
            found, thing = reader.read(picture), scene.things[0]
            hits.append((found.shape, found.color, found.background) == (thing.shape, thing.color, scene.background))
        return np.array(hits)


def names_color(number: int) -> bool:
    """Whether the prompt for editability of this number names a worn colour."""
    return number % len(WORDINGS) != 1


def _new_captions(concept: str, count: int, series: int, rng: random.Random) -> list[str]:
    """Captions of held-out pictures that are in no training picture and no other series."""
    trained = {caption for _, caption in concepts.pictures(concept, *concepts.TRAINED)}
    drawn = [caption for _, caption in concepts.pictures(concept, *_FRESH)]
    fresh = [caption for caption in dict.fromkeys(drawn) if caption not in trained]
    return [rng.choice(_of_series(fresh, series)) for _ in range(count)]


def _of_series(prompts: list[Any], series: int) -> list[Any]:
    """One of two disjoint halves."""
    mixed = random.Random("series").sample(prompts, len(prompts))
    return mixed[series % 2 :: 2]


def _new_combinations(concept: str, count: int, series: int, rng: random.Random) -> list[tuple[str, str]]:
    """Pairs of worn colour and background that no training picture and no other series shows."""
    trained = {caption for _, caption in concepts.pictures(concept, *concepts.TRAINED)}
    pairs = [
        (wears, ground) for wears in concepts.CONCEPTS[concept].wears for ground in world.BACKGROUNDS
        if concepts.caption(concept, wears, ground) not in trained
    ]  # fmt: skip
    pairs = _of_series(pairs, series)
    rng.shuffle(pairs)
    return [pairs[number % len(pairs)] for number in range(count)]


def _new_scene(series: int, kept: Collection[str], rng: random.Random) -> world.Scene:
    """One that no regularization picture and no other series shows."""
    while True:
        scene = world.readable_scene(rng)
        if _is_new(world.sentence(scene), world.tags(scene), series, kept):
            return scene


def _new_figure(series: int, kept: Collection[str], rng: random.Random) -> figures.Figure:
    """One that no regularization picture and no other series shows."""
    while True:
        figure = figures.random_figure(rng)
        if _is_new(figure.sentence, figure.tags, series, kept):
            return figure


def _is_new(sentence: str, tags: str, series: int, kept: Collection[str]) -> bool:
    return zlib.crc32(sentence.encode()) % 2 == series % 2 and not {sentence, tags} & set(kept)


def worn(picture: Image.Image, concept: str) -> str:
    """The colour a concept wears: the most frequent of the possible ones, or "nothing"."""
    known = concepts.CONCEPTS[concept]
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    palette = [world.COLORS[name] for name in known.wears] + list(known.own)
    lab = reader.to_lab(pixels[reader.foreground(pixels)])
    distances = np.linalg.norm(lab[:, None] - reader.to_lab(np.array(palette, np.float32))[None], axis=-1)
    close = distances.min(axis=1) < 30
    counts = np.bincount(distances.argmin(axis=1)[close], minlength=len(palette))[: len(known.wears)]
    return known.wears[int(counts.argmax())] if counts.max() > 0.02 * max(1, len(lab)) else "nothing"


class _Gallery:
    """Descriptions of drawn pictures of a concept, for distances to the nearest ones."""

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        self._colors, self._edges = _describe(pictures)
        # A distance of 1 is that of two random pictures of the concept.
        half = len(pictures) // 2
        one, other = ([part[:half], part[half:]] for part in (self._colors, self._edges))
        colors, edges = self._distances(one[0], other[0], one[1], other[1])
        self._units = colors.mean(), edges.mean()

    def distance(self, pictures: Sequence[Image.Image]) -> float:
        """Mean distance of pictures to the few nearest ones here."""
        colors, edges = self._distances(*_describe(pictures), self._colors, self._edges)
        both = colors / self._units[0] + edges / self._units[1]
        return float(np.sort(both, axis=1)[:, :_NEAREST].mean() / 2)

    @staticmethod
    def _distances(colors: Any, edges: Any, other_colors: Any, other_edges: Any) -> tuple[Any, Any]:
        return tuple(
            np.stack([np.linalg.norm(others - one, axis=1) for one in ones])
            for ones, others in ((colors, other_colors), (edges, other_edges))
        )  # type: ignore[return-value]


def _describe(pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Colour layout [N, 24·24·3] and edges [N, M] of the thing in each picture."""
    colors, edges = zip(*(_describe_one(picture) for picture in pictures), strict=True)
    return np.stack(colors), np.stack(edges)


def _describe_one(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    thing = _cut_out(picture)
    small = [ndimage.zoom(thing[..., part], 0.5, order=1) for part in range(3)]
    edges = hog(thing[..., 0] / 100, orientations=8, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
    return np.stack(small, axis=-1).ravel(), edges


def _cut_out(picture: Image.Image, side: int = 48) -> np.ndarray:
    """The thing of a picture in CIE Lab, [side, side, 3], scaled to fill the square, on grey."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    lab = reader.to_lab(pixels)
    mask = reader.foreground(pixels, lab=lab)
    lab = np.where(mask[..., None], lab, _NOTHING)
    if not mask.any():
        return np.broadcast_to(_NOTHING, (side, side, 3)).copy()
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    square = np.broadcast_to(_NOTHING, (max(height, width), max(height, width), 3)).copy()
    top, left = (square.shape[0] - height) // 2, (square.shape[1] - width) // 2
    square[top : top + height, left : left + width] = lab[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = [Image.fromarray(square[..., part]).resize((side, side), Image.Resampling.BOX) for part in range(3)]
    return np.stack([np.asarray(part) for part in scaled], axis=-1)


def _moved(before: Image.Image, after: Image.Image) -> float:
    """Mean colour difference of two pictures (CIE 1976)."""
    one, two = (reader.to_lab(np.asarray(picture, dtype=np.float32)) for picture in (before, after))
    return float(np.linalg.norm(one - two, axis=-1).mean())
