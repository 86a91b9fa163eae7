"""PriorPreservation: the model keeps what it knows of the class, without further pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.mixing import with_prior_preservation
from ..training.host.server import node_text
from .schema import Dataset, schema


class PriorPreservation(io.ComfyNode):
    """Shows each picture once more without the trigger, to be seen as the model sees it without the LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the pictures are called without the trigger, and how much that counts."""
        return schema(
            cls,
            display_name="Prior Preservation",
            description="Keeps what is learned under its trigger, without regularisation images: each picture is shown "
            "once more under a caption without the trigger, and what the model makes of that without the LoRA is to "
            "stay. Takes half as long again for each such picture.",
            search_aliases=["class preservation", "differential output preservation", "reg without images"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Dataset.Input("dataset", tooltip="What is to be learned; it needs a trigger, or prompts here."),
                io.String.Input(
                    "class_word", default="",
                    tooltip="Put in the place of the trigger in every caption: a woman, a dog, a vase. Empty: the "
                    "trigger is left out.",
                ),
                io.String.Input(
                    "prompts", default="", multiline=True,
                    tooltip="Captions to use instead, one on a line: what the model shall go on painting as it does.",
                ),
                io.Float.Input(
                    "weight", default=5.0, min=0.01, max=100.0, step=0.05,
                    tooltip="How much their loss counts beside that of the others; it is small, so this is not.",
                ),
                io.Float.Input(
                    "share", default=1.0, min=0.01, max=10.0, step=0.05,
                    tooltip="How many of them are seen for each picture to learn.",
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with what is to be kept.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, dataset: DatasetObject, class_word: str, prompts: str, weight: float, share: float
    ) -> io.NodeOutput:
        """Add them."""
        mixed = with_prior_preservation(dataset, class_word, prompts.splitlines(), weight=weight, share=share)
        kept = next(picture.caption for picture in reversed(mixed.pictures) if picture.is_regularization)
        node_text(cls.hidden.unique_id, f'{mixed.describe()} Kept, for example: "{kept}"')
        return io.NodeOutput(mixed)
