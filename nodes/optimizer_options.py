"""Optimizer Options: arguments of the optimizer."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.options import OptimizerOptions as Options
from ..training.settings import settings_from
from .base import Node
from .schema import OptimizerOptions as Socket
from .schema import widgets


class OptimizerOptions(Node):
    """Settings of the optimizer for LoRA Trainer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Optimizer Options",
            description="Arguments of the optimizer of LoRA Trainer, and an average of the weights.",
            search_aliases=["optimizer args", "betas", "ema", "d_coef"],
            hidden=[],
            inputs=widgets(Options),
            outputs=[Socket.Output(display_name="options", tooltip="For the input of this name of LoRA Trainer.")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Check the settings and pass them on."""
        return io.NodeOutput(settings_from(Options, inputs))
