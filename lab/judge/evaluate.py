"""Measures the base model: how often the reader finds what the prompt asks for (`quality.py`).

    python lab evaluate [--count N] [--write]

`--write` puts the numbers into card.json and README.md, and sixty pictures of each kind into docs/base_model_*.jpg.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from ...training.disk import write_whole
from ..pack import ROOT
from ..standalone import start_standalone

SHOWN = 60  # pictures on a sheet


def write_readme(table: str) -> None:
    """Put the measured shares into README.md, between its two marker comments."""
    file = ROOT / "lab" / "base_model" / "README.md"
    start, end = "<!-- quality -->", "<!-- end quality -->"
    before, rest = file.read_text(encoding="utf-8").split(start)
    write_whole(file, f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}")


def evaluate(count: int, write: bool) -> None:
    """Measure, print, and write on request."""
    from lora_workbench.lab.base_model import assemble
    from lora_workbench.lab.base_model.painter import GUIDANCE, SAMPLER, SCHEDULER, STEPS, Painter
    from lora_workbench.lab.base_model.progress import say
    from lora_workbench.lab.judge.quality import ROWS, contact_sheet, measure, paint_unread, quality_table

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps mapped files open
        checkpoint = Path(folder) / "base.safetensors"
        assemble.assemble(checkpoint)
        painter = Painter(checkpoint)
    sampler = f"{SAMPLER}, {SCHEDULER}, {STEPS} steps, CFG {GUIDANCE}"
    quality: dict[str, Any] = {"sampler": sampler, "pictures": count}
    for name, _, draw, held_out in ROWS:
        started = time.monotonic()
        quality[name], shown = measure(painter, count, draw, held_out)
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
        write_readme(quality_table(quality))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    start_standalone(cpu=True)
    evaluate(args.count, args.write)
