"""RegularizationImages: pictures by which the model keeps what it knows."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.mixing import PRESERVES_PRIOR, with_regularization
from ..training.host.server import node_text
from .schema import Dataset, schema


class RegularizationImages(io.ComfyNode):
    """Adds pictures of the class to a dataset, balanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Two datasets and how much the second counts."""
        return schema(
            cls,
            display_name="Regularization Images",
            description="Adds pictures of the class (other dogs, other people), captioned without the trigger, so that "
            "the model goes on painting them as it does. Balanced by itself: of many, other ones are seen each epoch.",
            search_aliases=["prior preservation", "reg images", "class images"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Dataset.Input("dataset", tooltip="What is to be learned."),
                Dataset.Input("regularization", tooltip="What is to be kept; its captions lack the trigger."),
                io.Float.Input(
                    "weight", default=5.0, min=0.01, max=100.0, step=0.05,
                    tooltip="How much their loss counts beside that of the others. 5 suits the target as the model "
                    "paints them, whose loss is small; 1 suits as the pictures are.",
                ),
                io.Float.Input(
                    "share", default=1.0, min=0.01, max=10.0, step=0.05,
                    tooltip="How many of them are seen for each picture to learn.",
                ),
                io.Combo.Input(
                    "target", options=list(PRESERVES_PRIOR), default="as the model paints them",
                    tooltip="What is to come of them: what the model makes of each, noised, without the LoRA, which "
                    "keeps it as it is; or the pictures themselves, as kohya has it, which may teach it as well.",
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="Both together.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        dataset: DatasetObject,
        regularization: DatasetObject,
        weight: float,
        share: float,
        target: str = "as the model paints them",
    ) -> io.NodeOutput:
        """Put them together."""
        mixed = with_regularization(
            dataset, regularization, weight=weight, share=share, preserves_prior=PRESERVES_PRIOR[target]
        )
        learned, kept = len(dataset.pictures), len(regularization.pictures)
        node_text(cls.hidden.unique_id, f"{learned} to learn, {kept} to keep. {mixed.describe()}")
        return io.NodeOutput(mixed)
