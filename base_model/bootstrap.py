"""Makes the scripts here run: the host importable, and this folder a package without its parent on the path."""

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


def start() -> None:
    """Make the host importable on the CPU, and this folder as package `base_model` without its parent on the path."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "base_model")]
    spec = importlib.machinery.ModuleSpec("base_model", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / "base_model")]
    sys.modules["base_model"] = importlib.util.module_from_spec(spec)
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI, such as the one dev.py unpacks into .host.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = tempfile.mkdtemp(prefix="lora-workbench-base-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
