"""The ComfyUI that a benchmark runs in: `start_host` comes before all that imports the host."""

from __future__ import annotations

from ..standalone import start_standalone


def start_host() -> None:
    """Make ComfyUI importable in this process, on the CPU unless an accelerator is there."""
    import torch

    start_standalone(cpu=not torch.cuda.is_available())
    import torch._dynamo  # torch loads it with the first optimizer: 150 MB that are no trainer's growth
