"""Held-out Pictures: pictures that a run is measured on and does not train."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.errors import SettingError
from ..training.preflight import refuse_unmeasurable
from ..training.settings import settings_from
from ..training.watch import HeldOut, HeldOutSettings
from .base import Node
from .schema import Dataset, widgets
from .schema import HeldOut as Socket


class HeldOutPictures(Node):
    """Pictures that LoRA Trainer measures and does not train."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Held-out Pictures",
            description="Measures the loss of pictures that are not trained. If it rises while the training loss "
            "falls, the LoRA overfits.",
            search_aliases=["validation", "validation loss", "overfitting", "eval"],
            hidden=[],
            inputs=[
                *widgets(HeldOutSettings),
                Dataset.Input(
                    "dataset", optional=True, tooltip="Pictures to measure besides the share, from Bucket Images."
                ),
            ],
            outputs=[Socket.Output(display_name="held_out", tooltip="For the input of this name of LoRA Trainer.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject | None = None, **inputs: Any) -> io.NodeOutput:
        """Check the settings and pass them on."""
        settings = settings_from(HeldOutSettings, inputs)
        if dataset is not None:
            refuse_unmeasurable(dataset)
        elif not settings.share:
            raise SettingError("share is 0 and no dataset is connected, so nothing is held out. Set share to 10.")
        return io.NodeOutput(HeldOut(settings.every_steps, settings.share / 100, dataset))
