"""Measures the base model: how often the reader finds what was asked for, for known and for held-out pairs.

Figures, textures and drawing styles have no reader: those are painted to be looked at.

    python base_model/evaluate.py [--count N] [--write]

`--write` puts the numbers into card.json and README.md, and sixty pictures of each into docs/base_model_*.jpg.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bootstrap import ROOT, start

# What is asked for: name in the card, title in README.md, how a scene is drawn by lot, pairs that were held out.
ROWS = (
    ("known", "known pairs", "plain", False),
    ("held_out", "held-out pairs", "plain", True),
    ("anywhere", "known pairs, of any size and in any place", "anywhere", False),
    ("related", "two things in a relation, each in its place", "related", False),
)

SHOWN = 60  # pictures on a sheet


def measure(painter: Any, count: int, kind: str, held_out: bool) -> tuple[dict[str, float], list[Any]]:
    """Paint `count` pictures of one or two things each; return the share read right and the pictures."""
    from base_model import reader, world

    rng = random.Random(f"evaluation {held_out}")
    draw = {
        "plain": partial(world.random_scene, plain=True),
        "anywhere": world.readable_scene,
        "related": world.related_scene,
    }[kind]
    scenes = [draw(rng, held_out=held_out) for _ in range(count)]
    prompts = [(world.sentence if number % 2 == 0 else world.tags)(scene) for number, scene in enumerate(scenes)]
    pictures = painter.paint(prompts, [1000 + number for number in range(count)])
    right, shown = {"shape": 0, "color": 0, "background": 0, "all": 0}, []
    for scene, prompt, picture in zip(scenes, prompts, pictures, strict=True):
        found = reader.read_pair(picture, scene.relation) if scene.relation else (reader.read(picture),)
        hits = {
            "shape": [reading.shape for reading in found] == [thing.shape for thing in scene.things],
            "color": [reading.color for reading in found] == [thing.color for thing in scene.things],
            "background": {reading.background for reading in found} == {scene.background},
        }
        for name, hit in {**hits, "all": all(hits.values())}.items():
            right[name] += hit
        shown.append((picture, prompt, all(hits.values())))
    return {name: hits / count for name, hits in right.items()}, shown


def paint_unread(painter: Any, what: str, count: int) -> list[Any]:
    """Paint what has no reader, for captions of both forms: "figures", or "decorated" things."""
    from base_model import world
    from base_model.figures import random_figure

    rng = random.Random(what)
    if what == "figures":
        captions = [(figure.sentence, figure.tags) for figure in (random_figure(rng) for _ in range(count))]
    else:
        scenes = [world.decorated_scene(rng) for _ in range(count)]
        captions = [(world.sentence(scene), world.tags(scene)) for scene in scenes]
    prompts = [both[number % 2] for number, both in enumerate(captions)]
    pictures = painter.paint(prompts, [2000 + number for number in range(count)])
    return [(picture, prompt, True) for picture, prompt in zip(pictures, prompts, strict=True)]


def contact_sheet(shown: list[Any], columns: int = 10) -> Any:
    """The pictures side by side, those read wrong with a red edge."""
    from PIL import Image, ImageDraw

    side = shown[0][0].width + 8
    sheet = Image.new("RGB", (columns * side, -(-len(shown) // columns) * side), (255, 255, 255))
    for number, (picture, _, right) in enumerate(shown):
        at = (number % columns * side + 4, number // columns * side + 4)
        if not right:
            edge = (at[0] - 3, at[1] - 3, at[0] + side - 6, at[1] + side - 6)
            ImageDraw.Draw(sheet).rectangle(edge, fill=(255, 0, 0))
        sheet.paste(picture, at)
    return sheet


def write_readme(quality: dict[str, Any]) -> None:
    """Put the measured shares into README.md, between its two marker comments."""
    parts = ("all", "shape", "color", "background")
    lines = ["| asked for | all three | shape | colour | background |", "| --- | --- | --- | --- | --- |"]
    for name, title, _, _ in ROWS:
        lines.append(f"| {title} | " + " | ".join(f"{quality[name][part]:.0%}" for part in parts) + " |")
    lines += ["", f"{quality['pictures']} pictures a row; {quality['sampler']}."]
    file = ROOT / "base_model" / "README.md"
    start, end = "<!-- quality -->", "<!-- end quality -->"
    before, rest = file.read_text(encoding="utf-8").split(start)
    file.write_text(before + start + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1], encoding="utf-8")


def evaluate(count: int, write: bool) -> None:
    """Measure, tell, and write it down where that is asked for."""
    from base_model import assemble
    from base_model.painter import GUIDANCE, SAMPLER, SCHEDULER, STEPS, Painter
    from base_model.progress import say

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows holds on to what is mapped
        checkpoint = Path(folder) / "base.safetensors"
        assemble.assemble(checkpoint)
        painter = Painter(checkpoint)
    sampler = f"{SAMPLER}, {SCHEDULER}, {STEPS} steps, CFG {GUIDANCE}"
    quality: dict[str, Any] = {"sampler": sampler, "pictures": count}
    started = time.monotonic()
    for name, _, kind, held_out in ROWS:
        quality[name], shown = measure(painter, count, kind, held_out)
        say(f"{name}: {quality[name]} ({(time.monotonic() - started) / count:.1f} s a picture)")
        for _, prompt, right in shown:
            if not right:
                say(f"  wrong: {prompt}")
        if write:
            contact_sheet(shown[:SHOWN]).save(ROOT / "docs" / f"base_model_{name}.jpg", quality=88)
    if write:
        for what in ("figures", "decorated"):
            contact_sheet(paint_unread(painter, what, SHOWN)).save(ROOT / "docs" / f"base_model_{what}.jpg", quality=88)
        assemble.write_card({**assemble.card(), "quality": quality})
        write_readme(quality)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    start()
    evaluate(args.count, args.write)


if __name__ == "__main__":
    main()
