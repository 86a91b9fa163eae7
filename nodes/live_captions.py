"""LiveCaptions: how captions change from one time a picture is seen to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..training.captions.live import live_caption
from ..training.data.dataset import CaptionPolicy
from ..training.data.dataset import Dataset as DatasetObject
from ..training.host.server import node_text
from .schema import Dataset, config_from, schema, widgets


class LiveCaptions(io.ComfyNode):
    """Gives a dataset its caption policy; the trainer follows it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One input per setting of CaptionPolicy."""
        return schema(
            cls,
            display_name="Live Captions",
            description="Shuffles and drops tags, drops captions, draws {a|b} and one line of several, anew each time "
            "the trainer sees a picture. The trigger always stays.",
            search_aliases=["caption dropout", "shuffle tags", "keep tokens", "wildcards"],
            hidden=[io.Hidden.unique_id],
            inputs=[Dataset.Input("dataset"), *widgets(CaptionPolicy)],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with its caption policy.")],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **settings: Any) -> io.NodeOutput:
        """Set the policy and show what it makes of the first caption."""
        policy = config_from(CaptionPolicy, settings)
        shown = next((picture for picture in dataset.pictures if picture.caption), dataset.pictures[0])
        trigger = dataset.trigger_of(shown)
        drawn = dict.fromkeys(live_caption(shown.caption, policy, trigger, 0, time) for time in range(20))
        node_text(cls.hidden.unique_id, "For instance:\n" + "\n".join(list(drawn)[:4]))
        pictures = tuple(replace(picture, own_policy=None) for picture in dataset.pictures)
        return io.NodeOutput(replace(dataset, policy=policy, pictures=pictures))
