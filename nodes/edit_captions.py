"""Edit Captions: a gallery to check every picture and its caption."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.events import counted
from ..training.host.server import executing_node
from ..training.host.tokens import token_counter
from ..training.review.routes import gallery, watched
from .base import Node
from .schema import Dataset

log = logging.getLogger(__name__)


class EditCaptions(Node):
    """Shows a dataset in a gallery and applies the edits made there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI. Everything else happens in the gallery."""
        return cls.schema(
            display_name="Edit Captions",
            description="A gallery of the dataset. Edit captions, leave pictures out, rename or remove tags "
            "everywhere. Queue once to open it. Edits are saved at once in ComfyUI's output folder and used from the "
            "next queue on. Your own folder stays unchanged.",
            search_aliases=["caption editor", "gallery", "tag editor", "dataset viewer"],
            hidden=[],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="The dataset to show."),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="Counts the tokens of captions. SD 1.5 and SDXL read them in pieces of 75.",
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with the edits applied.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Change when an edit was saved since the last run, and only then."""
        return watched().fingerprint(executing_node())

    @classmethod
    def execute(cls, dataset: DatasetObject, clip: Any = None) -> io.NodeOutput:
        """Show the dataset and apply the saved edits."""
        key = gallery().show(dataset, token_counter(clip) if clip is not None else None)
        edits = gallery().edits(key)
        watched().reads(executing_node(), edits)
        edited = edits.applied_to(dataset)
        captions = sum(entry.caption is not None and not entry.excluded for entry in edits.entries().values())
        left_out = len(dataset.pictures) - len(edited.pictures)
        kept = counted(len(edited.pictures), "picture")
        log.info("LoRA Workbench: %s, %d edited, %d left out", kept, captions, left_out)
        return io.NodeOutput(edited, ui={"lora_workbench_gallery": [key]})
