"""Makes the base model from nothing: draws the world, trains VAE and denoiser, measures, writes the shipped weights.

    python base_model/train.py [--work FOLDER] [--vae-steps N] [--steps N] [--only PART]

Needs the environment of `python dev.py test` and COMFYUI_PATH. Every part is resumable: run it again and it goes on.
A few hours on two CPU cores. What is trained is shipped at once: base_model/vae.safetensors, then denoiser.safetensors.
Without a work folder the training goes on from what is shipped.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start() -> None:
    """Make the host importable on the CPU, and this folder as package `base_model` without its parent on the path."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "base_model")]
    spec = importlib.machinery.ModuleSpec("base_model", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / "base_model")]
    sys.modules["base_model"] = importlib.util.module_from_spec(spec)
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI, such as the one dev.py unpacks into .host.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-base-")


def sample_pictures():
    """Two hundred pictures of the world, [B, 3, 128, 128], -1 to 1."""
    import random

    import numpy as np
    import torch

    from base_model import world

    rng = random.Random(7)
    drawn = [world.draw_scene(world.placed(world.random_scene(rng), rng)) for _ in range(200)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    """Do the parts that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".host" / "base_model")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--only", choices=["vae", "data", "denoiser"])
    args = parser.parse_args()
    start()
    from base_model import autoencoder, denoiser
    from base_model.progress import Checkpoints

    state = Checkpoints(args.work)
    parts = {
        "vae": lambda: autoencoder.train(state, args.vae_steps, sample_pictures()),
        "data": lambda: denoiser.make_data(args.work, autoencoder.finished(), seed=1),
        "denoiser": lambda: denoiser.train(state, args.steps),
    }
    for name, part in parts.items():
        if args.only in (None, name):
            part()


if __name__ == "__main__":
    main()
