"""Concat Datasets: several concepts in one LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.mixing import ConcatSettings, concat
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class ConcatDatasets(Node):
    """Joins two datasets, each with a weight. Chain several nodes for more datasets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Concat Datasets",
            description="Joins two datasets, for two concepts in one LoRA. The weights set how often each is seen.",
            search_aliases=["merge datasets", "multiple concepts"],
            inputs=[
                Dataset.Input("first", tooltip="The first dataset. Its name and background are used for both."),
                Dataset.Input("second", tooltip="The second dataset. It keeps its own trigger and live captions."),
                *widgets(ConcatSettings),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="Both datasets as one.")],
        )

    @classmethod
    def execute(cls, first: DatasetObject, second: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Join the datasets."""
        weights = settings_from(ConcatSettings, inputs)
        both = concat([first, second], [weights.first_weight, weights.second_weight])
        cls.show(both.describe())
        return io.NodeOutput(both)
