"""Lay out what the demo runs on: the pack's own small base model and a folder of captioned pictures.

    python demo/prepare.py --base FOLDER

FOLDER is ComfyUI's (or its base directory). Nothing is downloaded. What is already there and whole is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the host is not imported here, which `nodes` would stand in the way of

try:
    import safetensors.torch  # noqa: F401
except ImportError as error:
    raise SystemExit(f"[demo] {error}: run this with the Python that runs ComfyUI.") from None

from pictures import write_pictures  # noqa: E402

from base_model import assemble, concepts  # noqa: E402

CHECKPOINT = "models/checkpoints/lora_workbench_base.safetensors"
PICTURES = "input/lora_workbench_zorp/10_zorp"
CONCEPT = "zorp"


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

    folder = base / PICTURES
    pictures = concepts.pictures(CONCEPT, *concepts.TRAINED)
    if len(list(folder.glob("*.png"))) >= len(pictures):
        say(f"pictures: {folder.relative_to(base)}, already there")
    else:
        files = write_pictures(folder, pictures)
        say(f"pictures: {len(files)} with captions in {folder.relative_to(base)}")


if __name__ == "__main__":
    main()
