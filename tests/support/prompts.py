"""Prompts in API format for tests: our nodes by their short names, with the defaults that the browser would send."""

from __future__ import annotations

from typing import Any

IDS = [
    "LoadDataset", "ImagesToDataset", "ConcatDatasets", "RegularizationImages", "PriorPreservation", "AutoCaption",
    "CaptionOperation", "LiveCaptions", "LossMask", "DatasetReport", "EditCaptions", "BucketImages", "LoRATrainer",
    "ApplyLoRA", "SaveLoRA",
]  # fmt: skip


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    ours = kind in IDS
    return {"class_type": f"LoRAWorkbench_{kind}" if ours else kind, "inputs": inputs}


def defaults(server: Any, kind: str) -> dict[str, Any]:
    """Every widget of one of our nodes at its default, as the front end would send it."""
    info = server.object_info(f"LoRAWorkbench_{kind}")[f"LoRAWorkbench_{kind}"]
    found = {}
    for part in ("required", "optional"):
        for name, spec in info["input"].get(part, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            if isinstance(spec[0], list):
                found[name] = options.get("default", spec[0][0] if spec[0] else "")
            elif "default" in options:
                found[name] = options["default"]
            elif spec[0] == "COMBO":
                found[name] = options["options"][0]
    return found
