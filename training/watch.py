"""What a run is watched with: where it is shown, which samples it makes, which pictures it is measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from .data.dataset import Dataset
from .events import NOWHERE, Place
from .prompts import PaintSettings, Prompt, parse
from .settings import Settings, knob


@dataclass(frozen=True)
class SampleOptions(PaintSettings):
    """The settings of Sample Prompts: which pictures a run makes of itself, and when."""

    prompts: str = knob(
        "",
        "One prompt a line. A line may end in kohya's options: --w width, --h height, --s steps, --l CFG, "
        "--g guidance, --d seed, --n negative prompt. Lines that start with # are left out.",
        multiline=True,
    )
    strength: float = knob(1.0, "Strength of the LoRA.", min=-100.0, max=100.0, step=0.05, rounded=True)
    every_epochs: int = knob(1, "Makes samples every this many epochs. 0: not by epochs.", min=0, max=100_000)
    every_steps: int = knob(0, "Makes samples every this many steps. 0: not by steps.", min=0, max=10_000_000)
    at_start: bool = knob(True, "Makes samples before the first step too, to compare with.")

    ORDER: ClassVar[tuple[str, ...]] = (
        "prompts", "negative", "width", "height", "steps", "cfg", "guidance", "sampler", "scheduler", "seed",
        "strength", "every_epochs", "every_steps", "at_start",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse prompts that cannot be read."""
        super().__post_init__()
        self.lines()

    def lines(self) -> tuple[Prompt, ...]:
        """The prompts with their settings."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(PaintSettings)}
        return parse(self.prompts, PaintSettings(**own))


@dataclass(frozen=True)
class HeldOutSettings(Settings):
    """The settings of Held-out Pictures."""

    share: float = knob(
        10.0,
        "Percent of each concept's pictures that are measured and not trained. At least one picture, if a concept has "
        "two or more. 0 holds none out.",
        min=0.0, max=90.0, step=1.0,
    )
    every_steps: int = knob(
        0, "Measures every this many steps. 0 measures after every epoch.", min=0, max=10_000_000
    )


@dataclass(frozen=True)
class HeldOut:
    """Pictures that are measured and not trained.

    Attributes:
        every_steps: How often they are measured.
        share: Share of each concept's training pictures that is held out, 0 to 1.
        dataset: A bucketed dataset to measure; None: none but the share.
    """

    every_steps: int
    share: float = 0.0
    dataset: Dataset | None = None


@dataclass(frozen=True)
class Watch:
    """What a run is watched with.

    Attributes:
        place: Where the run takes place.
        samples: Which samples it makes; None for none.
        held_out: Which pictures it is measured on; None for none.
        picture_metadata: What each sample's PNG carries, by key: the prompt and the workflow, as ComfyUI saves them.
            None: no text at all.
    """

    place: Place = NOWHERE
    samples: SampleOptions | None = None
    held_out: HeldOut | None = None
    picture_metadata: Mapping[str, str] | None = field(default_factory=dict)


UNWATCHED = Watch()
