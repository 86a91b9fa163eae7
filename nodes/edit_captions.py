"""EditCaptions: the gallery, in which a person looks at every picture and its caption."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.host.server import executing_node
from ..training.host.tokens import token_counter
from ..training.review.routes import gallery, watched
from .schema import Dataset, schema

log = logging.getLogger(__name__)


class EditCaptions(io.ComfyNode):
    """Shows a dataset in a grid and hands on what was made of it there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The dataset; everything else happens in the gallery."""
        return schema(
            cls,
            display_name="Edit Captions",
            description="A gallery of the dataset: look at every picture and its caption, edit them, leave pictures "
            "out, rename or remove tags everywhere. Queue once to see it. Edits are saved at once, beside ComfyUI's "
            "outputs and not into your folder, and are used from the next queue on.",
            search_aliases=["caption editor", "gallery", "tag editor", "dataset viewer"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="What is to be looked at."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Counts the tokens of captions; SD1.5 and SDXL cut them in 75s."
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with the edits in it.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Change when an edit was saved since the last run, and only then."""
        return watched().fingerprint(executing_node())

    @classmethod
    def execute(cls, dataset: DatasetObject, clip: Any = None) -> io.NodeOutput:
        """Show the dataset and apply what is saved."""
        key = gallery().show(dataset, token_counter(clip) if clip is not None else None)
        edits = gallery().edits(key)
        watched().reads(executing_node(), edits)
        edited = edits.applied_to(dataset)
        captions = sum(entry.caption is not None and not entry.excluded for entry in edits.entries().values())
        left_out = len(dataset.pictures) - len(edited.pictures)
        log.info("LoRA Workbench: %d pictures, %d edited, %d left out", len(edited.pictures), captions, left_out)
        return io.NodeOutput(edited, ui={"lora_workbench_gallery": [key]})
