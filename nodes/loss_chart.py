"""Loss Chart: how a run went, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io, ui

from ..training.data.tensors import image_tensor
from ..training.errors import UserError
from ..training.lora import RunSummary
from ..training.review.loss_chart import ChartSettings, loss_chart
from ..training.run.past import told_by, told_of
from ..training.settings import settings_from
from .base import Node
from .schema import LossMap, Run, widgets


class LossChart(Node):
    """Draws the loss of a run with everything that happened in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Loss Chart",
            description="Draws the loss, the learning rate, the held-out loss, checkpoints and samples of a run.",
            search_aliases=["plot loss", "loss graph", "training curve"],
            hidden=[],
            is_output_node=True,  # it shows its picture
            inputs=[
                Run.Input("run", optional=True, tooltip="The run to draw, from LoRA Trainer."),
                LossMap.Input(
                    "loss_map", optional=True, tooltip="Losses to draw without a run, also from ComfyUI's Train LoRA."
                ),
                *widgets(ChartSettings),
            ],
            outputs=[io.Image.Output(display_name="chart", tooltip="The chart.")],
        )

    @classmethod
    def execute(
        cls, run: RunSummary | None = None, loss_map: Mapping[str, Sequence[float]] | None = None, **inputs: Any
    ) -> io.NodeOutput:
        """Draw the chart."""
        settings = settings_from(ChartSettings, inputs)
        if run is not None:
            told, title = told_by(run), f"{run.name}: loss"
        elif loss_map is not None:
            told, title = told_of(loss_map.get("loss", ())), "Loss"
        else:
            raise UserError("Neither run nor loss_map is connected. Connect one of them.")
        picture = image_tensor(loss_chart(told, settings, title))
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))
