"""Caption Operation: one edit of every caption."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.captions.edits import CaptionEdit, edit_dataset, left_as_json
from ..training.data.dataset import Dataset as DatasetObject
from ..training.events import counted
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class CaptionOperation(Node):
    """Edits all captions of a dataset at once. Several nodes in a row do several edits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Caption Operation",
            description="Does one edit to every caption: move the trigger first, add or replace text, remove or prune "
            "tags, shuffle, convert underscores or brackets. Chain several nodes for several edits.",
            search_aliases=["tags", "trigger word", "prefix", "replace"],
            inputs=[Dataset.Input("dataset", tooltip="The captions to edit."), *widgets(CaptionEdit)],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with the edited captions.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Edit the captions and show the first change."""
        edit = settings_from(CaptionEdit, inputs)
        edited, changed = edit_dataset(dataset, edit)
        example = f"\n{changed[0][0]}\n→ {changed[0][1]}" if changed else ""
        left = left_as_json(dataset, edit)
        json = f" {counted(left, 'JSON caption')} left unchanged." if left else ""
        cls.show(f"{len(changed)} of {counted(len(dataset.pictures), 'caption')} changed.{json}{example}")
        return io.NodeOutput(edited)
