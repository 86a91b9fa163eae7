"""Write what the demo needs: the pack's own small base model and two folders of captioned pictures.

    python lab prepare --base FOLDER

FOLDER is ComfyUI's folder or its base directory. Nothing is downloaded. Existing pictures are kept, except unchanged
ones of another version. The model is assembled again if it differs from this pack's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

try:
    import safetensors.torch  # noqa: F401
except ImportError as error:
    raise SystemExit(f"[demo] {error}. Run this with the Python that runs ComfyUI.") from None

from ..base_model import assemble
from ..world import concepts, known
from .pictures import CONCEPT, KEPT, KEPT_COUNT, KEPT_SEED, PICTURES, write_pictures

CHECKPOINT = "models/checkpoints/lora_workbench_base.safetensors"


def say(text: str) -> None:
    """Print a line at once."""
    print(f"[demo] {text}", flush=True)


def main() -> None:
    """Read the command line and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="ComfyUI's base directory")
    base = parser.parse_args().base.resolve()
    if not (base / "models").is_dir():
        raise SystemExit(f"[demo] {base} is not ComfyUI's folder: it has no folder 'models'. Name one that has.")

    try:
        lay_out(base)
    except PermissionError as error:
        raise SystemExit(f"[demo] {error}. Close ComfyUI if it has the file open, and try again.") from None
    except (assemble.BaseModelError, OSError) as error:
        raise SystemExit(f"[demo] {error}") from None


def lay_out(base: Path) -> None:
    """Write the checkpoint and the pictures that are missing."""
    checkpoint = base / CHECKPOINT
    assemble.assemble(checkpoint)
    say(f"base model: {checkpoint}, {checkpoint.stat().st_size / 1e6:.0f} MB, assembled and checked")
    for name, pictures in (
        (PICTURES, concepts.pictures(CONCEPT, *concepts.TRAINED)),
        (KEPT, known.known_pictures(KEPT_COUNT, KEPT_SEED)),
    ):
        written = len(write_pictures(base / name, pictures))
        say(f"pictures: {written} with captions in {name}" if written else f"pictures: {name}, already there")
