"""Makes the base model: draws the world, trains VAE and denoiser, ships them, measures.

    python lab train [--work FOLDER] [--vae-steps N] [--steps N] [--only PART ...] [--fresh]

Needs the environment of `python dev.py test` and COMFYUI_PATH. Every part is resumable: run it again and it goes on.
Without a work folder it goes on from what is shipped, and trains nothing when that had as many steps (the training set
is made all the same; `--only evaluate` trains nothing and writes down what it measured, which `python lab evaluate`
alone does not). With --fresh it deletes what is in the work folder and begins from nothing: go on without it after a
stop. Two hours on two CPU cores with bf16, some hours on others.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from ..judge.evaluate import evaluate
from ..pack import ROOT
from ..standalone import start_standalone

PARTS = ("vae", "data", "denoiser", "evaluate")


def sample_pictures() -> Any:
    """Two hundred pictures of the world, [B, 3, 128, 128], -1 to 1."""
    import numpy as np
    import torch
    from lora_workbench.lab.world import world

    rng = random.Random(7)
    drawn = [world.draw_scene(world.placed(world.random_scene(rng), rng)) for _ in range(200)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    """Do the parts that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".host" / "base_model")
    parser.add_argument("--vae-steps", type=int, default=6500)
    parser.add_argument("--steps", type=int, default=18000, help="of the denoiser")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--fresh", action="store_true", help="delete what is in the folder and begin from nothing")
    args = parser.parse_args()
    if args.fresh and "vae" not in args.only:
        parser.error("--fresh begins with the VAE, which all else is made for: leave one of the two away")
    start_standalone(cpu=True)
    from lora_workbench.lab.base_model import autoencoder, denoiser
    from lora_workbench.lab.base_model.progress import Checkpoints

    state = Checkpoints(args.work)
    if args.fresh:
        state.forget()
    go_on = not state.from_nothing
    parts = {
        "vae": lambda: autoencoder.train(state, args.vae_steps, sample_pictures(), go_on=go_on),
        "data": lambda: denoiser.make_data(args.work, autoencoder.finished()),
        "denoiser": lambda: denoiser.train(state, args.steps, go_on=go_on),
        "evaluate": lambda: evaluate(100, write=True),
    }
    for name in args.only:
        parts[name]()
        if name == "denoiser":
            state.ended()
