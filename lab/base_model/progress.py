"""State files of a long training, so that it continues after a stop, and its messages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...training.disk import sweep_unfinished, write_whole


def say(text: str) -> None:
    """Print a line at once, for a log that someone follows."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def save_whole(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        SafetensorError, OSError: It cannot be written; a full disk raises either.
    """

    def write(part: Path) -> None:
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors, part)
        part.chmod(mode)  # safetensors makes files that only their owner can read

    sweep_unfinished(file.parent, deep=False)  # a killed writer leaves hundreds of megabytes
    write_whole(file, write)


def warm_up_from(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Mark an optimizer as fresh at this step, in its saved state."""
    for group in optimizer.param_groups:
        group["fresh_at"] = step


def warm_up(optimizer: torch.optim.Optimizer, step: int, steps: int) -> float:
    """The fraction of the learning rate at a step; it rises over the first `steps` of a fresh optimizer."""
    return min(1.0, (step - optimizer.param_groups[0].get("fresh_at", 0) + 1) / steps)


SAVE_EVERY = 500  # steps
FROM_NOTHING = "from_nothing"  # a file that marks a training begun with --fresh


class Checkpoints:
    """A folder with one state file for each training."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def save(self, name: str, step: int, **parts: Any) -> None:
        """Write the state of modules and optimizers, whole or not at all."""
        states = {"step": step, **{key: part.state_dict() for key, part in parts.items()}}
        write_whole(self.folder / f"{name}.pt", lambda file: torch.save(states, file))

    def forget(self) -> None:
        """Delete all states and their training data, and ignore the shipped files from now on."""
        for pattern in ("vae.pt", "denoiser-*.pt", "latents-*.safetensors", "text-*.safetensors"):
            for file in self.folder.glob(pattern):
                file.unlink()
        (self.folder / FROM_NOTHING).touch()

    def ended(self) -> None:
        """Mark a training from nothing as ended: later ones may continue from the shipped files."""
        (self.folder / FROM_NOTHING).unlink(missing_ok=True)

    @property
    def from_nothing(self) -> bool:
        """Whether the training in this folder began without the shipped files."""
        return (self.folder / FROM_NOTHING).exists()

    def load(self, name: str, **parts: Any) -> int:
        """Read states back; returns the step, 0 if there is no state."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return 0
        found = torch.load(path, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(found[key])
        return int(found["step"])
