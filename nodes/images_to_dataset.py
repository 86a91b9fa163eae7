"""ImagesToDataset: pictures from any other node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.tensors import dataset_from_images
from ..training.host.paths import temp_images_folder
from .schema import Dataset, schema


class ImagesToDataset(io.ComfyNode):
    """Makes a dataset of IMAGE batches and a list of captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Take lists, so that batches and lists both fit."""
        return schema(
            cls,
            display_name="Images To Dataset",
            description="Makes a dataset of the pictures of any image node, so that generated, cropped or edited "
            "pictures can be trained without saving them first.",
            search_aliases=["image batch to dataset", "train on images"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch or a list of pictures, of any sizes."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="One text for all, or a list with one text for each picture.",
                ),
                io.Int.Input("repeats", default=1, min=1, max=10_000, tooltip="How often each is seen in an epoch."),
                io.String.Input("trigger", default="", tooltip="Put first into each caption that lacks it."),
                io.String.Input("name", default="images", tooltip="What to call the dataset in reports and metadata."),
            ],
            outputs=[Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def execute(
        cls, images: list[Any], captions: list[str], repeats: list[int], trigger: list[str], name: list[str]
    ) -> io.NodeOutput:
        """Write the pictures to ComfyUI's temp folder and list them."""
        dataset = dataset_from_images(
            images,
            captions,
            folder=temp_images_folder(),
            repeats=repeats[0],
            trigger=trigger[0].strip(),
            name=name[0].strip() or "images",
        )
        return io.NodeOutput(dataset)
