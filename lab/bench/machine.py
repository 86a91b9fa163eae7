"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def host_version() -> str:
    """Version of the ComfyUI that is measured."""
    text = (Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'"([\d.]+)"', text)
    return found.group(1) if found else "unknown"


def gpu_name() -> str:
    """What the GPU calls itself; empty where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def describe_machine() -> str:
    """The host and the machine, in a sentence."""
    import torch

    used, cores = torch.get_num_threads(), os.cpu_count()
    machine = gpu_name() or f"{platform.machine()}, {cores if used == cores else f'{used} of {cores}'} CPU cores"
    return f"ComfyUI {host_version()}, {machine}."


def table_name(what: str) -> str:
    """Name of a table in docs/benchmarks.md: one for each host, and for each GPU."""
    return f"{what} {host_version()} {gpu_name()}".strip()
