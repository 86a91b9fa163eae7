"""Auto Caption: captions written by a model."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..training.cache.store import TensorCache
from ..training.captions.auto import CaptionerChoice, CaptioningConfig, caption_dataset
from ..training.captions.sources import captioner_settings, choose_captioner, installed_captioners
from ..training.data.dataset import Dataset as DatasetObject
from ..training.host.paths import cache_folder
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets

log = logging.getLogger(__name__)

_NONE = "(no captioner in models/LLM yet)"


class AutoCaption(Node):
    """Captions pictures with a tagger or a vision-language model on this machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """List the captioners installed now and the settings of all kinds."""
        options = list(installed_captioners()) or [_NONE]
        captioner, download = widgets(CaptionerChoice, captioner={"options": options})
        sentences, tags, *others = (widgets(settings) for settings in captioner_settings())
        return cls.schema(
            display_name="Auto Caption",
            description="Captions pictures with a model from models/LLM. Taggers write tags (WD14, DeepDanbooru). "
            "Vision-language models write sentences (BLIP, Florence-2, Qwen-VL, JoyCaption). Check the captions "
            "afterwards.",
            search_aliases=["tagger", "wd14", "blip", "florence", "joycaption"],
            inputs=[
                Dataset.Input("dataset", tooltip="The pictures to caption."),
                captioner,
                *widgets(CaptioningConfig),
                *sentences,
                *tags,
                download,
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="A text encoder that sees pictures and writes text, such as Qwen-VL or Gemma 3. If "
                    "connected, it captions instead of the captioner above. ComfyUI must have the node Generate Text.",
                ),
                *(widget for more in others for widget in more),  # at the end, for the order of saved values
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with the new captions.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, captioner: str | None) -> bool | str:
        """Accept any captioner, because a download or a CLIP may replace it. The node checks it when it runs.

        Without this the host would refuse what is missing from its list, which changes with every download.
        """
        return True

    @classmethod
    def execute(cls, dataset: DatasetObject, clip: Any = None, **inputs: Any) -> io.NodeOutput:
        """Caption the dataset."""
        with cls.cancellable() as sink:
            # The captioner is not kept: captions are cached, and training needs the memory.
            captioner = choose_captioner(settings_from(CaptionerChoice, inputs), clip, inputs, sink)
            cache = TensorCache(cache_folder() / "texts")
            found = caption_dataset(dataset, captioner, settings_from(CaptioningConfig, inputs), cache, sink)
        for problem in found.problems:
            log.warning("LoRA Workbench: %s", problem)
        cls.show(found.describe())
        return io.NodeOutput(found.dataset)
