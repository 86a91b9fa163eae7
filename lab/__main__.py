"""Runs a script of the lab: `python lab COMMAND [ARGUMENTS]`, with the Python that runs ComfyUI.

    prepare        write the base model and the demo's pictures into a ComfyUI
    demo           train the demo's LoRA on a running ComfyUI and draw the sheet
    bench          run the benchmarks
    gpu            check and measure the engine on a GPU machine
    train          train the base model from nothing
    evaluate       measure the base model
    docs           bring the tables of the help pages up to date

`python lab COMMAND --help` lists the arguments of each.
"""

from __future__ import annotations

import importlib
import sys

from pack import register

MODULES = {
    "prepare": "demo.prepare",
    "demo": "demo.run",
    "bench": "bench.run",
    "gpu": "bench.gpu",
    "train": "base_model.train",
    "evaluate": "judge.evaluate",
    "docs": "help_pages",
    # Single cases of the benchmarks, each in a process of its own.
    "step_time": "bench.step_time",
    "launches": "bench.launches",
    "rungs": "bench.rungs",
    "dataset_scale": "bench.dataset_scale",
}


def main() -> None:
    """Import the named script and run it."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in MODULES:
        raise SystemExit(__doc__)
    register()
    sys.path.pop(0)  # this folder: its names must not shadow other modules
    sys.argv[:2] = [f"lab {command}"]
    importlib.import_module(f"lora_workbench.lab.{MODULES[command]}").main()


main()
