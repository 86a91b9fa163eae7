"""The captioners to choose from. Adding one takes a file with its class and an entry in CAPTIONERS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..events import Sink
from ..host.held import held
from ..host.paths import captioner_folders, captioners_root
from ..settings import Settings, settings_from
from .auto import CaptionerChoice
from .captioner import Captioner
from .download import download
from .onnx_tagger import OnnxTagger, TagSettings
from .text_encoder import TextGenerator
from .vision_language import SentenceSettings, VisionLanguage


@dataclass(frozen=True)
class Source:
    """One kind of captioner.

    Attributes:
        matches: Whether a model is of this kind. The model is a folder, or a CLIP for the first entry.
        make: Makes the captioner from the model and its settings.
        settings: The dataclass of its settings. They become inputs of the node.
    """

    matches: Callable[[Any], bool]
    make: Callable[[Any, Any], Captioner]
    settings: type[Settings]


# The first match is used.
CAPTIONERS: list[Source] = [
    Source(lambda model: not isinstance(model, Path), TextGenerator, SentenceSettings),
    Source(lambda folder: any(folder.glob("*.onnx")), OnnxTagger, TagSettings),
    Source(
        lambda folder: (folder / "config.json").is_file() and any(folder.glob("*.safetensors")),
        lambda folder, settings: VisionLanguage(folder, settings, held),
        SentenceSettings,
    ),
]


def installed_captioners() -> dict[str, Path]:
    """The folders that hold a captioner, by name."""
    folders = captioner_folders().items()
    return {name: folder for name, folder in folders if any(source.matches(folder) for source in CAPTIONERS)}


def captioner_settings() -> list[type[Settings]]:
    """The settings of all captioners, each dataclass once.

    Saved workflows hold values by position: the first two stay the first two, whatever the order of CAPTIONERS.
    """
    return list(dict.fromkeys([SentenceSettings, TagSettings, *(source.settings for source in CAPTIONERS)]))


def make_captioner(model: Any, values: Mapping[str, Any]) -> Captioner:
    """Make the captioner of a model.

    Args:
        model: A folder or a CLIP.
        values: Settings by name. Those of other captioners are ignored.

    Raises:
        UserError: No captioner matches, or the model is incomplete.
    """
    for source in CAPTIONERS:
        if source.matches(model):
            return source.make(model, settings_from(source.settings, values))
    raise UserError(
        f"{model} holds no captioner: neither an .onnx file nor a config.json with .safetensors. Choose another model."
    )


def choose_captioner(choice: CaptionerChoice, clip: Any, values: Mapping[str, Any], sink: Sink) -> Captioner:
    """Make the captioner that the user chose: a CLIP, else a download, else a folder.

    Raises:
        UserError: The captioner does not exist, cannot be downloaded or is incomplete.
        Cancelled: The user cancelled the download.
    """
    if clip is not None:
        return make_captioner(clip, values)
    if choice.download.strip():
        return make_captioner(download(choice.download, captioners_root(), sink), values)
    folder = installed_captioners().get(choice.captioner)
    if folder is None:
        raise UserError(
            f"There is no captioner {choice.captioner!r} in models/LLM. Put a model folder there and press R, or enter "
            "a model's name in download."
        )
    return make_captioner(folder, values)
