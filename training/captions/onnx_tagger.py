"""Taggers in ONNX files: the WD family (`model.onnx` with `selected_tags.csv`) and DeepDanbooru (with `tags.txt`)."""

from __future__ import annotations

import csv
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..cache.store import cache_key
from ..data.words import join_tags
from ..errors import UserError
from ..events import counted
from ..settings import Settings, knob
from .edits import escape_parentheses, matches

GENERAL, CHARACTER, RATING = 0, 4, 9  # categories of selected_tags.csv
_BATCH = 8
# Emoticons, in which the underscore is a mouth.
_FACES = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^", "o_o",
    "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip


@dataclass(frozen=True)
class TagSettings(Settings):
    """Which of a tagger's tags go into the caption."""

    general_threshold: float = knob(
        0.35, "Lowest confidence of a tag. Lower finds more tags and more wrong ones.", min=0.0, max=1.0, step=0.01
    )
    character_threshold: float = knob(
        0.85, "Lowest confidence of a character's name. Lower finds more names and more wrong ones.",
        min=0.0, max=1.0, step=0.01, advanced=True,
    )
    exclude: str = knob("", "Tags to leave out, separated by commas. * matches any text.", advanced=True)
    keep_underscores: bool = knob(False, "Write blue_hair instead of blue hair. Off suits most models.", advanced=True)
    escape_brackets: bool = knob(
        True, "Write ( as \\(, so that ComfyUI does not read it as a prompt weight.", advanced=True
    )


@dataclass(frozen=True)
class _Tag:
    name: str
    category: int


class OnnxTagger:
    """A tagger loaded from a folder.

    The host cannot move an onnxruntime session between devices. Its memory is freed with the tagger.

    Args:
        folder: Holds one .onnx file, and selected_tags.csv or tags.txt.
        settings: Which tags are used.

    Raises:
        UserError: A file is missing, the files do not match, or onnxruntime is not installed.
    """

    def __init__(self, folder: Path, settings: TagSettings) -> None:
        self.settings = settings
        file = _only_model(folder)
        self._tags, self._is_wd = _read_tags(folder)
        self._session = _session(file)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise UserError(
                f"{file} is not a WD or DeepDanbooru tagger: it takes {counted(len(inputs), 'input')} instead of one. "
                "Choose another model folder."
            )
        self._input, shape = inputs[0].name, list(inputs[0].shape)
        self._channels_first = len(shape) == 4 and shape[1] == 3
        sides = [side for side in (shape[2:4] if self._channels_first else shape[1:3]) if isinstance(side, int)]
        if len(shape) != 4 or 3 not in shape:
            raise UserError(
                f"{file} is not a WD or DeepDanbooru tagger: it takes {_shape(shape)} instead of pictures with three "
                "channels. Choose another model folder."
            )
        self._side = sides[0] if sides else (448 if self._is_wd else 512)
        self._has_fixed_batch = isinstance(shape[0], int)
        self.batch = max(1, shape[0]) if self._has_fixed_batch else _BATCH
        self._dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(inputs[0].type)
        outputs = self._session.get_outputs()[0].shape
        if self._dtype is None or not outputs:
            raise UserError(
                f"{file} is not a WD or DeepDanbooru tagger: it takes {inputs[0].type} and gives {_shape(outputs)}. "
                "Choose another model folder."
            )
        if isinstance(outputs[-1], int) and outputs[-1] != len(self._tags):
            raise UserError(
                f"{file} knows {counted(outputs[-1], 'tag')}, but its list of tags has {len(self._tags)}. "
                "Download both from the same model."
            )
        stat = file.stat()
        self.identity = cache_key("tagger-2", file.name, stat.st_size, _sample(file), self._tags, settings)

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Tag some pictures.

        Raises:
            UserError: The model's answer does not fit its list of tags.
        """
        pixels = np.stack([self._pixels(picture) for picture in pictures])
        if self._has_fixed_batch and len(pictures) < self.batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch - len(pictures), axis=0)])
        scores = self._session.run(None, {self._input: pixels.astype(self._dtype, copy=False)})[0][: len(pictures)]
        if scores.shape[1] != len(self._tags):
            raise UserError(
                f"The tagger gives {counted(scores.shape[1], 'score')}, but its list of tags has {len(self._tags)}. "
                "Download both from the same model."
            )
        return [self._text(row) for row in scores]

    def _pixels(self, picture: Image.Image) -> np.ndarray:
        """Prepare a picture for the model: scaled on a white square. WD takes BGR, 0 to 255; others RGB, 0 to 1."""
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (255, 255, 255))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        small = square.resize((self._side, self._side), Image.Resampling.BICUBIC)
        pixels: np.ndarray = np.asarray(small, dtype=np.float32)
        pixels = pixels[..., ::-1] if self._is_wd else pixels / np.float32(255)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if self._channels_first else pixels)

    def _text(self, scores: np.ndarray) -> str:
        """The tags above their threshold, highest score first."""
        limits = {GENERAL: self.settings.general_threshold, CHARACTER: self.settings.character_threshold}
        found = []
        for number in np.argsort(-scores, kind="stable"):
            tag = self._tags[number]
            if tag.category in limits and scores[number] >= limits[tag.category]:
                written = self._written(tag.name)
                # Any spelling excludes it: green_(dress), green (dress), green \(dress\).
                if not any(matches(self.settings.exclude, s) for s in (tag.name, tag.name.replace("_", " "), written)):
                    found.append(written)
        return join_tags(found)

    def _written(self, name: str) -> str:
        if not self.settings.keep_underscores and name not in _FACES:
            name = name.replace("_", " ")
        return escape_parentheses(name) if self.settings.escape_brackets else name


def _only_model(folder: Path) -> Path:
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise UserError(f"{folder} has no .onnx file. Put the tagger's model and its list of tags there.")
    return files[0]


def _read_tags(folder: Path) -> tuple[list[_Tag], bool]:
    """The tags in the order of the model's scores, and whether the tagger is of the WD family."""
    listed, plain = folder / "selected_tags.csv", folder / "tags.txt"
    if listed.is_file():
        try:
            with listed.open(encoding="utf-8", newline="") as file:
                return [_Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)], True
        except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{listed} is not a list of tags: it needs the columns name and category ({error}). Download it again "
                "with its model."
            ) from error
    if plain.is_file():
        names = [line.strip() for line in plain.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [_Tag(name, RATING if name.startswith("rating:") else GENERAL) for name in names], False
    raise UserError(
        f"{folder} has no selected_tags.csv (WD taggers) and no tags.txt (DeepDanbooru). Put the model's list there."
    )


def _session(file: Path) -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(
            "The package onnxruntime, which taggers need, is not installed. Run `pip install onnxruntime` (or "
            "onnxruntime-gpu) in ComfyUI's Python, then restart ComfyUI."
        ) from error
    try:
        return runtime.InferenceSession(str(file), providers=runtime.get_available_providers())
    except Exception as error:
        raise UserError(f"{file} cannot be loaded ({error}). Download it again.") from error


def _sample(file: Path) -> str:
    """Hash a few blocks of a large file: enough to distinguish two models of the same size."""
    sampled = hashlib.sha256()
    size = file.stat().st_size
    with file.open("rb") as opened:
        for at in range(0, size, max(1, size // 16)):
            opened.seek(at)
            sampled.update(opened.read(65536))
    return sampled.hexdigest()


def _shape(shape: Sequence[Any]) -> str:
    return " × ".join(str(side) for side in shape) or "a single number"
