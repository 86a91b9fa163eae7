"""Makes the scripts here run: the pack as a package without its parent on the path, and the host importable."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start() -> None:
    """Make the pack importable as `lora_workbench`, and the host on the CPU."""
    # Our folder `nodes` must not shadow the host's nodes.py, nor our names here any other's.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "base_model")]
    spec = importlib.machinery.ModuleSpec("lora_workbench", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["lora_workbench"] = importlib.util.module_from_spec(spec)
    from lora_workbench.training.host.standalone import start_standalone

    start_standalone(cpu=True)
