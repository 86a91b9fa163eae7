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
            inputs=widgets(
                SampleOptions,
                sampler={"options": samplers(), "default": "euler"},
                scheduler={"options": schedulers(), "default": "normal"},
            ),
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
