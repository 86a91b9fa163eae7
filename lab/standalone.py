"""The host in a process of its own, without its server: for what trains the base model, and for the benchmarks."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path


def start_standalone(*, cpu: bool) -> None:
    """Make ComfyUI importable, with an empty base directory that goes when the process ends.

    It comes before all that imports the host.

    Args:
        cpu: Compute there even where an accelerator is.

    Raises:
        SystemExit: COMFYUI_PATH does not say where ComfyUI is.
    """
    folder = os.environ.get("COMFYUI_PATH", "")
    if not folder or not (Path(folder) / "comfy").is_dir():
        there = f"{folder} is none" if folder else "it is not set"
        raise SystemExit(f"Set COMFYUI_PATH to a ComfyUI, such as the one dev.py unpacks into .host: {there}.")
    sys.path.insert(0, folder)
    import comfy.options

    comfy.options.enable_args_parsing(False)  # or the host would parse this program's command line
    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
