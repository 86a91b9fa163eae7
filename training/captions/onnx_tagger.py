"""Taggers as ONNX files: the WD family (`model.onnx` with `selected_tags.csv`) and DeepDanbooru (with `tags.txt`)."""

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

from ..data.words import join_tags
from ..errors import UserError
from ..settings import Settings, knob
from .edits import escape_brackets, matches

GENERAL, CHARACTER, RATING = 0, 4, 9  # categories of selected_tags.csv
_MOST_TOGETHER = 8
# Faces made of signs, in which the underscore is a mouth.
_FACES = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^", "o_o",
    "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip


@dataclass(frozen=True)
class TagSettings(Settings):
    """Which of a tagger's tags become the caption."""

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
    """A tagger from a folder, its session made once.

    The host cannot move a session of onnxruntime; its memory is free again when the tagger is let go.

    Args:
        folder: Holds one .onnx file, and selected_tags.csv or tags.txt.
        settings: Which tags are used.

    Raises:
        UserError: The folder lacks a file, a file does not fit the other, or onnxruntime is not installed.
    """

    def __init__(self, folder: Path, settings: TagSettings) -> None:
        self.settings = settings
        file = _only_model(folder)
        self._tags, self._is_wd = _read_tags(folder)
        self._session = _session(file)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise UserError(
                f"{file} is no tagger of the WD or DeepDanbooru kind: it takes {len(inputs)} inputs instead of one. "
                "Choose another model folder."
            )
        self._input, shape = inputs[0].name, list(inputs[0].shape)
        self._channels_first = len(shape) == 4 and shape[1] == 3
        sides = [side for side in (shape[2:4] if self._channels_first else shape[1:3]) if isinstance(side, int)]
        if len(shape) != 4 or 3 not in shape:
            raise UserError(
                f"{file} is no tagger of the WD or DeepDanbooru kind: it takes {_shape(shape)} instead of pictures "
                "of three channels. Choose another model folder."
            )
        self._side = sides[0] if sides else (448 if self._is_wd else 512)
        self.batch = _MOST_TOGETHER if not isinstance(shape[0], int) else max(1, shape[0])
        self._fixed = isinstance(shape[0], int)
        self._dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(inputs[0].type)
        outputs = self._session.get_outputs()[0].shape
        if self._dtype is None or not outputs:
            raise UserError(
                f"{file} is no tagger of the WD or DeepDanbooru kind: it takes {inputs[0].type} and gives "
                f"{_shape(outputs)}. Choose another model folder."
            )
        if isinstance(outputs[-1], int) and outputs[-1] != len(self._tags):
            raise UserError(
                f"{file} knows {outputs[-1]} tags, but the list beside it has {len(self._tags)}: they belong to "
                "different models. Get both from the same place."
            )
        stat = file.stat()
        self.identity = hashlib.sha256(
            f"tagger-1|{file.name}|{stat.st_size}|{_sample(file)}|{self._tags}|{settings}".encode()
        ).hexdigest()

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Tag some pictures.

        Raises:
            UserError: The model's answer does not fit its list of tags.
        """
        pixels = np.stack([self._pixels(picture) for picture in pictures])
        if self._fixed and len(pictures) < self.batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch - len(pictures), axis=0)])
        scores = self._session.run(None, {self._input: pixels.astype(self._dtype, copy=False)})[0][: len(pictures)]
        if scores.shape[1] != len(self._tags):
            raise UserError(
                f"The tagger answers with {scores.shape[1]} numbers for {len(self._tags)} tags: the model and the list "
                "belong to different models. Get both from the same place."
            )
        return [self._text(row) for row in scores]

    def _pixels(self, picture: Image.Image) -> np.ndarray:
        """A picture as the model takes it: on a white square, scaled; WD's in blue, green, red, 0 to 255."""
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (255, 255, 255))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        small = square.resize((self._side, self._side), Image.Resampling.BICUBIC)
        pixels: np.ndarray = np.asarray(small, dtype=np.float32)
        pixels = pixels[..., ::-1] if self._is_wd else pixels / np.float32(255)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if self._channels_first else pixels)

    def _text(self, scores: np.ndarray) -> str:
        """The tags above their threshold, the surest first."""
        limits = {GENERAL: self.settings.general_threshold, CHARACTER: self.settings.character_threshold}
        found = []
        for number in np.argsort(-scores, kind="stable"):
            tag = self._tags[number]
            if tag.category in limits and scores[number] >= limits[tag.category]:
                written = self._written(tag.name)
                # However a person writes it: green_(dress), green (dress), green \(dress\).
                if not any(matches(self.settings.exclude, s) for s in (tag.name, tag.name.replace("_", " "), written)):
                    found.append(written)
        return join_tags(found)

    def _written(self, name: str) -> str:
        if not self.settings.keep_underscores and name not in _FACES:
            name = name.replace("_", " ")
        return escape_brackets(name) if self.settings.escape_brackets else name


def _only_model(folder: Path) -> Path:
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise UserError(f"{folder} has no .onnx file: put the tagger's model there, and its list of tags beside it.")
    return files[0]


def _read_tags(folder: Path) -> tuple[list[_Tag], bool]:
    """The tags in the order of the model's answers, and whether they are of the WD family."""
    listed, plain = folder / "selected_tags.csv", folder / "tags.txt"
    if listed.is_file():
        try:
            with listed.open(encoding="utf-8", newline="") as file:
                return [_Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)], True
        except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{listed} is no list of tags: it needs the columns name and category ({error}). Get it again from "
                "where the model is from."
            ) from error
    if plain.is_file():
        names = [line.strip() for line in plain.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [_Tag(name, RATING if name.startswith("rating:") else GENERAL) for name in names], False
    raise UserError(
        f"{folder} has no selected_tags.csv (WD taggers) and no tags.txt (DeepDanbooru): put the list there that "
        "belongs to the model."
    )


def _session(file: Path) -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(
            "Taggers run on the package onnxruntime, which is not installed. In ComfyUI's Python run: "
            "pip install onnxruntime (or onnxruntime-gpu) and restart ComfyUI."
        ) from error
    try:
        return runtime.InferenceSession(str(file), providers=runtime.get_available_providers())
    except Exception as error:
        raise UserError(f"{file} cannot be loaded ({error}). Get it again from where it is from.") from error


def _sample(file: Path) -> str:
    """A few blocks of a large file, hashed: enough to tell two models of one size apart."""
    digest = hashlib.sha256()
    size = file.stat().st_size
    with file.open("rb") as opened:
        for at in range(0, size, max(1, size // 16)):
            opened.seek(at)
            digest.update(opened.read(65536))
    return digest.hexdigest()


def _shape(shape: Sequence[Any]) -> str:
    return " × ".join(str(side) for side in shape) or "a single number"
