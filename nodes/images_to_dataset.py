"""Images To Dataset: pictures from any other node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.tensors import ImagesSettings, dataset_from_images
from ..training.host.paths import temp_images_folder
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class ImagesToDataset(Node):
    """Makes a dataset from IMAGE batches and a list of captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI. Inputs are lists, so that batches and lists of pictures both fit."""
        return cls.schema(
            display_name="Images To Dataset",
            description="Makes a dataset from the pictures of any node. Generated, cropped or edited pictures can be "
            "trained without saving them first.",
            search_aliases=["image batch to dataset", "train on images"],
            hidden=[],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch or a list of pictures. Sizes may differ."),
                *widgets(ImagesSettings),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The pictures with their captions.")],
        )

    @classmethod
    def execute(cls, images: list[Any], captions: list[str], **inputs: list[Any]) -> io.NodeOutput:
        """Write the pictures to ComfyUI's temp folder and list them."""
        settings = settings_from(ImagesSettings, {name: values[0] for name, values in inputs.items()})
        dataset = dataset_from_images(
            images,
            captions,
            folder=temp_images_folder(),
            repeats=settings.repeats,
            trigger=settings.trigger.strip(),
            name=settings.name.strip() or "images",
        )
        return io.NodeOutput(dataset)
