"""Compare Checkpoints: the checkpoints of a run, painted one below the other."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..training.compare import CompareSettings, compare
from ..training.data.tensors import image_tensor
from ..training.lora import RunSummary
from ..training.settings import settings_from
from ..training.watch import SampleOptions
from .base import Node
from .schema import LoraModel, Run, SamplePrompts, widgets


class CompareCheckpoints(Node):
    """Paints the same prompts with every checkpoint of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Compare Checkpoints",
            description="Paints the same prompts from the same seeds with each checkpoint of a run and each strength, "
            "on one sheet, and hands on the checkpoint that you choose.",
            search_aliases=["xy plot", "xyz plot", "lora grid", "pick epoch", "best checkpoint"],
            is_output_node=True,  # to look at the sheet, nothing needs to follow
            inputs=[
                io.Model.Input("model", tooltip="The model without the LoRA. It is not changed."),
                io.Clip.Input("clip", tooltip="The text encoder without the LoRA. It is not changed."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                Run.Input("run", tooltip="From LoRA Trainer or Run Browser."),
                SamplePrompts.Input(
                    "sample_prompts", tooltip="From Sample Prompts. Its strength has no effect here."
                ),
                *widgets(CompareSettings),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All pictures with their labels."),
                LoraModel.Output(display_name="lora", tooltip="The LoRA of the chosen checkpoint."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, run: RunSummary, sample_prompts: SampleOptions, **inputs: Any
    ) -> io.NodeOutput:
        """Paint, and read the chosen checkpoint."""
        settings = settings_from(CompareSettings, inputs)
        with cls.cancellable() as sink:
            made = compare(model, clip, vae, run, sample_prompts, settings, sink)
        cls.show(made.text)
        sheet = image_tensor(made.sheet)
        return io.NodeOutput(sheet, made.lora, ui=ui.PreviewImage(sheet, cls=cls))
