"""Prompts in API format for tests: our nodes by their short names, with the defaults that the browser would send."""

from __future__ import annotations

from typing import Any

from .session import AGAIN

IDS = [
    "LoadDataset", "ImagesToDataset", "ConcatDatasets", "RegularizationImages", "PriorPreservation", "AutoCaption",
    "CaptionOperation", "LiveCaptions", "LossMask", "DatasetReport", "EditCaptions", "BucketImages", "LoRATrainer",
    "ApplyLoRA", "SaveLoRA", "EstimateTraining", "TextEncoderOptions",
    "LossOptions", "OptimizerOptions", "LoadLoRA", "SamplePrompts", "HeldOutPictures", "LossChart",
    "CompareCheckpoints", "RunBrowser", "LoadCheckpoint",
]  # fmt: skip


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    ours = kind in IDS
    return {"class_type": f"LoRAWorkbench_{kind}" if ours else kind, "inputs": inputs}


def defaults(server: Any, kind: str) -> dict[str, Any]:
    """Every widget of one of our nodes at its default, as the front end would send it.

    LoRA Trainer trains again: all tests share the server's runs, and one must not get another's.
    """
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
    return found | (AGAIN if kind == "LoRATrainer" else {})


def set_values(prompt: dict[str, Any], class_type: str, **values: Any) -> None:
    """Change inputs of every node of one kind, except those that come from another node.

    Args:
        prompt: In API format; changed in place.
        class_type: Which nodes.
        values: The inputs; ones that a node lacks are an error.

    Raises:
        ValueError: No node of that kind is there, or it has no such input.
    """
    nodes = [node for node in prompt.values() if node["class_type"] == class_type]
    if not nodes:
        raise ValueError(f"The workflow has no node {class_type!r}.")
    for node in nodes:
        for name, value in values.items():
            if name not in node["inputs"]:
                raise ValueError(f"{class_type!r} has no input {name!r}.")
            if not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
