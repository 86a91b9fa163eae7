"""Measures the base model: how often the reader finds what was asked for, for known and for held-out pairs.

Figures have no reader: those are painted to be looked at.

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

# What is asked for: name in the card, title in README.md, pairs that were held out, a size and a place as well.
ROWS = (
    ("known", "known pairs", False, False),
    ("held_out", "held-out pairs", True, False),
    ("anywhere", "known pairs, of any size and in any place", False, True),
)

SHOWN = 60  # pictures on a sheet


def measure(painter: Any, count: int, held_out: bool, anywhere: bool) -> tuple[dict[str, float], list[Any]]:
    """Paint `count` pictures of one thing each; return the share read right and the pictures."""
    from base_model import reader, world

    rng = random.Random(f"evaluation {held_out}")
    draw = world.readable_scene if anywhere else partial(world.random_scene, plain=True)
    scenes = [draw(rng, held_out=held_out) for _ in range(count)]
    prompts = [(world.sentence if number % 2 == 0 else world.tags)(scene) for number, scene in enumerate(scenes)]
    pictures = painter.paint(prompts, [1000 + number for number in range(count)])
    right, shown = {"shape": 0, "color": 0, "background": 0, "all": 0}, []
    for scene, prompt, picture in zip(scenes, prompts, pictures, strict=True):
        reading, thing = reader.read(picture), scene.things[0]
        hits = {
            "shape": reading.shape == thing.shape,
            "color": reading.color == thing.color,
            "background": reading.background == scene.background,
        }
        for name, hit in {**hits, "all": all(hits.values())}.items():
            right[name] += hit
        shown.append((picture, prompt, all(hits.values())))
    return {name: hits / count for name, hits in right.items()}, shown


def paint_figures(painter: Any, count: int) -> list[Any]:
    """Paint figures for captions of both forms."""
    from base_model.figures import random_figure

    rng = random.Random("figures")
    figures = [random_figure(rng) for _ in range(count)]
    prompts = [(figure.sentence, figure.tags)[number % 2] for number, figure in enumerate(figures)]
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
    for name, _, held_out, anywhere in ROWS:
        quality[name], shown = measure(painter, count, held_out, anywhere)
        say(f"{name}: {quality[name]} ({(time.monotonic() - started) / count:.1f} s a picture)")
        for _, prompt, right in shown:
            if not right:
                say(f"  wrong: {prompt}")
        if write:
            contact_sheet(shown[:SHOWN]).save(ROOT / "docs" / f"base_model_{name}.jpg", quality=88)
    if write:
        figures = paint_figures(painter, SHOWN)
        contact_sheet(figures).save(ROOT / "docs" / "base_model_figures.jpg", quality=88)
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
