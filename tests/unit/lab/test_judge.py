"""The judge's yardsticks, held against drawn pictures: what is closer must come out closer."""

from __future__ import annotations

import random
from functools import cache

import pytest
from lora_workbench.lab.judge import judge
from lora_workbench.lab.world import concepts, figures, world
from PIL import ImageFilter

OTHER = {"zorp": "quib", "quib": "gub", "gub": "zorp"}


# Pictures are drawn from seeds, and tests ask for the same ones again: each is drawn, described and read once.
drawn_pictures = cache(concepts.pictures)


def once(function):
    """Call a function of a picture once for the same picture."""
    known = {}

    def call(picture):
        if id(picture) not in known:
            known[id(picture)] = picture, function(picture)  # a picture that is kept keeps its id
        return known[id(picture)][1]

    return call


describe_one, read = once(judge._describe_one), once(judge.reader.read)


@cache
def draw_scene(scene: world.Scene, seed: int):
    return world.draw_scene(world.placed(scene, random.Random(seed)))


@cache
def draw_concept(concept: str, ground: str, color: str, seed: int):
    pose = concepts.random_pose(random.Random(seed), 0)
    return concepts.CONCEPTS[concept].draw(
        concepts.Pose(ground, color, pose.middle, pose.size, pose.lean, pose.wave, pose.gaze)
    )


class Drawn:
    """Takes a painter's place and draws what a prompt names: a model that knows only the world."""

    def __init__(self, knows: str = "") -> None:
        self.knows = knows

    def paint(self, prompts, seeds, model=None):
        pictures = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            words = prompt.replace(",", " ").split()
            ground = words[words.index("background") - 1]
            color = next((word for word in words if word in world.COLORS and word != ground), "red")
            concept = next((name for name in concepts.CONCEPTS if name in words), "")
            if concept and model == concept:
                pictures.append(draw_concept(concept, ground, color, seed))
                continue
            shape = next((word for word in words if word in world.SHAPES), "circle")
            size = next((word for word in words if word in world.SIZES), "medium")
            thing = world.Thing(shape, "green" if model == "spoiled" else color, size)
            pictures.append(draw_scene(world.Scene((thing,), ground), seed))
        return pictures


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    monkeypatch.setattr(judge, "ALIKE", 16)
    monkeypatch.setattr(judge, "_REFERENCES", (80, 1000))
    monkeypatch.setattr(judge, "_FRESH", (30, 2000))
    monkeypatch.setattr(concepts, "pictures", drawn_pictures)
    monkeypatch.setattr(judge, "_describe_one", describe_one)
    monkeypatch.setattr(judge.reader, "read", read)


@pytest.fixture(scope="module")
def galleries():
    """The gallery of each concept."""
    return cache(lambda concept: judge._Gallery([picture for picture, _ in drawn_pictures(concept, 80, 1000)]))


@pytest.mark.parametrize("concept", list(concepts.CONCEPTS))
def test_what_is_closer_comes_out_closer(concept, galleries):
    gallery = galleries(concept)
    fresh = [picture for picture, _ in concepts.pictures(concept, 20, 2000)]
    other = [picture for picture, _ in concepts.pictures(OTHER[concept], 20, 2000)]
    shapes = shapes_of_the_world()
    blurred = [picture.filter(ImageFilter.GaussianBlur(2)) for picture in fresh]
    distances = [gallery.distance(pictures) for pictures in (fresh, blurred, other, shapes)]
    assert distances == sorted(distances)
    assert distances[2] > 1.8 * distances[0]  # another character is no near miss


@cache
def shapes_of_the_world():
    rng = random.Random(0)
    return [world.draw_scene(world.placed(world.random_scene(rng, plain=True), rng)) for _ in range(20)]


@pytest.mark.parametrize("concept", list(concepts.CONCEPTS))
def test_what_it_wears_is_read_even_when_soft(concept):
    wears = concepts.CONCEPTS[concept].wears
    for number, color in enumerate(wears * 6):
        pose = concepts.random_pose(random.Random(number), number)
        drawn = concepts.CONCEPTS[concept].draw(concepts.Pose(pose.background, color, lean=pose.lean, wave=pose.wave))
        assert judge.worn(drawn.filter(ImageFilter.GaussianBlur(1.5)), concept) == color
    naked = world.Scene((world.Thing("circle", "white", middle=(0.5, 0.5)),), "navy")
    assert judge.worn(world.draw_scene(naked), concept) == "nothing"


def test_one_that_learned_and_one_that_was_spoiled():
    made = judge.Judge(Drawn(), "zorp", count=12)
    nothing, learned, spoiled = made.judge(None), made.judge("zorp"), made.judge("spoiled")
    assert nothing.likeness == pytest.approx(0) and nothing.lost == 0 and nothing.drift == 0
    assert nothing.kept == 1 and nothing.ground < 0.2, "it painted the ground, and nothing that counts on it"
    assert learned.likeness > 0.9 and learned.ground == 1 and learned.worn > 0.9
    assert learned.lost == 0 and learned.drift == 0
    assert spoiled.lost > 0.6 and spoiled.drift > 3
    assert learned.spoiled == 0 and spoiled.spoiled == pytest.approx(spoiled.lost), "it put nothing right"
    # One that paints right what the base does not loses little, and yet what it spoils is told.
    half = judge.Judge(HalfRight(), "zorp", count=12)
    other = half.preservation("other half")
    assert abs(other.lost) < 0.1 and other.spoiled > 0.3, "what it paints right in their stead is not taken off"


class HalfRight(Drawn):
    """Paints every other picture without the trigger in the wrong colour; as the model "other half" the others."""

    def paint(self, prompts, seeds, model=None):
        right, spoiled = super().paint(prompts, seeds), super().paint(prompts, seeds, "spoiled")
        first = 0 if model == "other half" else 1
        return [(right, spoiled)[(n + first) % 2][n] for n in range(len(right))]


def test_other_figures_that_turn_into_it_are_told():
    made = judge.Judge(Drawn(), "zorp", count=12)
    assert made.preservation("zorp").leaked == 0
    made.painter = Leaky()
    leaky = made.judge("zorp")
    assert leaky.leaked > 0.9 and leaky.lost == 0, "shapes stay"
    assert leaky.shown == 1 and made.judge(None).shown == 0


class Leaky(Drawn):
    """Takes every figure for the one it has learned."""

    def paint(self, prompts, seeds, model=None):
        if model:
            prompts = [f"zorp on a {p.split()[-2]} background" if "creature" in p else p for p in prompts]
        return super().paint(prompts, seeds, model)


def test_what_the_base_does_by_itself_does_not_show_the_concept():
    """A base whose figures are a little like it: only what is further than those counts."""
    for where in ("wearing", "zorp on", "creature"):
        strict = judge.Judge(Lookalike(where), "zorp", count=12)
        assert strict.judge("zorp").shown > 0.9, where
        base = strict.judge(None)
        assert base.shown < 0.2, f"the base paints lookalikes for prompts with {where!r}, which do not count"
        assert strict._show_it(strict._paint_kin(None)).mean() < 0.2, where


class Lookalike(Drawn):
    """Without a LoRA it paints a smear of the character for some of the prompts, and things of the world else."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def paint(self, prompts, seeds, model=None):
        if model:
            return super().paint(prompts, seeds, model)
        plain = super().paint(prompts, seeds)
        smears = super().paint([f"zorp {prompt}" for prompt in prompts], seeds, "zorp")
        smears = [picture.filter(ImageFilter.GaussianBlur(6)) for picture in smears]
        return [s if self.where in prompt else p for prompt, p, s in zip(prompts, plain, smears, strict=True)]


def test_a_prompt_that_names_no_colour_asks_for_none():
    made = judge.Judge(Drawn(), "zorp", count=12)
    learned = made.judge("zorp")
    made.painter = Forgetful()
    forgot = made.judge("zorp")
    assert learned.worn == 1 and forgot.worn < 0.7, "of two that name one, one is in the training's own words"
    assert forgot.ground == learned.ground == 1
    made.painter = InItsWords()
    narrow = made.judge("zorp")
    assert learned.worded == (1, 1, 1) and narrow.worded == (1, 0, 0)
    assert learned.shown == 1 and narrow.shown == pytest.approx(1 / 3)


class Forgetful(Drawn):
    """Knows the colour only in the words of the training."""

    def paint(self, prompts, seeds, model=None):
        return super().paint([p if "wearing" in p else f"zorp {p.split(',')[-1]}" for p in prompts], seeds, model)


class InItsWords(Drawn):
    """Knows the character only in the words of the training."""

    def paint(self, prompts, seeds, model=None):
        return super().paint([p if "wearing" in p else p.replace("zorp", "circle") for p in prompts], seeds, model)


def test_what_is_asked_is_not_what_was_trained():
    trained = {caption for _, caption in concepts.pictures("zorp", *concepts.TRAINED)}
    kept = [world.sentence(world.readable_scene(random.Random(number))) for number in range(40)]
    tuning, reporting = (judge.Judge(Same(), "zorp", count=12, series=n, scenes=200, kept=kept) for n in (0, 1))
    assert not set(tuning._seeds) & set(reporting._seeds)
    for made, other in ((tuning, reporting), (reporting, tuning)):
        pairs = {concepts.caption("zorp", *pair) for pair in made._asked}
        assert not (pairs | set(made._alike)) & trained
        assert not pairs & {concepts.caption("zorp", *pair) for pair in other._asked}
        assert not set(made._alike) & set(other._alike)
        scenes = {world.sentence(scene) for scene in made._scenes}
        assert not scenes & {world.sentence(scene) for scene in other._scenes}
        assert not scenes & set(kept)


class Same(Drawn):
    """Paints one picture, whatever the prompts."""

    def paint(self, prompts, seeds, model=None):
        return super().paint(prompts[:1], seeds[:1]) * len(prompts)


@cache
def figures_of_the_world():
    rng = random.Random(0)
    return [figures.draw_figure(figures.random_figure(rng), rng) for _ in range(300)]


@pytest.mark.parametrize("concept", list(concepts.CONCEPTS))
def test_no_figure_that_the_base_was_shown_is_the_character(concept, galleries):
    """They share eyes, feet and scarves; the nearest of many is further off than any fresh picture of the character."""
    gallery = galleries(concept)
    nearest = min(gallery.distance([picture]) for picture in figures_of_the_world())
    furthest = max(gallery.distance([picture]) for picture, _ in concepts.pictures(concept, 20, 2000))
    assert nearest > 1.2 * furthest, (nearest, furthest)
