"""Loss Mask: which parts of the pictures are learned."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.masks import MaskSettings, with_masks
from ..training.data.tensors import write_masks
from ..training.errors import UserError
from ..training.events import counted
from ..training.host.paths import temp_images_folder
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class LossMask(Node):
    """Lowers the loss weight outside the masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI. Inputs are lists, so that batches and lists of masks both fit."""
        return cls.schema(
            display_name="Loss Mask",
            description="Trains what is inside the masks and less of the rest: the character without the room. White "
            "is trained. Bucket Images shows in red what counts less.",
            search_aliases=["masked training", "masked loss", "alpha mask"],
            is_input_list=True,
            inputs=[
                Dataset.Input("dataset", tooltip="The pictures to mask."),
                *widgets(MaskSettings),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="A batch or list of masks: one for all pictures, or one per picture in the dataset's "
                    "order. White is trained. After Load Image, put Invert Mask between: its mask is white where the "
                    "picture is transparent.",
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with its masks.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset: list[DatasetObject], mask: list[Any] | None = None, **inputs: list[Any]) -> io.NodeOutput:
        """Assign the masks."""
        settings = settings_from(MaskSettings, {name: values[0] for name, values in inputs.items()})
        given = write_masks(mask or [], temp_images_folder())
        masked, count = with_masks(dataset[0], settings.source, settings.outside, given)
        if not count:
            raise UserError(
                "No picture has a mask. Put cat_mask.png next to cat.jpg, save pictures with transparency, or connect "
                "masks."
            )
        text, whole = f"{counted(count, 'picture')} masked.", len(masked.pictures) - count
        if whole:
            text += f" {counted(whole, 'picture')} without a mask, trained whole."
        cls.show(text)
        return io.NodeOutput(masked)
