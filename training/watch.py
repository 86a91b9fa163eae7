"""What a run is watched with: where it is shown, which samples it makes, which pictures it is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .data.dataset import Dataset
from .events import NOWHERE, Place
from .settings import Settings, knob


@dataclass(frozen=True)
class SampleOptions(Settings):
    """The settings of Sample Prompts: which pictures a run makes of itself, and when."""

    prompts: str = knob(
        "",
        "One prompt a line. A line may end in kohya's options: --w width, --h height, --s steps, --l CFG, --d seed, "
        "--n negative prompt.",
        multiline=True,
    )
    negative: str = knob("", "Negative prompt of all lines without --n.", multiline=True)
    width: int = knob(1024, "Width in pixels.", min=64, max=8192, step=8)
    height: int = knob(1024, "Height in pixels.", min=64, max=8192, step=8)
    steps: int = knob(20, "Sampling steps.", min=1, max=1000)
    cfg: float = knob(7.0, "CFG scale. Use 1 for models without it, such as Flux.", min=0.0, max=100.0, step=0.1)
    sampler: str = knob("euler", "Sampler, as in KSampler.")
    scheduler: str = knob("normal", "Scheduler, as in KSampler.")
    seed: int = knob(
        0, "Seed of every prompt without --d. It stays the same, so that steps can be compared.", min=0, max=2**63 - 1
    )
    strength: float = knob(1.0, "Strength of the LoRA.", min=-100.0, max=100.0, step=0.05)
    every_epochs: int = knob(1, "Makes samples every this many epochs. 0: not by epochs.", min=0, max=100_000)
    every_steps: int = knob(0, "Makes samples every this many steps. 0: not by steps.", min=0, max=10_000_000)
    at_start: bool = knob(True, "Makes samples before the first step too, to compare with.")


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
    """

    place: Place = NOWHERE
    samples: SampleOptions | None = None
    held_out: HeldOut | None = None
    picture_metadata: Mapping[str, str] = field(default_factory=dict)


UNWATCHED = Watch()
