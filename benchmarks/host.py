"""The ComfyUI that a benchmark runs in: `start_host` comes before all that imports the pack or the host."""

from __future__ import annotations

import atexit
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start_host() -> None:
    """Make ComfyUI importable in this process, on the CPU unless an accelerator is there, and the pack with it."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options
    import torch

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-bench-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
    import torch._dynamo  # torch loads it with the first optimizer: 150 MB that are no trainer's growth

    spec = importlib.machinery.ModuleSpec("lora_workbench", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["lora_workbench"] = importlib.util.module_from_spec(spec)
