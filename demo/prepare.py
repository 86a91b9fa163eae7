"""Lay out what the demo runs on: a small base model and a folder of captioned photos. Nothing is downloaded.

    COMFYUI_PATH=/path/to/ComfyUI python demo/prepare.py --base FOLDER

What is already there is kept, so a trained base model can take the place of the random one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Only these two: the repository root would let its folder `nodes` shadow ComfyUI's nodes.py.
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(ROOT / "tests")]

from support.photos import write_photos  # noqa: E402
from support.small_models import checkpoint_sd15  # noqa: E402

CHECKPOINT = "models/checkpoints/lora_workbench_demo.safetensors"
PHOTOS = "input/lora_workbench_demo/10_photo"


def say(text: str) -> None:
    print(f"[demo] {text}", flush=True)


def write_checkpoint(file: Path) -> None:
    import comfy.options

    comfy.options.enable_args_parsing(False)  # the host would take our command line for its own
    from comfy.cli_args import args

    args.cpu = True  # weights are drawn on the CPU, so that every machine gets the same ones
    checkpoint_sd15(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="ComfyUI's base directory")
    base = parser.parse_args().base

    checkpoint = base / CHECKPOINT
    if checkpoint.exists():
        say(f"base model: {checkpoint.name}, already there")
    else:
        write_checkpoint(checkpoint)
        say(f"base model: {checkpoint.name}, {checkpoint.stat().st_size / 1e6:.0f} MB, random weights")

    photos = base / PHOTOS
    if photos.exists():
        say(f"photos: {photos.relative_to(base)}, already there")
    else:
        say(f"photos: {len(write_photos(photos))} with captions in {photos.relative_to(base)}")


if __name__ == "__main__":
    main()
