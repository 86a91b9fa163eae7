"""Load LoRA Checkpoint: the LoRA as it was at one step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..training.errors import UserError
from ..training.files.load import described
from ..training.lora import RunSummary
from ..training.run.checkpoints import LoadCheckpointSettings, checkpoints, chosen, load, wanted
from ..training.settings import settings_from
from .base import Node
from .schema import LoraModel, Run, widgets


class LoadCheckpoint(Node):
    """Reads a checkpoint of a run from its folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Load LoRA Checkpoint",
            description="Loads the LoRA of a run as it was at a step or after an epoch. LoRA Trainer saves checkpoints "
            "by save_every_steps and save_every_epochs.",
            search_aliases=["checkpoint", "epoch", "intermediate lora"],
            inputs=[
                Run.Input("run", tooltip="A run from LoRA Trainer or Run Browser."),
                *widgets(LoadCheckpointSettings),
            ],
            outputs=[LoraModel.Output(display_name="lora", tooltip="The LoRA, for Apply LoRA and Save LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, at: str | None) -> bool | str:
        """Refuse a text that names no checkpoint before anything runs."""
        try:
            if at is not None:  # a text from another node is not known yet
                wanted(at)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, run: RunSummary, **inputs: Any) -> io.NodeOutput:
        """Read the file."""
        at = settings_from(LoadCheckpointSettings, inputs).at
        checkpoint = chosen(checkpoints(Path(run.folder)), at)
        lora = load(checkpoint)
        cls.show(f"{checkpoint.label}\n{described(lora)}")
        return io.NodeOutput(lora)
