"""Makes the base model: draws the world, trains VAE and denoiser, ships them, measures.

    python lab train [--work FOLDER] [--vae-steps N] [--steps N] [--only PART ...] [--fresh]

Needs the environment of `python dev.py test` and COMFYUI_PATH. Every part is resumable: run it again to continue.
Without states in the work folder it continues from the shipped files, and trains nothing if those have as many steps.
The training set is made in any case. `--only evaluate` trains nothing and writes its results, like
`python lab evaluate --write`. `--fresh` deletes the work folder's states and starts from nothing; after a stop,
continue without it. Takes two hours on two CPU cores with bf16, longer on others.
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
    """Run the named parts, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".host" / "base_model")
    parser.add_argument("--vae-steps", type=int, default=6500)
    parser.add_argument("--steps", type=int, default=18000, help="of the denoiser")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--fresh", action="store_true", help="delete the folder's states and start from nothing")
    args = parser.parse_args()
    if args.fresh and "vae" not in args.only:
        parser.error("--fresh starts with the VAE, which --only leaves out. Remove one of the two.")
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
