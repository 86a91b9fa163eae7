"""The ComfyUI that a benchmark runs in: call `start_host` before importing the host."""

from __future__ import annotations

from ..standalone import start_standalone


def start_host() -> None:
    """Make ComfyUI importable in this process, on the CPU if there is no accelerator."""
    import torch

    start_standalone(cpu=not torch.cuda.is_available())
    import torch._dynamo  # torch loads these 150 MB with the first optimizer; they must not count as growth
