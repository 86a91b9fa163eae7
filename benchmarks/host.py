"""The ComfyUI that a benchmark runs in: `start_host` comes before all that imports the pack or the host."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start_host() -> None:
    """Make the pack importable in this process, and ComfyUI, on the CPU unless an accelerator is there."""
    spec = importlib.machinery.ModuleSpec("lora_workbench", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["lora_workbench"] = importlib.util.module_from_spec(spec)
    import torch
    from lora_workbench.training.host.standalone import start_standalone

    start_standalone(cpu=not torch.cuda.is_available())
    import torch._dynamo  # torch loads it with the first optimizer: 150 MB that are no trainer's growth
