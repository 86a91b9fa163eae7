"""Apply LoRA: the trained LoRA on a MODEL and CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.host.apply import ApplySettings, apply_lora, has_text_layers
from ..training.host.server import executing_node, node_text
from ..training.settings import settings_from
from .base import Node
from .schema import LoraModel, widgets


class ApplyLoRA(Node):
    """Applies a LORA_MODEL to copies of MODEL and CLIP, as LoraLoader does with a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Apply LoRA",
            description="Applies a LoRA from the trainer to a model. The result equals saving the LoRA and loading the "
            "file with Load LoRA.",
            search_aliases=["lora loader"],
            hidden=[],
            inputs=[
                io.Model.Input("model", tooltip="The model to apply the LoRA to. It is not changed; a copy is."),
                io.Clip.Input("clip", optional=True, tooltip="Needed only for a LoRA with text-encoder layers."),
                LoraModel.Input("lora", tooltip="A LoRA from LoRA Trainer or from ComfyUI's own trainer."),
                *widgets(ApplySettings),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, lora: Any, clip: Any = None, **inputs: Any) -> io.NodeOutput:
        """Patch copies of MODEL and CLIP."""
        strengths = settings_from(ApplySettings, inputs)
        if clip is not None and strengths.strength_clip != 0 and not has_text_layers(clip, lora):
            node_text(
                executing_node(),
                "strength_clip has no effect: no layer of this LoRA belongs to this CLIP. Train its text encoders with "
                "Text Encoder Options.",
            )
        return io.NodeOutput(*apply_lora(model, clip, lora, strengths.strength_model, strengths.strength_clip))
