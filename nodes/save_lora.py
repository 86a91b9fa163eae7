"""Save LoRA: the LoRA as a file for other programs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.files.save import SaveSettings, save_lora
from ..training.host.server import executing_node, node_text
from ..training.lora import LoraModel as TrainedLora
from ..training.settings import settings_from
from .base import Node
from .schema import LoraModel, valid_name, widgets


class SaveLoRA(Node):
    """Writes a LORA_MODEL into ComfyUI's models/loras and reads it back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Save LoRA",
            description="Writes the LoRA into ComfyUI's models/loras, where Load LoRA lists it at once. The file has "
            "kohya's names and metadata. It is read back and checked before it counts as saved.",
            search_aliases=["export lora", "safetensors"],
            hidden=[],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="A LoRA from LoRA Trainer or from ComfyUI's own trainer."),
                *widgets(SaveSettings),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Path of the file.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuse an impossible file name before anything runs."""
        return valid_name(name, may_be_empty=True)

    @classmethod
    def execute(cls, lora: Any, **inputs: Any) -> io.NodeOutput:
        """Write the file, read it back, show its path and the run it comes from."""
        settings = settings_from(SaveSettings, inputs)
        path = save_lora(
            lora,
            settings.name,
            precision=settings.precision,
            layout=settings.format.lower(),
            overwrite=settings.overwrite,
        )
        lines = [str(path), *([lora.origin] if isinstance(lora, TrainedLora) and lora.origin else [])]
        node_text(executing_node() or None, "\n".join(lines))
        return io.NodeOutput(str(path), ui={"text": lines})
