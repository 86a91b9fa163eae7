"""Loss Options: loss, noise and timesteps."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.options import LossOptions as Options
from ..training.settings import settings_from
from .base import Node
from .schema import LossOptions as Socket
from .schema import widgets


class LossOptions(Node):
    """Settings of the loss for LoRA Trainer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Loss Options",
            description="How LoRA Trainer measures and weighs the loss, draws the noise and chooses noise levels.",
            search_aliases=["min snr", "noise offset", "huber", "timesteps"],
            hidden=[],
            inputs=widgets(Options),
            outputs=[Socket.Output(display_name="options", tooltip="For the input of this name of LoRA Trainer.")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Check the settings and pass them on."""
        return io.NodeOutput(settings_from(Options, inputs))
