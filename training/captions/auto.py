"""Captions a dataset with a captioner: which pictures, what of it is kept, and what is written beside the files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..cache.store import TensorCache
from ..data import images
from ..data.dataset import Dataset, Picture
from ..data.words import has_own_caption, with_trigger
from ..disk import content_hash
from ..errors import UserError
from ..events import Cancelled, Sink
from ..settings import Settings, knob
from .captioner import Captioner
from .text_files import write_captions


@dataclass(frozen=True)
class CaptionerChoice(Settings):
    """Which captioner writes the captions."""

    captioner: str = knob(
        "",
        "Model folder in models/LLM, or in a folder listed under LLM or wd14_tagger in extra_model_paths.yaml.",
    )
    download: str = knob(
        "",
        "Hugging Face name of a captioner: SmilingWolf/wd-vit-tagger-v3 or florence-community/Florence-2-base. It is "
        "fetched once into models/LLM and used instead of the captioner above. Empty: nothing is fetched.",
        advanced=True,
    )


MODES = ("only missing", "replace", "append")
WRITE = ("nowhere", "new .txt files", "all .txt files")


@dataclass(frozen=True)
class CaptioningConfig(Settings):
    """Which captions are made and where they go."""

    mode: str = knob(
        MODES[0],
        "Which pictures are captioned. only missing: those without a caption of their own. replace: all. append: all, "
        "after the existing caption.",
        choices=MODES,
    )
    write: str = knob(
        WRITE[0],
        "Whether captions are also saved next to the pictures. new .txt files: existing caption files stay unchanged. "
        "all .txt files: they are overwritten.",
        choices=WRITE,
    )


@dataclass(frozen=True)
class Captioned:
    """What came of it.

    Attributes:
        dataset: With the new captions, and without pictures that could not be read.
        made: Captions made anew; others came from the cache.
        kept: Pictures whose caption was left as it was.
        written: Files written.
        problems: One sentence for each thing that went wrong.
    """

    dataset: Dataset
    made: int
    kept: int
    written: int
    problems: tuple[str, ...]

    def describe(self) -> str:
        """Say it in a few words."""
        known = len(self.dataset.pictures) - self.kept - self.made
        parts = [f"{self.made} captioned", f"{known} known already" if known else ""]
        parts.append(f"{self.kept} kept" if self.kept else "")
        parts.append(f"{self.written} files written" if self.written else "")
        text = ", ".join(part for part in parts if part) + "."
        return "\n".join([text, *self.problems])


def caption_dataset(
    dataset: Dataset, captioner: Captioner, config: CaptioningConfig, cache: TensorCache, sink: Sink
) -> Captioned:
    """Caption what the mode asks for.

    A caption is kept under the bytes of its file and the captioner's identity, so nothing is captioned twice.

    Raises:
        Cancelled: The person pressed cancel between two pictures; what was captioned is in the cache.
        UserError: A captioner does not work, or no picture can be read.
    """
    wanted = [
        number for number, picture in enumerate(dataset.pictures)
        if config.mode != "only missing" or not has_own_caption(picture, dataset.trigger_of(picture))
    ]  # fmt: skip
    texts, problems, made = _texts(dataset, wanted, captioner, cache, sink)
    lost = set(wanted) - set(texts)
    shown = {id(picture) for picture in dataset.without_copies()}
    pictures, changed = [], []
    for number, picture in enumerate(dataset.pictures):
        if number in texts:
            text = _joined(picture, texts[number], config.mode, dataset.trigger_of(picture))
            captioned = replace(picture, caption=text)
            pictures.append(captioned)
            if captioned.caption != picture.caption and id(picture) in shown:
                changed.append(captioned)
        elif number not in lost:
            pictures.append(picture)
    if not pictures:
        raise UserError(f"None of the {len(dataset.pictures)} pictures can be read. The first: {problems[0]}")
    result = dataset.with_pictures(tuple(pictures))
    written = write_captions(changed, result, over=config.write == WRITE[2], problems=problems) if (
        config.write != WRITE[0]) else 0  # fmt: skip
    return Captioned(result, made, len(dataset.pictures) - len(wanted), written, tuple(problems))












def _joined(picture: Picture, text: str, mode: str, trigger: str) -> str:
    if mode == "append" and picture.caption:
        # What was written beside the picture comes back with it: nothing is appended twice.
        is_there = f", {text}, " in f", {picture.caption}, "
        return picture.caption if not text or is_there else f"{picture.caption}, {text}"
    return with_trigger(text, trigger)


def _texts(
    dataset: Dataset, wanted: Sequence[int], captioner: Captioner, cache: TensorCache, sink: Sink
) -> tuple[dict[int, str], list[str], int]:
    """The captions of some pictures by number, what went wrong, and how many were made anew."""
    texts: dict[int, str] = {}
    problems: list[str] = []
    waiting: list[tuple[int, str]] = []
    made, together = 0, max(1, captioner.batch)

    def flush() -> None:
        nonlocal made, together
        numbers, opened = [], []
        for number, key in waiting:
            try:
                opened.append(images.read_picture(dataset.pictures[number], dataset.background))
                numbers.append((number, key))
            except UserError as error:
                problems.append(str(error))
        waiting.clear()
        at = 0
        while at < len(opened):
            if sink.cancelled():
                raise Cancelled
            try:
                answers = captioner.caption(opened[at : at + together])
            except Exception as error:
                if out_of_memory(error) and together == 1:
                    raise UserError(
                        "There is not enough memory to caption even one picture at a time: free some, or choose a "
                        "smaller captioner. What was captioned so far is kept."
                    ) from error
                if not out_of_memory(error):
                    raise
                together = max(1, together // 2)
                problems.append(f"Not enough memory for so many pictures at a time: going on with {together}.")
                continue
            for (number, key), text in zip(numbers[at : at + together], answers, strict=True):
                texts[number] = text
                cache.put(key, {}, text)
                made += 1
            at += len(answers)

    for done, number in enumerate(wanted):
        if sink.cancelled():
            raise Cancelled
        sink.phase("captioning", done, len(wanted))
        try:
            key = _key(dataset.pictures[number], dataset, captioner)
        except OSError:
            problems.append(f"{dataset.pictures[number].path} is not there any more and was left out.")
            continue
        known = cache.get(key)
        if known:
            texts[number] = known[1]
            continue
        waiting.append((number, key))
        if len(waiting) >= together:
            flush()
    flush()
    sink.phase("captioning", len(wanted), len(wanted))
    return texts, problems, made


def _key(picture: Picture, dataset: Dataset, captioner: Captioner) -> str:
    parts = ["text-1", content_hash(picture.path), repr(dataset.background), captioner.identity]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory: torch's own error, or the words of another runtime."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(
        words in text for words in ("out of memory", "failed to allocate memory", "bad_alloc")
    )
