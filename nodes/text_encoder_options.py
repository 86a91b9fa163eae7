"""Text Encoder Options: which text encoders are trained."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.options import TextEncoderOptions as Options
from ..training.settings import settings_from
from .base import Node
from .schema import TextEncoderOptions as Socket
from .schema import widgets


class TextEncoderOptions(Node):
    """Settings of the text encoders for LoRA Trainer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Text Encoder Options",
            description="Trains text encoders together with the model, each at its own learning rate. New words are "
            "learned faster, and overfit sooner.",
            search_aliases=["train clip", "text encoder lr", "te lr"],
            hidden=[],
            inputs=widgets(Options),
            outputs=[Socket.Output(display_name="options", tooltip="For the input of this name of LoRA Trainer.")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Check the settings and pass them on."""
        return io.NodeOutput(settings_from(Options, inputs))
