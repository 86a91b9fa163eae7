"""Sample Prompts: the pictures that a run makes of itself."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.host.sampling import samplers, schedulers
from ..training.settings import settings_from
from ..training.watch import SampleOptions
from .base import Node
from .schema import SamplePrompts as Socket
from .schema import widgets


class SamplePrompts(Node):
    """Prompts that LoRA Trainer paints during a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Sample Prompts",
            description="Prompts that LoRA Trainer paints during a run, to see what the LoRA has learned. Compare "
            "Checkpoints paints them after it.",
            search_aliases=["sample prompts", "preview", "validation prompts", "sample while training"],
            hidden=[],
            inputs=_inputs(),
            outputs=[
                Socket.Output(
                    display_name="sample_prompts", tooltip="For LoRA Trainer and Compare Checkpoints."
                )
            ],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Check the prompts and pass them on."""
        return io.NodeOutput(settings_from(SampleOptions, inputs))


def _inputs() -> list[Any]:
    lists = {"sampler": (samplers(), "euler"), "scheduler": (schedulers(), "normal")}
    made = widgets(
        SampleOptions, **{name: {"options": options, "default": first} for name, (options, first) in lists.items()}
    )
    for widget in made:
        if widget.id in lists:  # for the help page, as the lists grow with the host
            widget.extra_dict = {**widget.extra_dict, "lora_workbench_choices": "those of KSampler"}
    return made
