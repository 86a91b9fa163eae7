"""The host in a process of its own, without its server: for what trains the base model, and for the benchmarks."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile


def start_standalone(*, cpu: bool) -> None:
    """Make ComfyUI importable, with an empty base directory that goes when the process ends.

    It comes before all that imports the host.

    Args:
        cpu: Compute there even where an accelerator is.

    Raises:
        SystemExit: COMFYUI_PATH does not say where ComfyUI is.
    """
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI, such as the one dev.py unpacks into .host.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing(False)  # or the host would parse this program's command line
    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
