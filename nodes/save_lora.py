"""SaveLoRA: the LoRA as a file every other program reads."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..training.files.save import save_lora
from .schema import LoraModel, schema, valid_name


class SaveLoRA(io.ComfyNode):
    """Writes a LORA_MODEL into ComfyUI's models/loras and reads it back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Name, precision and layout."""
        return schema(
            cls,
            display_name="Save LoRA",
            description="Writes the LoRA into ComfyUI's models/loras, where LoraLoader finds it at once, with kohya's "
            "names and metadata. The file is read back and checked before it counts as saved.",
            search_aliases=["export lora", "safetensors"],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora"),
                io.String.Input("name", default="my_lora", tooltip="File name, without folder and .safetensors."),
                io.Combo.Input(
                    "precision",
                    options=["fp16", "bf16", "fp32"],
                    default="fp16",
                    tooltip="fp16 is what everyone shares; fp32 keeps every bit at twice the size.",
                ),
                io.Combo.Input(
                    "format",
                    options=["kohya", "PEFT"],
                    default="kohya",
                    tooltip="kohya is read by ComfyUI, Forge and A1111; PEFT by diffusers and peft.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off: a name that is taken gets a number. On: the old file is replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuse a name that cannot be a file's before anything runs."""
        return valid_name(name)

    @classmethod
    def execute(cls, lora: Any, name: str, precision: str, format: str, overwrite: bool) -> io.NodeOutput:
        """Write, read back, tell where."""
        path = str(save_lora(lora, name, precision=precision, layout=format.lower(), overwrite=overwrite))
        return io.NodeOutput(path, ui=ui.PreviewText(path))
