"""Prior Preservation: the model keeps what it knows of the class, without further pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.mixing import PriorPreservationSettings, with_prior_preservation
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class PriorPreservation(Node):
    """Adds each picture once more without the trigger, trained towards the original model's own prediction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Prior Preservation",
            description="Keeps the model as it is wherever the trigger is not used, without regularization images. "
            "Each picture is also trained without the trigger, towards the original model's own prediction. These "
            "steps take about 50% longer.",
            search_aliases=["class preservation", "differential output preservation", "reg without images"],
            inputs=[
                Dataset.Input("dataset", tooltip="The pictures to learn. They need a trigger, or prompts below."),
                *widgets(PriorPreservationSettings),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with the preserved pictures added.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Add the preserved pictures."""
        settings = settings_from(PriorPreservationSettings, inputs)
        mixed = with_prior_preservation(
            dataset, settings.class_word, settings.prompts.splitlines(), weight=settings.weight, share=settings.share
        )
        example = next(picture.caption for picture in reversed(mixed.pictures) if picture.is_regularization)
        cls.show(f'{mixed.describe()} Preserved, for example: "{example}"')
        return io.NodeOutput(mixed)
