"""Captioners that write sentences: BLIP, BLIP-2, Florence-2, Qwen-VL, LLaVA (JoyCaption) and similar models.

All are loaded from a local folder through transformers' Auto classes. Nothing is downloaded, no code from the folder is
run, and weights are read only from safetensors.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from ..cache.store import cache_key
from ..errors import UserError
from ..settings import Settings, knob

log = logging.getLogger(__name__)

# The default prompt. BLIP, BLIP-2 and GIT need none.
QUESTION = "Describe this picture in one or two plain sentences: what is seen, what it does, where, in what style."
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_TASKS = {"florence2": "<DETAILED_CAPTION>", "blip": "", "blip-2": "", "git": ""}
_COMPLETING = ("blip", "git")  # their prompt is the start of the caption; for all others it is a question


@dataclass(frozen=True)
class SentenceSettings(Settings):
    """How a captioner writes."""

    prompt: str = knob(
        "",
        "Question for the model, or for BLIP the beginning of the caption. Empty: a question that suits the model.",
    )
    max_tokens: int = knob(128, "Maximum length of a caption in tokens.", min=8, max=2048, advanced=True)
    batch_size: int = knob(
        1, "Pictures captioned at once. More is faster. Halved when memory runs out.", min=1, max=64, advanced=True
    )


class VisionLanguage:
    """A vision-language model from a folder.

    Args:
        folder: A model as transformers saves it: config.json, *.safetensors, tokenizer and processor.
        settings: How it writes.
        hold: Wraps the model so that the host can move it. Returns a function that opens a `with` block in which the
            model is on its device.

    Raises:
        UserError: The folder is incomplete.
    """

    def __init__(
        self,
        folder: Path,
        settings: SentenceSettings,
        hold: Callable[[torch.nn.Module], Callable[[], AbstractContextManager[torch.device]]],
    ) -> None:
        self.settings = settings
        self.batch = settings.batch_size
        _check_folder(folder)
        self._folder, self._hold = folder, hold
        self._is_loaded = False
        # Everything a caption depends on besides the picture.
        self.identity = cache_key("sentence-3", _folder_stamp(folder), settings.prompt, settings.max_tokens)

    def _ensure_loaded(self) -> None:
        """Load the model on first use, so that it is not loaded when all captions are cached."""
        if self._is_loaded:
            return
        self._processor, self._model = _load(self._folder)
        self._kind = str(self._model.config.model_type)
        if hasattr(self._processor, "tokenizer"):
            self._processor.tokenizer.padding_side = "left"  # else the answer would follow the padding
        self._on_device = self._hold(self._model)
        self._is_loaded = True

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Describe some pictures, each in a sentence or two.

        Raises:
            UserError: The model cannot be loaded, or its kind does not write captions.
        """
        self._ensure_loaded()
        inputs = self._inputs(list(pictures))
        with self._on_device() as device, torch.inference_mode():
            inputs = inputs.to(device)
            for name, value in inputs.items():
                if torch.is_floating_point(value):
                    inputs[name] = value.to(self._model.dtype)
            generated = self._model.generate(**inputs, max_new_tokens=self.settings.max_tokens, do_sample=False)
        question = inputs.get("input_ids")
        if question is not None and self._kind not in _COMPLETING:
            length = question.shape[1]
            # Compared, because BLIP-2 and InstructBLIP repeat the question only with some language models.
            if torch.equal(generated[:, :length], question):
                generated = generated[:, length:]
        texts = self._processor.batch_decode(generated, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _question(self, prompt: str) -> str:
        """The prompt in the model's chat template, with a placeholder for the picture."""
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
        try:
            text = self._in_template(parts)
        except TypeError:  # a template that only concatenates strings
            return self._in_template(prompt)
        # JoyCaption's template adds the picture itself and would print the list verbatim.
        return self._in_template(prompt) if str(parts[0]) in text else text

    def _in_template(self, content: Any) -> str:
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True))

    def _inputs(self, pictures: list[Image.Image]) -> Any:
        prompt = self.settings.prompt.strip() or _TASKS.get(self._kind, QUESTION)
        if not prompt:
            return self._processor(images=pictures, return_tensors="pt")
        if getattr(self._processor, "chat_template", None):
            texts = [self._question(prompt)] * len(pictures)
        else:
            texts = [prompt] * len(pictures)
        return self._processor(images=pictures, text=texts, return_tensors="pt", padding=True)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json. Put all files of a model there.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no .safetensors file. Other formats (.bin, .pt) are not read, because they can run code "
            "when opened. Download the model's safetensors."
        )
    # Without one transformers silently makes an empty tokenizer.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(f"{folder} has no tokenizer ({', '.join(_VOCABULARIES)}). Download the model's other files.")


def _load(folder: Path) -> tuple[Any, Any]:
    """Load the processor and the model of a folder."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "The package transformers, which sentence captions need, is not installed. Install ComfyUI's requirements."
        ) from error
    options = {"local_files_only": True, "trust_remote_code": False}
    make = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **options)
        model, info = _as_stored(make, folder, options)
    except (
        OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"The captioner in {folder} cannot be loaded: {first} Download all of its files again, or update "
            "transformers if the model is newer."
        ) from error
    # transformers fills missing weights with random values and only logs it.
    missing = sorted(set(info["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise UserError(
            f"The captioner in {folder} lacks {len(missing)} of its weights, such as {missing[0]}. Its files may be "
            "incomplete or from different models. Download all of them again."
        )
    return processor, model.eval().requires_grad_(False)


def _as_stored(make: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Load a model in the precision it was saved in. transformers before 4.56 has another keyword for it.

    Returns:
        The model, and transformers' loading info.
    """
    options = {**options, "use_safetensors": True, "output_loading_info": True}
    try:
        return make.from_pretrained(folder, dtype="auto", **options)
    except TypeError:
        return make.from_pretrained(folder, torch_dtype="auto", **options)


def _folder_stamp(folder: Path) -> str:
    """A string that changes when a file of the folder does."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return "|".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
