"""Lay out what the demo runs on: the pack's own small base model and a folder of captioned pictures.

    python demo/prepare.py --base FOLDER

FOLDER is ComfyUI's (or its base directory). Nothing is downloaded. What is already there is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The host is not imported here, which `nodes` would stand in the way of. Not every Python adds this file's own folder:
# the one of ComfyUI's portable Windows release does not.
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

try:
    import safetensors.torch  # noqa: F401
except ImportError as error:
    raise SystemExit(f"[demo] {error}: run this with the Python that runs ComfyUI.") from None

from pictures import CONCEPT, KEPT, KEPT_COUNT, KEPT_SEED, PICTURES, write_pictures  # noqa: E402

from base_model import assemble, concepts, world  # noqa: E402

CHECKPOINT = "models/checkpoints/lora_workbench_base.safetensors"


def say(text: str) -> None:
    print(f"[demo] {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="ComfyUI's base directory")
    base = parser.parse_args().base

    checkpoint = base / CHECKPOINT
    try:
        assemble.assemble(checkpoint)
    except (assemble.BaseModelError, OSError) as error:
        raise SystemExit(f"[demo] {error}") from None
    say(f"base model: {checkpoint.name}, {checkpoint.stat().st_size / 1e6:.0f} MB, put together and checked")

    for name, pictures in (
        (PICTURES, concepts.pictures(CONCEPT, *concepts.TRAINED)),
        (KEPT, world.known_pictures(KEPT_COUNT, KEPT_SEED)),
    ):
        written = len(write_pictures(base / name, pictures))
        say(f"pictures: {written} with captions in {name}" if written else f"pictures: {name}, already there")


if __name__ == "__main__":
    main()
