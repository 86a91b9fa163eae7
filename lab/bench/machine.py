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
    """The GPU's own name; empty without a GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def measured_on() -> dict[str, str]:
    """The columns of a row that name the ComfyUI and the machine."""
    import torch

    used, cores, gpu = torch.get_num_threads(), os.cpu_count(), gpu_name()
    machine = gpu or f"{platform.machine()}, {cores if used == cores else f'{used} of {cores}'} CPU cores"
    return {"comfyui": host_version(), "gpu": gpu, "machine": machine}


def describe_machine() -> str:
    """The ComfyUI and the machine, in a sentence."""
    where = measured_on()
    return f"ComfyUI {where['comfyui']}, {where['machine']}."
