"""CaptionOperation: one edit of every caption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..training.captions.edits import CaptionEdit, edit_captions
from ..training.data.dataset import Dataset as DatasetObject
from ..training.host.server import node_text
from .schema import Dataset, config_from, schema, widgets


class CaptionOperation(io.ComfyNode):
    """Changes all captions of a dataset at once; several of these in a row do several things."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One input per setting of CaptionEdit."""
        return schema(
            cls,
            display_name="Caption Operation",
            description="Does one thing to every caption: trigger first, text before or behind, replace, remove or "
            "prune tags, shuffle, underscores, brackets. Chain several in the order you want.",
            search_aliases=["tags", "trigger word", "prefix", "replace"],
            hidden=[io.Hidden.unique_id],
            inputs=[Dataset.Input("dataset"), *widgets(CaptionEdit)],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with its changed captions.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **settings: Any) -> io.NodeOutput:
        """Edit."""
        edit = config_from(CaptionEdit, settings)
        before = [picture.caption for picture in dataset.pictures]
        after = edit_captions(before, edit, [dataset.trigger_of(picture) for picture in dataset.pictures])
        if edit.operation == "trigger first":
            # What is to be kept must not be called by the trigger.
            after = [
                picture.caption if picture.is_regularization else caption
                for picture, caption in zip(dataset.pictures, after, strict=True)
            ]
            alike = tuple(replace(picture, own_trigger=None) for picture in dataset.pictures)
            dataset = replace(dataset, trigger=edit.text.strip(), pictures=alike)
        pictures = (replace(picture, caption=caption) for picture, caption in zip(dataset.pictures, after, strict=True))
        edited = dataset.with_pictures(tuple(pictures))
        changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        example = f"\n{changed[0][0]}\n→ {changed[0][1]}" if changed else ""
        node_text(cls.hidden.unique_id, f"{len(changed)} of {len(before)} captions changed.{example}")
        return io.NodeOutput(edited)
