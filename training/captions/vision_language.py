"""Captioners that write sentences: BLIP, BLIP-2, Florence-2, Qwen-VL, LLaVA (JoyCaption) and their kin.

All go through transformers' Auto classes, from a folder on this machine: nothing is fetched, no code from the folder is
run, and weights are read from safetensors alone.
"""

from __future__ import annotations

import hashlib
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

from ..errors import UserError
from ..settings import Settings, knob

log = logging.getLogger(__name__)

# What a model is asked when the person asks nothing. BLIP, BLIP-2 and GIT describe a picture unasked.
QUESTION = "Describe this picture in one or two plain sentences: what is seen, what it does, where, in what style."
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_TASKS = {"florence2": "<DETAILED_CAPTION>", "blip": "", "blip-2": "", "git": ""}
_COMPLETING = ("blip", "git")  # a prompt is the beginning of their caption; for all others it is a question


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
        folder: As transformers saves models: config.json, *.safetensors, tokenizer and processor.
        settings: How it writes.
        hold: Wraps the model so that the host can move it; returns what brings it to its device for a while.

    Raises:
        UserError: The folder is not complete.
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
        written = f"{settings.prompt}|{settings.max_tokens}"  # all that shapes a caption
        self.identity = hashlib.sha256(f"sentence-3|{_folder_stamp(folder)}|{written}".encode()).hexdigest()

    def _ensure_loaded(self) -> None:
        """Load the model when the first picture comes that has no caption yet."""
        if self._is_loaded:
            return
        self._processor, self._model = _load(self._folder)
        self._kind = str(self._model.config.model_type)
        if hasattr(self._processor, "tokenizer"):
            self._processor.tokenizer.padding_side = "left"  # or an answer would go on behind padding
        self._on_device = self._hold(self._model)
        self._is_loaded = True

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Describe some pictures, each in a sentence or two.

        Raises:
            UserError: The model cannot be loaded, or is of a kind that writes no captions.
        """
        self._ensure_loaded()
        given = self._inputs(list(pictures))
        with self._on_device() as device, torch.inference_mode():
            given = given.to(device)
            for name, value in given.items():
                if torch.is_floating_point(value):
                    given[name] = value.to(self._model.dtype)
            made = self._model.generate(**given, max_new_tokens=self.settings.max_tokens, do_sample=False)
        question = given.get("input_ids")
        if question is not None and self._kind not in _COMPLETING:
            length = question.shape[1]
            # Compared, for BLIP-2 and InstructBLIP repeat the question or do not, as their language model does.
            if torch.equal(made[:, :length], question):
                made = made[:, length:]
        texts = self._processor.batch_decode(made, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _asked(self, prompt: str) -> str:
        """The prompt as the model's template puts it, with the picture's place in it."""
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
        try:
            text = self._in_template(parts)
        except TypeError:  # a template that only joins texts
            return self._in_template(prompt)
        # JoyCaption's puts the picture there by itself, and would write the list down as it is.
        return self._in_template(prompt) if str(parts[0]) in text else text

    def _in_template(self, content: Any) -> str:
        talk = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(talk, add_generation_prompt=True))

    def _inputs(self, pictures: list[Image.Image]) -> Any:
        prompt = self.settings.prompt.strip() or _TASKS.get(self._kind, QUESTION)
        if not prompt:
            return self._processor(images=pictures, return_tensors="pt")
        if getattr(self._processor, "chat_template", None):
            texts = [self._asked(prompt)] * len(pictures)
        else:
            texts = [prompt] * len(pictures)
        return self._processor(images=pictures, text=texts, return_tensors="pt", padding=True)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: it has no config.json. Put all files of a model there.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no .safetensors file. Weights in other formats (.bin, .pt) can run code when they are "
            "opened, so they are not read: get the model's safetensors."
        )
    # Without it transformers makes an empty one and says nothing.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(f"{folder} has no tokenizer ({', '.join(_VOCABULARIES)}): get the model's other files.")


def _load(folder: Path) -> tuple[Any, Any]:
    """The processor and the model of a folder."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError("Captions in sentences need the package transformers, which ComfyUI brings along.") from error
    options = {"local_files_only": True, "trust_remote_code": False}
    make = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **options)
        model, told = _as_stored(make, folder, options)
    except (
        OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"The captioner in {folder} cannot be loaded: {first} The folder may be incomplete, or the model newer "
            "than the installed transformers."
        ) from error
    # transformers draws by lot what is not there, and only logs it.
    missing = sorted(set(told["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise UserError(
            f"The captioner in {folder} lacks {len(missing)} of its weights, {missing[0]} among them: its files "
            "belong to different models, or one is missing. Get them again from the same place."
        )
    return processor, model.eval().requires_grad_(False)


def _as_stored(make: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Load a model in the precision it was saved in, which transformers before 4.56 asks for by another word.

    Returns:
        The model, and what was found out while loading it.
    """
    options = {**options, "use_safetensors": True, "output_loading_info": True}
    try:
        return make.from_pretrained(folder, dtype="auto", **options)
    except TypeError:
        return make.from_pretrained(folder, torch_dtype="auto", **options)


def _folder_stamp(folder: Path) -> str:
    """Changes when a file of the folder does."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return "|".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
