"""The checkpoints of a finished run, each painting the same prompts from the same seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import SettingError, UserError
from .events import Cancelled, Sink, counted
from .host.sampling import Painter, take_back
from .lora import LoraModel, RunSummary
from .prompts import Prompt
from .review.checkpoint_sheet import Row, checkpoint_sheet
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
    number = len(rows) * len(strengths) + settings.with_base
    progress = _Progress(sink, number * len(prompts))
    drawn = []
    with take_back(model, clip):
        if settings.with_base:
            painter = Painter(model, clip, vae, prompts)
            drawn.append(Row("without LoRA", "", progress.paint(painter, prompts)))
        for row in rows:
            lora = load(row)
            for strength in strengths:
                painter = Painter(model, clip, vae, prompts, lora, strength)
                images = progress.paint(painter, prompts)
                drawn.append(Row(row.label, f"strength {strength:g}", images, row == handed_on))
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
        images = [painter.decode(latent) for latent in latents]
        self._sink.phase("pictures", self._done, self._total)
        return images
