"""Makes the pack importable as `lora_workbench`, wherever it lies and without running its `__init__`."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def register(name: str = "lora_workbench", folder: Path = ROOT) -> None:
    """Make `folder` importable as package `name`.

    Not through `sys.path`: the pack's folder `nodes` would shadow ComfyUI's own nodes.py. The pack's `__init__` needs a
    running host, which the scripts here and the unit tests do not have.
    """
    if name not in sys.modules:
        spec = ModuleSpec(name, loader=None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = module_from_spec(spec)
