"""Makes the base model from nothing: draws the world, trains VAE and denoiser, measures, writes the shipped weights.

    python base_model/train.py [--work FOLDER] [--vae-steps N] [--steps N] [--only PART]

Needs the environment of `python dev.py test` and COMFYUI_PATH. Every part is resumable: run it again and it goes on.
A few hours on two CPU cores. Parts: vae, data, denoiser, pack.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
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
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-base-")


def pack(work: Path) -> None:
    """Write the shipped weights and the checksums of them and of the whole checkpoint."""
    from safetensors.torch import save_file

    from base_model import assemble, autoencoder, denoiser
    from base_model.progress import Checkpoints, say

    state = Checkpoints(work)
    vae = autoencoder.finished(state, sample_pictures())
    trained = {f"model.diffusion_model.{name}": t for name, t in denoiser.finished(state).items()}
    trained |= {f"first_stage_model.{name}": tensor for name, tensor in vae.state_dict().items()}
    trained = {name: tensor.detach().half().contiguous() for name, tensor in trained.items()}
    save_file(trained, assemble.WEIGHTS)
    card = json.loads(assemble.CARD.read_text(encoding="utf-8")) if assemble.CARD.exists() else {}
    card["weights_sha256"] = assemble.checksum(trained)
    card["checkpoint_sha256"] = assemble.checksum(assemble.full_checkpoint(trained))
    assemble.CARD.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {assemble.WEIGHTS} ({assemble.WEIGHTS.stat().st_size / 1e6:.1f} MB)")


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
    parser.add_argument("--only", choices=["vae", "data", "denoiser", "pack"])
    args = parser.parse_args()
    start()
    from base_model import autoencoder, denoiser
    from base_model.progress import Checkpoints

    state = Checkpoints(args.work)
    parts = {
        "vae": lambda: autoencoder.train(state, args.vae_steps),
        "data": lambda: denoiser.make_data(args.work, autoencoder.finished(state, sample_pictures()), seed=1),
        "denoiser": lambda: denoiser.train(state, args.steps),
        "pack": lambda: pack(args.work),
    }
    for name, part in parts.items():
        if args.only in (None, name):
            part()


if __name__ == "__main__":
    main()
