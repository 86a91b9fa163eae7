"""LossMask: which parts of the pictures are learned."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.masks import SOURCES, with_masks
from ..training.data.tensors import write_masks
from ..training.errors import UserError
from ..training.host.paths import temp_images_folder
from ..training.host.server import node_text
from .schema import Dataset, schema


class LossMask(io.ComfyNode):
    """Lets what is outside the masks count less."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Take lists, so that batches and lists of masks both fit."""
        return schema(
            cls,
            display_name="Loss Mask",
            description="Learns what is inside the masks and less of the rest: the character without its room. White "
            "is learned. Bucket Images shows what counts less in red.",
            search_aliases=["masked training", "masked loss", "alpha mask"],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            inputs=[
                Dataset.Input("dataset"),
                io.Combo.Input(
                    "source", options=list(SOURCES), default=SOURCES[0],
                    tooltip="mask file: cat_mask.png beside cat.jpg. transparency: of the picture itself. Where the "
                    "input mask is connected, that is used instead.",
                ),
                io.Float.Input(
                    "outside", default=0.1, min=0.0, max=1.0, step=0.05,
                    tooltip="How much what is outside counts. A little keeps what the model makes of it in order; 0 "
                    "lets go of it altogether.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="A batch or a list of masks: one for all pictures, or one for each in the dataset's order. "
                    "White is learned; Load Image gives the transparent part in white, so put Invert Mask between.",
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with its masks.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, dataset: list[DatasetObject], source: list[str], outside: list[float], mask: list[Any] | None = None
    ) -> io.NodeOutput:
        """Mask."""
        given = write_masks(mask or [], temp_images_folder())
        masked, count = with_masks(dataset[0], source[0], outside[0], given)
        if not count:
            raise UserError(
                "None of the pictures has a mask: put cat_mask.png beside cat.jpg, save pictures with transparency, or "
                "connect masks."
            )
        whole = len(masked.pictures) - count
        rest = f", {whole} without a mask are learned whole." if whole else "."
        text = f"{count} picture{'' if count == 1 else 's'} masked{rest}"
        node_text(cls.hidden.unique_id, text)
        return io.NodeOutput(masked)
