"""Live Captions: captions that vary each time a picture is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..training.captions.live import live_caption
from ..training.data.dataset import CaptionPolicy
from ..training.data.dataset import Dataset as DatasetObject
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets


class LiveCaptions(Node):
    """Gives a dataset the caption policy that the trainer follows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Live Captions",
            description="Varies captions each time the trainer sees a picture: shuffles and drops tags, drops whole "
            "captions, draws options of {a|b} or single lines. The trigger always stays. JSON is not changed.",
            search_aliases=["caption dropout", "shuffle tags", "keep tokens", "wildcards"],
            inputs=[
                Dataset.Input("dataset", tooltip="The captions to vary."),
                *widgets(CaptionPolicy),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with its caption policy.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Set the policy and show examples made from the first caption."""
        # It was one switch with the wildcards (see also web/live_captions.js).
        policy = settings_from(CaptionPolicy, {"draw_one_line": inputs["wildcards"], **inputs})
        shown = next((picture for picture in dataset.pictures if picture.caption), dataset.pictures[0])
        trigger = dataset.trigger_of(shown)
        drawn = dict.fromkeys(live_caption(shown.caption, policy, trigger, 0, time) for time in range(20))
        cls.show("Examples:\n" + "\n".join(list(drawn)[:4]))
        pictures = tuple(replace(picture, own_policy=None) for picture in dataset.pictures)
        return io.NodeOutput(replace(dataset, policy=policy, pictures=pictures))
