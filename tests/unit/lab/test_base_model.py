"""The base model's parts that need no host: its world, the reader, the concepts, its files."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_workbench.lab.base_model import assemble
from lora_workbench.lab.base_model.progress import Checkpoints, save_whole
from lora_workbench.lab.demo.pictures import write_pictures
from lora_workbench.lab.judge import quality
from lora_workbench.lab.world import concepts, figures, known, world
from safetensors.torch import save_file

# The text encoder is drawn, not shipped: these must be the same bits on every machine and version.
TEXT_ENCODER = "e3e4cca9c7557e5f487523a007c8d75f25097ed2d94e56bb045f81c32d959eab"


def test_the_text_encoder_is_drawn_the_same_everywhere():
    weights = assemble.text_encoder_weights()
    assert assemble.checksum(weights) == TEXT_ENCODER
    for name, deviation in (("embeddings.token_embedding", 1.0), ("encoder.layers.3.mlp.fc1", 0.02)):
        tensor = weights[f"text_model.{name}.weight"].float()
        assert tensor.std().item() == pytest.approx(deviation, rel=0.01)
        assert abs(tensor.mean().item()) < 0.01 * deviation


def test_a_missing_or_damaged_file_says_so(tmp_path, monkeypatch):
    file = tmp_path / "vae.safetensors"
    monkeypatch.setattr(assemble, "CARD", tmp_path / "card.json")
    with pytest.raises(assemble.BaseModelError, match=r"vae.safetensors is missing.*git checkout"):
        assemble.shipped(file)
    assemble.ship(file, {"x": torch.arange(8.0)}, vae_steps=3)
    assert torch.equal(assemble.shipped(file)["x"], torch.arange(8.0).half())
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text("[1]")
    with pytest.raises(assemble.BaseModelError, match=r"card.json cannot be read.*git checkout"):
        assemble.shipped(file)
    assemble.write_card(card)
    assert card["vae_steps"] == 3 and len(card["sha256"]["vae.safetensors"]) == 64
    assemble.write_card({**card, "quality": {"known": 1.0}})
    assemble.ship(file, {"x": torch.arange(8.0)}, vae_steps=3)
    assert "quality" in assemble.card(), "the same again is nothing new"
    assemble.ship(file, {"x": torch.arange(8.0) + 1}, vae_steps=4)
    assert "quality" not in assemble.card(), "what was measured of other weights"
    assert assemble.card()["vae_steps"] == 4
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(assemble.BaseModelError, match="cannot be read"):
        assemble.shipped(file)
    save_file({"x": torch.ones(8).half()}, file)
    with pytest.raises(assemble.BaseModelError, match="checksum of .* is not the one in card.json"):
        assemble.shipped(file)


def test_held_out_pairs_are_never_drawn_for_training():
    rng = random.Random(0)
    scenes = [world.random_scene(rng) for _ in range(2000)]
    asked = [world.random_scene(rng, held_out=True, plain=True) for _ in range(100)]
    assert {(thing.shape, thing.color) for scene in asked for thing in scene.things} <= set(world.HELD_OUT)
    # Each shape and each colour of a held-out pair is known from other pairs.
    seen = {(thing.shape, thing.color) for scene in scenes for thing in scene.things}
    assert not seen & set(world.HELD_OUT)
    for shape, color in world.HELD_OUT:
        assert sum(s == shape for s, _ in seen) >= 6 and sum(c == color for _, c in seen) >= 5


def test_captions_say_what_is_drawn():
    scene = world.Scene((world.Thing("star", "red", "large", texture="striped", style="outlined"),), "navy")
    assert world.sentence(scene) == "a large outlined striped red star on a navy background"
    assert world.tags(scene) == "red star, large, striped, outlined, navy background"
    two = world.Scene((world.Thing("star", "red", "small"), world.Thing("ring", "blue", "small")), "mint", "left of")
    assert world.sentence(two) == "a red star left of a blue ring on a mint background"


def test_figures_are_captioned_by_what_is_drawn():
    figure = figures.Figure("orange", "a crest", "hat", "orange", "navy")
    assert figure.sentence == "an orange creature with a crest wearing an orange hat on a navy background"
    assert figure.tags == "orange creature, crest, orange hat, navy background"
    bare = figures.Figure("", "", "", "red", "mint")
    assert (bare.sentence, bare.tags) == ("a creature on a mint background", "creature, mint background")

    def drawn(figure: figures.Figure, seed: int = 0) -> np.ndarray:
        return np.asarray(figures.draw_figure(figure, random.Random(seed)), dtype=float)

    assert (drawn(figure) == drawn(figure)).all() and (drawn(figure) != drawn(figure, 1)).any()
    # What the captions name is what changes.
    for change in ({"color": "green"}, {"top": "horns"}, {"worn": "scarf"}, {"wears": "blue"}, {"background": "cream"}):
        assert np.abs(drawn(replace(figure, **change)) - drawn(figure)).max() > 100, change
    for name, color in world.COLORS.items():
        shown = drawn(replace(bare, color=name, background="gray"))
        assert (np.abs(shown - color).max(axis=-1) < 4).mean() > 0.05, name


def test_figures_can_be_seen_on_their_backgrounds():
    rng = random.Random(0)
    for _ in range(300):
        figure = figures.random_figure(rng)
        worn, ground = world.COLORS[figure.wears], world.BACKGROUNDS[figure.background]
        colors = [worn, ground] + ([world.COLORS[figure.color]] if figure.color else [])
        for one, other in itertools.combinations(colors, 2):
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 90, figure


def test_what_is_to_be_kept_is_shapes_and_figures():
    pictures = known.known_pictures(30, 0)
    assert [caption for _, caption in pictures] == [caption for _, caption in known.known_pictures(30, 0)]
    assert sum("creature" in caption for _, caption in pictures) == 10
    assert sum("," in caption for _, caption in pictures) == 15, "half of them tags"
    assert not any(" of a" in caption or " above " in caption for _, caption in pictures)


@cache
def captions_of_sixty() -> list[str]:
    return [caption for _, caption in known.known_pictures(60, 0)]


@pytest.mark.parametrize("names", [world.SHAPES, world.COLORS, world.BACKGROUNDS])
def test_what_is_to_be_kept_is_there_as_often_as_the_next(names: Iterable[str]):
    """By lot alone one shape of eight was not among sixty pictures at all."""
    captions = [caption for caption in captions_of_sixty() if "creature" not in caption]
    # The background is the last thing a sentence tells; tags name it with its word.
    grounds = [re.search(r"(\w+) background", caption)[1] for caption in captions]
    things = [caption.replace(f"{ground} background", "") for caption, ground in zip(captions, grounds, strict=True)]
    told = grounds if names is world.BACKGROUNDS else things
    counts = [sum(name in words for words in told) for name in names]
    assert sum(counts) == 40 and max(counts) - min(counts) <= 2, dict(zip(names, counts, strict=True))


def test_the_reader_reads_what_is_drawn():
    """It knows nothing of the base model, so what it says of drawn pictures is what it is worth."""
    from lora_workbench.lab.judge import reader

    rng, right = random.Random(1), 0
    for number in range(60):
        scene = world.random_scene(rng, held_out=number % 2 == 1, plain=True)
        found = reader.read(world.draw_scene(world.placed(scene, rng)))
        thing = scene.things[0]
        right += (found.shape, found.color, found.background) == (thing.shape, thing.color, scene.background)
    assert right == 60
    blob = world.Image.new("RGB", (128, 128), world.BACKGROUNDS["navy"])
    for box in ((20, 20, 60, 40), (30, 40, 100, 50), (80, 50, 110, 110)):
        blob.paste((208, 32, 32), box)
    assert reader.read(blob).shape == "unclear"
    alone = world.draw_scene(world.Scene((world.Thing("circle", "red", extent=0.2),), "navy"))
    assert reader.read(alone).shape == "circle"
    alone.paste((208, 32, 32), (4, 4, 20, 20))
    assert reader.read(alone).shape == "unclear", "a second thing lies beside it"
    assert reader.read(world.Image.new("RGB", (128, 128), world.BACKGROUNDS["navy"])).shape == "nothing"


def test_the_reader_reads_two_things_each_in_its_place():
    from lora_workbench.lab.judge import reader

    rng, turned = random.Random(3), {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for _ in range(60):
        scene = world.related_scene(rng)
        drawn = world.draw_scene(world.placed(scene, rng))
        for relation, things in ((scene.relation, scene.things), (turned[scene.relation], scene.things[::-1])):
            found = reader.read_pair(drawn, relation)
            assert [(one.shape, one.color) for one in found] == [(thing.shape, thing.color) for thing in things]
            assert {one.background for one in found} == {scene.background}


def test_scenes_of_any_size_and_place_are_read_too():
    from lora_workbench.lab.judge import reader

    rng, wrong = random.Random(2), []
    for _ in range(100):
        scene = world.readable_scene(rng)
        found, thing = reader.read(world.draw_scene(world.placed(scene, rng))), scene.things[0]
        if (found.shape, found.color, found.background) != (thing.shape, thing.color, scene.background):
            wrong.append((world.sentence(scene), found))
    assert len(wrong) <= 1, wrong


class DrawsScenes:
    """Stands where a painter does: of each four one as asked for, and of another shape, colour, ground."""

    def __init__(self, draw) -> None:
        self._draw, self.scenes = draw, []

    def draw(self, rng: random.Random, *, held_out: bool = False) -> world.Scene:
        self.scenes.append(self._draw(rng, held_out=held_out))
        return self.scenes[-1]

    def paint(self, prompts, seeds, model=None):
        def fits(color: str, ground: str) -> bool:
            return (color, ground) not in world._TOO_ALIKE

        for number, (scene, prompt, seed) in enumerate(zip(self.scenes, prompts, seeds, strict=True)):
            assert prompt == (world.sentence, world.tags)[number % 2](scene)
            thing, ground = scene.things[0], scene.background
            match number % 4:
                case 1:
                    thing = replace(thing, shape="ring" if thing.shape == "cross" else "cross")
                case 2:
                    thing = replace(thing, color=next(
                        color for color in world.COLORS if color != thing.color and fits(color, ground)))  # fmt: skip
                case 3:
                    ground = next(
                        other for other in world.BACKGROUNDS
                        if other != ground and all(fits(one.color, other) for one in scene.things))  # fmt: skip
            painted = replace(scene, things=(thing, *scene.things[1:]), background=ground)
            yield world.draw_scene(world.placed(painted, random.Random(seed)))


@pytest.mark.parametrize("name", [name for name, *_ in quality.ROWS])
def test_quality_is_the_share_of_each_that_is_right(name: str):
    draw, held_out = next((draw, held_out) for row, _, draw, held_out in quality.ROWS if row == name)
    painter = DrawsScenes(draw)
    found, shown = quality.measure(painter, 20, painter.draw, held_out)
    assert [right for _, _, right in shown] == [True, False, False, False] * 5
    assert found == {"all": 0.25, "stricter": 0.25, "shape": 0.75, "color": 0.75, "background": 0.75}
    for scene in painter.scenes:
        pairs = {(thing.shape, thing.color) for thing in scene.things}
        assert pairs <= world.HELD_OUT if held_out else not pairs & world.HELD_OUT
        usual = [(thing.size, thing.place) == ("medium", "center") for thing in scene.things]
        assert not any(usual) if "elsewhere" in name else bool(scene.relation) or all(usual)
    sheet = np.asarray(quality.contact_sheet(shown))
    red = (sheet == (255, 0, 0)).all(-1)
    assert sheet.shape[:2] == (2 * 136, 10 * 136)
    assert not red[:136, :136].any() and red[:136, 136:272].any(), "those read wrong have a red edge"


def test_the_last_column_asks_for_more_overlap(monkeypatch: pytest.MonkeyPatch):
    from lora_workbench.lab.judge import reader

    assert quality.STRICTER > reader._CLEAR
    monkeypatch.setattr(quality, "STRICTER", 1.01)  # no drawn thing comes near the other
    _, _, draw, held_out = quality.ROWS[0]
    painter = DrawsScenes(draw)
    found, _ = quality.measure(painter, 20, painter.draw, held_out)
    assert (found["all"], found["stricter"]) == (0.25, 0)


def test_the_card_and_the_page_tell_the_same_and_of_goals_that_are_reached():
    found = assemble.card()["quality"]
    assert quality.quality_table(found) in (assemble.HERE / "README.md").read_text(encoding="utf-8")
    assert found["pictures"] >= 100 and found["known"]["all"] >= 0.95 and found["held_out"]["all"] >= 0.85


@pytest.mark.parametrize("name", list(concepts.CONCEPTS))
def test_concepts_vary_and_stay_what_they_are(name):
    pictures = concepts.pictures(name, 6, seed=0)
    again = concepts.pictures(name, 6, seed=0)
    other = concepts.pictures(name, 6, seed=1)
    arrays = [np.asarray(picture) for picture, _ in pictures]
    assert all((a == np.asarray(b)).all() for a, (b, _) in zip(arrays, again, strict=True))
    assert not any((a == np.asarray(b)).all() for a, (b, _) in zip(arrays, other, strict=True))
    assert len({caption for _, caption in pictures}) == 6
    assert all(caption.startswith(f"{name} wearing a ") for _, caption in pictures)


def test_pictures_are_laid_out_and_a_persons_own_left_alone(tmp_path):
    folder = tmp_path / "10_zorp"
    pictures = concepts.pictures("zorp", 3, 0)
    assert [file.name for file in write_pictures(folder, pictures)] == ["zorp_01.png", "zorp_02.png", "zorp_03.png"]
    assert (folder / "zorp_02.txt").read_text(encoding="utf-8") == pictures[1][1] + "\n"
    assert write_pictures(folder, pictures) == []
    (folder / "mine.png").write_bytes((folder / "zorp_01.png").read_bytes())
    (folder / "zorp_01.txt").write_text("my own words\n", encoding="utf-8")
    for name in ("zorp_01.png", "zorp_03.png", "zorp_03.txt"):
        (folder / name).unlink()
    assert [file.name for file in write_pictures(folder, pictures)] == ["zorp_01.png", "zorp_03.png"]
    assert (folder / "mine.png").exists()
    assert (folder / "zorp_01.txt").read_text(encoding="utf-8") == "my own words\n"
    assert (folder / "zorp_03.txt").read_text(encoding="utf-8") == pictures[2][1] + "\n"
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*.part"))


@pytest.mark.parametrize("error", [PermissionError("in use"), OSError("disk full")])
def test_a_checkpoint_that_cannot_be_written_is_told(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in use is reported as such: ComfyUI has it open on Windows, and `python lab prepare` says what to do."""
    tensors = {"a": torch.zeros(1)}
    monkeypatch.setattr(assemble, "full_checkpoint", lambda: tensors)
    monkeypatch.setattr(assemble, "card", lambda: {"sha256": {"checkpoint": assemble.checksum(tensors)}})

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(assemble, "save_whole", fails)
    told = PermissionError if isinstance(error, PermissionError) else assemble.BaseModelError
    with pytest.raises(told, match=str(error)):
        assemble.assemble(tmp_path / "base.safetensors")


def test_the_next_training_is_from_nothing_until_one_has_ended(tmp_path: Path) -> None:
    state = Checkpoints(tmp_path)
    state.save("vae", 1)
    state.forget()
    assert state.from_nothing and state.load("vae") == 0
    state.ended()
    assert not state.from_nothing


def test_what_a_killed_writer_left_is_cleaned_up(tmp_path, monkeypatch):
    from lora_workbench.training import disk

    with monkeypatch.context() as patch, disk.unfinished(tmp_path / "dead") as dead:
        patch.setattr(os, "getpid", lambda: 2**30)  # no process has this number
        with disk.unfinished(tmp_path) as left:
            pass
        (tmp_path / left.name).touch()
    busy = tmp_path / dead.name
    busy.touch()  # of this process, which is still there
    save_whole({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == [busy.name, "model.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_an_assembled_file_can_be_read_by_others(tmp_path):
    save_whole({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("model.safetensors", "plain")]
    assert modes[0] == modes[1]
