"""The checkpoints of a finished run, each painting the same prompts from the same seeds."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import SettingError, UserError
from .events import Cancelled, Sink, counted
from .host.sampling import Painter, take_back
from .lora import LoraModel, RunSummary
from .prompts import Prompt
from .review.checkpoint_sheet import LARGEST, Row, checkpoint_sheet
from .run.checkpoints import Checkpoint, checkpoints, chosen, load
from .settings import Settings, knob
from .watch import SampleOptions

_MOST_STRENGTH = 100.0


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Which checkpoints of a run are compared, and which one is handed on."""

    checkpoints: str = knob(
        "all",
        "Which checkpoints: all, the last few (last 4), every second one counted from the end (every 2), or a list of "
        "steps and epochs (100, 200, epoch 3).",
    )
    strengths: str = knob("1", "Strengths of the LoRA, with commas: 0.6, 0.8, 1. Each is a row.")
    with_base: bool = knob(True, "Adds a row without the LoRA.")
    chosen: str = knob("last", "The checkpoint that is handed on: last, step 200 or epoch 3.")

    def __post_init__(self) -> None:
        """Refuse strengths that are no numbers."""
        super().__post_init__()
        self.each_strength()

    def each_strength(self) -> list[float]:
        """The strengths, each once.

        Raises:
            SettingError: One is no number, or too large.
        """
        found = []
        for part in self.strengths.split(","):
            try:
                value = float(part)
            except ValueError:
                value = math.nan
            if not abs(value) <= _MOST_STRENGTH:
                raise SettingError(
                    f"strengths has {part.strip()!r}. Write numbers from -100 to 100 with commas, such as 0.6, 0.8, 1."
                )
            found.append(value)
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Comparison:
    """What comes out.

    Attributes:
        sheet: All pictures with their labels.
        lora: The LoRA of the chosen checkpoint.
        text: What was compared, in one line.
    """

    sheet: Image.Image
    lora: LoraModel
    text: str


def compare(
    model: Any, clip: Any, vae: Any, run: RunSummary, samples: SampleOptions, settings: CompareSettings, sink: Sink
) -> Comparison:
    """Paint the prompts with each checkpoint at each strength.

    Pictures of the last comparison on these sockets are taken again, so that choosing a checkpoint paints nothing.

    Args:
        model: MODEL socket.
        clip: CLIP socket.
        vae: VAE socket.
        run: RUN socket.
        samples: The prompts. Their strength is not used.
        settings: Which checkpoints.
        sink: Receives the progress and is checked for a cancel.

    Raises:
        UserError: The run or a checkpoint is not there, or a LoRA does not fit the MODEL.
        Cancelled: The user pressed cancel between two pictures; in a picture the host's own cancel is raised.
    """
    found = checkpoints(Path(run.folder))
    handed_on = chosen(found, settings.chosen)
    rows, prompts = selected(found, settings.checkpoints), samples.lines()
    strengths = settings.each_strength()
    cells: list[tuple[Checkpoint | None, float]] = [(row, strength) for row in rows for strength in strengths]
    if settings.with_base:
        cells.insert(0, (None, 0.0))
    keys = [_key(*cell) for cell in cells]
    painted = _painted(model, clip, vae, prompts, keys)
    progress = _Progress(sink, (len(cells) - len(painted)) * len(prompts))
    drawn = []
    with take_back(model, clip):
        for key, (row, strength) in zip(keys, cells, strict=True):
            if key not in painted:
                lora = None if row is None else load(row)
                painted[key] = progress.paint(Painter(model, clip, vae, prompts, lora, strength), prompts)
            label, note = ("without LoRA", "") if row is None else (row.label, f"strength {strength:g}")
            drawn.append(Row(label, note, painted[key], row == handed_on))
    what = [counted(len(rows), "checkpoint"), counted(len(strengths), "strength"), counted(len(prompts), "prompt")]
    texts = [prompt.text for prompt in prompts]
    sheet = checkpoint_sheet(f"{run.name}: {', '.join(what)}", texts, drawn)
    return Comparison(sheet, load(handed_on), f"{', '.join(what)}. Hands on {handed_on.label}.")


def selected(found: list[Checkpoint], text: str) -> list[Checkpoint]:
    """The checkpoints that a text names, oldest first, each once.

    Args:
        found: The checkpoints of a run, oldest first.
        text: `all`, `last 4`, `every 2`, or steps and epochs with commas: `100, step 200, epoch 3, last`.

    Raises:
        UserError: The text names a checkpoint that is not there, or cannot be read.
    """
    words = text.lower().split()
    if words == ["all"]:
        return found
    if len(words) == 2 and words[0] in ("last", "every"):
        kind, number = words
        if not (number.isascii() and number.isdigit() and int(number) > 0):
            raise UserError(f"checkpoints is {text!r}. Write a whole number above 0 after {kind}, such as {kind} 2.")
        return found[-int(number) :] if kind == "last" else found[::-1][:: int(number)][::-1]
    named = [chosen(found, part) for part in text.split(",") if part.strip()]
    if not named:
        raise UserError("checkpoints is empty. Write all, last 4, every 2, or steps such as 100, 200.")
    return [one for one in found if one in named]


@dataclass(frozen=True)
class _Painted:
    """What the last comparison with a MODEL painted, in the size of a sheet's cells. It holds no socket."""

    clip: weakref.ref[Any]
    vae: weakref.ref[Any]
    prompts: tuple[Prompt, ...]
    rows: dict[object, list[Image.Image]]


_last: weakref.WeakKeyDictionary[Any, _Painted] = weakref.WeakKeyDictionary()


def _painted(
    model: Any, clip: Any, vae: Any, prompts: tuple[Prompt, ...], keys: list[object]
) -> dict[object, list[Image.Image]]:
    """The rows that need no painting. What is added to them is there the next time, even after a cancel."""
    last, rows = _last.get(model), {}
    if last and last.clip() is clip and last.vae() is vae and last.prompts == prompts:
        rows = {key: last.rows[key] for key in keys if key in last.rows}
    _last[model] = _Painted(weakref.ref(clip), weakref.ref(vae), prompts, rows)
    return rows


def _key(row: Checkpoint | None, strength: float) -> object:
    """What a row's pictures depend on, the sockets and prompts apart: the file as it now is."""
    if row is None:
        return None
    try:
        facts = row.path.stat()
    except OSError:
        return object()  # like no other; to load it says what is wrong
    return row.path, facts.st_size, facts.st_mtime_ns, strength


class _Progress:
    """Counts the pictures of all rows."""

    def __init__(self, sink: Sink, total: int) -> None:
        self._sink, self._total, self._done = sink, total, 0

    def paint(self, painter: Painter, prompts: tuple[Prompt, ...]) -> list[Image.Image]:
        """Paint one row."""
        latents = []
        for prompt in prompts:
            if self._sink.cancelled():
                raise Cancelled
            self._sink.phase("pictures", self._done, self._total)
            latents.append(painter.sample(prompt))
            self._done += 1
        images = [painter.decode(latent).convert("RGB") for latent in latents]
        for image in images:
            image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        self._sink.phase("pictures", self._done, self._total)
        return images
