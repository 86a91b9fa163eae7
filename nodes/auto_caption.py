"""AutoCaption: captions by a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..training.cache.store import TensorCache
from ..training.captions.auto import CaptioningConfig, caption_dataset
from ..training.captions.captioner import Captioner
from ..training.captions.download import download
from ..training.captions.onnx_tagger import OnnxTagger, TagSettings
from ..training.captions.text_encoder import TextGenerator
from ..training.captions.vision_language import SentenceSettings, VisionLanguage
from ..training.data.dataset import Dataset as DatasetObject
from ..training.errors import UserError
from ..training.events import Cancelled
from ..training.host.held import held
from ..training.host.paths import cache_folder, captioner_folders, captioners_root
from ..training.host.progress import NodeSink, host_interrupt
from ..training.host.server import node_text
from .schema import Dataset, advanced, config_from, schema, widgets

log = logging.getLogger(__name__)

_NONE = "(no captioner in models/LLM yet)"


class AutoCaption(io.ComfyNode):
    """Captions pictures with a tagger or a vision-language model on this machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The captioners there are now, and every setting of theirs."""
        return schema(
            cls,
            display_name="Auto Caption",
            description="Captions the pictures with a model from models/LLM: a tagger (WD14, DeepDanbooru as .onnx) or "
            "one that writes sentences (BLIP, Florence-2, Qwen-VL, JoyCaption). Look the captions over afterwards.",
            search_aliases=["tagger", "wd14", "blip", "florence", "joycaption"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Dataset.Input("dataset"),
                io.Combo.Input(
                    "captioner",
                    options=list(captioner_folders()) or [_NONE],
                    tooltip="A folder below models/LLM, or below one that LLM or wd14_tagger names in "
                    "extra_model_paths.yaml.",
                ),
                *widgets(CaptioningConfig),
                *widgets(SentenceSettings),
                *widgets(TagSettings),
                advanced(
                    io.String.Input(
                        "download", default="",
                        tooltip="owner/name of a model on huggingface.co, such as SmilingWolf/wd-vit-tagger-v3 or "
                        "florence-community/Florence-2-base: fetched into models/LLM if it is not there yet, and "
                        "used instead of the captioner above. Empty: nothing is fetched.",
                    )
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="A text encoder that sees pictures and writes (Qwen-VL, Gemma 3, on hosts with Generate "
                    "Text): it captions instead of the captioner above.",
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The dataset with its new captions.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, captioner: str | None) -> bool | str:
        """Accept a captioner that is not there where another one is fetched, or a CLIP may caption instead.

        The host would refuse what is not in the list, and the list changes with every model that is fetched.
        """
        return True

    @classmethod
    def execute(
        cls, dataset: DatasetObject, captioner: str, download: str = "", clip: Any = None, **settings: Any
    ) -> io.NodeOutput:
        """Caption."""
        sink = NodeSink(cls.hidden.unique_id)
        try:
            found = caption_dataset(
                dataset,
                _chosen(captioner, download, clip, settings, sink),
                config_from(CaptioningConfig, settings),
                TensorCache(cache_folder() / "texts"),
                sink,
            )
        except Cancelled as error:
            sink.take_cancel()
            raise host_interrupt() from error
        for problem in found.problems:
            log.warning("LoRA Workbench: %s", problem)
        node_text(cls.hidden.unique_id, found.describe())
        return io.NodeOutput(found.dataset)


def _chosen(name: str, repository: str, clip: Any, settings: dict[str, Any], sink: NodeSink) -> Captioner:
    """The captioner that the person chose: a CLIP, a model to be fetched, or a folder."""
    if clip is not None:
        return TextGenerator(clip, config_from(SentenceSettings, settings))
    if repository.strip():
        return _captioner(download(repository, captioners_root(), sink), settings)
    folder = captioner_folders().get(name)
    if folder is None:
        raise UserError(
            f"There is no captioner {name!r}: put a model's files into a folder below models/LLM and press R, or name "
            "one to be fetched in download."
        )
    return _captioner(folder, settings)


def _captioner(folder: Path, settings: dict[str, Any]) -> Captioner:
    """The captioner of a folder. It goes when the node is done: captions are kept, and training needs the memory."""
    if any(folder.glob("*.onnx")):
        return OnnxTagger(folder, config_from(TagSettings, settings))
    return VisionLanguage(folder, config_from(SentenceSettings, settings), held)
