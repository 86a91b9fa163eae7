"""ApplyLoRA: the trained LoRA on a MODEL and CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.host.apply import apply_lora
from .schema import LoraModel, schema

_STRENGTH: dict[str, Any] = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}


class ApplyLoRA(io.ComfyNode):
    """Puts a LORA_MODEL on copies of MODEL and CLIP, as LoraLoader does with a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Two strengths, as LoraLoader has."""
        return schema(
            cls,
            display_name="Apply LoRA",
            description="Puts a LoRA straight from the trainer on a model: the same result as saving it and loading "
            "the file with LoraLoader.",
            search_aliases=["lora loader"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", optional=True, tooltip="Needed only for LoRAs that have text-encoder layers."),
                LoraModel.Input("lora"),
                io.Float.Input("strength_model", **_STRENGTH, tooltip="0 leaves the model as it is, 1 is as trained."),
                io.Float.Input("strength_clip", **_STRENGTH, tooltip="The same for the text encoder's layers."),
            ],
            outputs=[io.Model.Output(display_name="model"), io.Clip.Output(display_name="clip")],
        )

    @classmethod
    def execute(
        cls, model: Any, lora: Any, strength_model: float, strength_clip: float, clip: Any = None
    ) -> io.NodeOutput:
        """Patch copies."""
        return io.NodeOutput(*apply_lora(model, clip, lora, strength_model, strength_clip))
