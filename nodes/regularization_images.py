"""Regularization Images: pictures of the class, by which the model keeps what it knows."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.mixing import RegularizationSettings, with_regularization
from ..training.events import counted
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class RegularizationImages(Node):
    """Adds pictures of the class to a dataset, balanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Regularization Images",
            description="Adds pictures of the class, such as other dogs or people, so that the model still "
            "paints them as before. Caption them without the trigger. The share is balanced for you: from many "
            "pictures, each epoch uses different ones.",
            search_aliases=["prior preservation", "reg images", "class images"],
            inputs=[
                Dataset.Input("dataset", tooltip="The pictures to learn."),
                Dataset.Input("regularization", tooltip="The pictures of the class, captioned without the trigger."),
                *widgets(RegularizationSettings),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="Both datasets as one.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, regularization: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Add the regularization pictures."""
        settings = settings_from(RegularizationSettings, inputs)
        mixed = with_regularization(
            dataset,
            regularization,
            weight=settings.weight,
            share=settings.share,
            preserves_prior=settings.preserves_prior,
        )
        learned = counted(len(dataset.pictures), "picture")
        cls.show(f"{learned} to learn, {len(regularization.pictures)} for regularization. {mixed.describe()}")
        return io.NodeOutput(mixed)
