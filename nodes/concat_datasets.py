"""ConcatDatasets: several concepts in one LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.mixing import concat
from ..training.host.server import node_text
from .schema import Dataset, schema


class ConcatDatasets(io.ComfyNode):
    """Puts two datasets together, each with a weight; chain several for more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Two datasets and their weights."""
        weight = {"default": 1.0, "min": 0.01, "max": 100.0, "step": 0.05}
        return schema(
            cls,
            display_name="Concat Datasets",
            description="Puts two datasets together. A weight makes one be seen more or less often; parts of a repeat "
            "take turns, so that no picture is left out.",
            search_aliases=["merge datasets", "multiple concepts"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Dataset.Input("first", tooltip="Its trigger and background count."),
                Dataset.Input("second"),
                io.Float.Input("first_weight", **weight, tooltip="Times its own repeats."),
                io.Float.Input("second_weight", **weight, tooltip="Times its own repeats."),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="Both together.")],
        )

    @classmethod
    def execute(
        cls, first: DatasetObject, second: DatasetObject, first_weight: float, second_weight: float
    ) -> io.NodeOutput:
        """Put them together."""
        both = concat([first, second], [first_weight, second_weight])
        node_text(cls.hidden.unique_id, both.describe())
        return io.NodeOutput(both)
