"""Caption a dataset with a captioner: which pictures, which captions are kept, and which files are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..cache.store import TensorCache, cache_key
from ..data import images
from ..data.dataset import Dataset, Picture
from ..data.words import has_own_caption, is_json, with_trigger
from ..disk import content_hash
from ..errors import UserError
from ..events import Cancelled, Sink, counted
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
    """Which pictures are captioned and where the captions are written."""

    mode: str = knob(
        MODES[0],
        "Which pictures are captioned. only missing: those without a caption of their own. replace: all. append: all, "
        "after the existing caption, unless it is JSON.",
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
    """The result of captioning a dataset.

    Attributes:
        dataset: The dataset with its new captions, without pictures that could not be read.
        made: Captions made now; the others came from the cache.
        kept: Pictures whose caption was left unchanged.
        written: Files written.
        problems: One sentence for each problem.
    """

    dataset: Dataset
    made: int
    kept: int
    written: int
    problems: tuple[str, ...]

    def describe(self) -> str:
        """Describe the result in a few words."""
        cached = len(self.dataset.pictures) - self.kept - self.made
        parts = [f"{self.made} captioned", f"{cached} from the cache" if cached else ""]
        parts.append(f"{self.kept} kept" if self.kept else "")
        parts.append(f"{counted(self.written, 'file')} written" if self.written else "")
        text = ", ".join(part for part in parts if part) + "."
        return "\n".join([text, *self.problems])


def caption_dataset(
    dataset: Dataset, captioner: Captioner, config: CaptioningConfig, cache: TensorCache, sink: Sink
) -> Captioned:
    """Caption the pictures that the mode selects.

    A caption's cache key is the picture's content hash and the captioner's identity, so nothing is captioned twice.

    Raises:
        Cancelled: The user pressed cancel between two pictures. Finished captions are in the cache.
        UserError: The captioner fails, or no picture can be read.
    """
    wanted = [
        number for number, picture in enumerate(dataset.pictures)
        if _is_wanted(picture, config.mode, dataset.trigger_of(picture))
    ]
    texts, problems, made = _texts(dataset, wanted, captioner, cache, sink)
    if config.mode == "append" and len(wanted) < len(dataset.pictures):
        left = counted(len(dataset.pictures) - len(wanted), "JSON caption")
        problems.append(f"{left} left unchanged: appended text would break JSON. Set mode to replace instead.")
    unreadable = set(wanted) - set(texts)
    originals = {id(picture) for picture in dataset.without_copies()}
    pictures, changed = [], []
    for number, picture in enumerate(dataset.pictures):
        if number in texts:
            text = _joined(picture, texts[number], config.mode, dataset.trigger_of(picture))
            captioned = replace(picture, caption=text)
            pictures.append(captioned)
            if captioned.caption != picture.caption and id(picture) in originals:
                changed.append(captioned)
        elif number not in unreadable:
            pictures.append(picture)
    if not pictures:
        raise UserError(f"None of the {counted(len(dataset.pictures), 'picture')} can be read. {problems[0]}")
    result = dataset.with_pictures(tuple(pictures))
    written = write_captions(changed, result, over=config.write == WRITE[2], problems=problems) if (
        config.write != WRITE[0]) else 0  # fmt: skip
    return Captioned(result, made, len(dataset.pictures) - len(wanted), written, tuple(problems))


def _is_wanted(picture: Picture, mode: str, trigger: str) -> bool:
    if mode == "append":
        return not is_json(picture.caption)  # a text after it would break it
    return mode == "replace" or not has_own_caption(picture, trigger)


def _joined(picture: Picture, text: str, mode: str, trigger: str) -> str:
    if mode == "append" and picture.caption:
        # A text that was appended and written to the caption file is read back with it. Do not append it twice.
        is_included = f", {text}, " in f", {picture.caption}, "
        return picture.caption if not text or is_included else f"{picture.caption}, {text}"
    return with_trigger(text, trigger)


def _texts(
    dataset: Dataset, wanted: Sequence[int], captioner: Captioner, cache: TensorCache, sink: Sink
) -> tuple[dict[int, str], list[str], int]:
    """The captions of some pictures by number, the problems, and how many captions were made now."""
    texts: dict[int, str] = {}
    problems: list[str] = []
    waiting: list[tuple[int, str]] = []
    made, batch = 0, max(1, captioner.batch)

    def flush() -> None:
        nonlocal made, batch
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
            answers, batch = _answers(captioner, opened[at:], batch, problems)
            for (number, key), text in zip(numbers[at : at + batch], answers, strict=True):
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
        cached = cache.get(key)
        if cached:
            texts[number] = cached[1]
            continue
        waiting.append((number, key))
        if len(waiting) >= batch:
            flush()
    flush()
    sink.phase("captioning", len(wanted), len(wanted))
    return texts, problems, made


def _answers(
    captioner: Captioner, pictures: list[Image.Image], batch: int, problems: list[str]
) -> tuple[Sequence[str], int]:
    """The captions of the first pictures, as many as fit into memory at a time, and that number from now on."""
    while True:
        try:
            return captioner.caption(pictures[:batch]), batch
        except Exception as error:
            if not out_of_memory(error):
                raise
            if batch == 1:
                raise UserError(
                    "There is not enough memory to caption one picture at a time. Free some memory, or choose a "
                    "smaller captioner. Finished captions are in the cache."
                ) from error
        smaller = batch // 2
        problems.append(f"Not enough memory to caption {batch} pictures at a time. Continued with {smaller}.")
        batch = smaller


def _key(picture: Picture, dataset: Dataset, captioner: Captioner) -> str:
    return cache_key("text-1", content_hash(picture.path), dataset.background, captioner.identity)


def out_of_memory(error: Exception) -> bool:
    """Whether a device ran out of memory, by torch's error class or another runtime's message."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(
        words in text for words in ("out of memory", "failed to allocate memory", "bad_alloc")
    )
