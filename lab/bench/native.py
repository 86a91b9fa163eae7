"""ComfyUI's own TrainLoraNode, called as its executor calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def native_lora(model: Any, latents: Sequence[Any], positive: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """Train with the host's node, at its defaults except for `settings`.

    Args:
        model: A MODEL.
        latents: One LATENT for each picture. With one alone the node of 0.3.75 stops with an error.
        positive: One CONDITIONING for each picture.
        settings: Inputs of the node.

    Returns:
        Its LORA_MODEL.
    """
    import comfy_extras.nodes_train as native
    import torch

    # The node draws its LoRA from the global generator and ignores its seed input.
    torch.manual_seed(settings.get("seed", 0))
    wanted = {"model": model, **settings}
    schema = native.TrainLoraNode.define_schema()
    inputs = {i.id: wanted.get(i.id, getattr(i, "default", None)) for i in schema.inputs}
    lists = {name: [value] for name, value in inputs.items()}
    lists |= {"latents": list(latents), "positive": list(positive)}
    output = native.TrainLoraNode.execute(**lists)
    # 0.3.75 hands on the patched MODEL first.
    return next(value for value in output.args if isinstance(value, dict) and any("lora" in str(k) for k in value))
