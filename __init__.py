"""LoRA Workbench: train a LoRA inside the ComfyUI graph, on the model that is already loaded."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
