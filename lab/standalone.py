"""The host without its server, for training the base model and for the benchmarks."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path


def start_standalone(*, cpu: bool) -> None:
    """Make ComfyUI importable, with an empty base directory that is deleted when the process ends.

    Call it before importing the host.

    Args:
        cpu: Compute on the CPU even with an accelerator.

    Raises:
        SystemExit: COMFYUI_PATH does not name a ComfyUI.
    """
    folder = os.environ.get("COMFYUI_PATH", "")
    if not folder or not (Path(folder) / "comfy").is_dir():
        wrong = f"COMFYUI_PATH is {folder!r}, which is not a ComfyUI." if folder else "COMFYUI_PATH is not set."
        raise SystemExit(f"{wrong} Set it to a ComfyUI folder, such as the one dev.py unpacks into .host.")
    sys.path.insert(0, folder)
    import comfy.options

    comfy.options.enable_args_parsing(False)  # or the host would parse this program's command line
    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
