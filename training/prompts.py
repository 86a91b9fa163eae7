"""Prompts to paint, one a line, with the options that kohya's trainer knows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import SettingError
from .settings import Settings, knob

# By kohya's letter: the setting, and what its value is.
_OPTIONS: Mapping[str, tuple[str, type]] = {
    "w": ("width", int), "h": ("height", int), "s": ("steps", int), "l": ("cfg", float), "g": ("guidance", float),
    "d": ("seed", int), "n": ("negative", str),
}  # fmt: skip
_KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class PaintSettings(Settings):
    """How a prompt is painted."""

    negative: str = knob("", "Negative prompt of all lines without --n.", multiline=True)
    width: int = knob(
        1024, "Width in pixels of all lines without --w. Use a size of the model, such as 512 for SD 1.5.",
        min=64, max=8192, step=8,
    )
    height: int = knob(1024, "Height in pixels of all lines without --h.", min=64, max=8192, step=8)
    steps: int = knob(20, "Sampling steps of all lines without --s.", min=1, max=1000)
    cfg: float = knob(
        7.0, "CFG scale of all lines without --l. Use 1 for models without it, such as Flux.",
        min=0.0, max=100.0, step=0.1,
    )
    guidance: float = knob(
        3.5, "Guidance of all lines without --g, for models that have it as an input, such as Flux. Others ignore it.",
        min=0.0, max=100.0, step=0.1,
    )
    sampler: str = knob("euler", "Sampler, as in KSampler.")
    scheduler: str = knob("normal", "Scheduler, as in KSampler.")
    seed: int = knob(
        0, "Seed of all lines without --d. It stays the same, so that steps can be compared.", min=0, max=2**63 - 1
    )


@dataclass(frozen=True)
class Prompt:
    """One picture to paint.

    Attributes:
        text: The prompt.
        settings: How it is painted.
    """

    text: str
    settings: PaintSettings


def parse(text: str, standard: PaintSettings) -> tuple[Prompt, ...]:
    """Read prompts, one a line. Empty lines and those that start with # are left out.

    A line may end in options, as in kohya's sd-scripts: `--w` width, `--h` height, `--s` steps, `--l` CFG, `--g`
    guidance, `--d` seed, `--n` negative prompt.

    Args:
        text: The lines.
        standard: How a prompt without options is painted.

    Raises:
        SettingError: There is no prompt, or an option of a line is unknown or has a value that does not fit.
    """
    lines = [line.strip() for line in text.splitlines()]
    prompts = tuple(_prompt(line, standard) for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise SettingError("prompts has no prompt. Write at least one in Sample Prompts, one a line.")
    return prompts


def _prompt(line: str, standard: PaintSettings) -> Prompt:
    text, *options = re.split(r"(?:^|\s+)--", line)
    changes: dict[str, Any] = {}
    for option in options:
        letter, _, value = option.partition(" ")
        if letter not in _OPTIONS:
            known = ", ".join(f"--{letter}" for letter in _OPTIONS)
            raise SettingError(f"The prompt {line!r} has the unknown option --{letter}. Use {known}.")
        name, kind = _OPTIONS[letter]
        try:
            changes[name] = kind(value.strip())
        except ValueError:
            raise SettingError(
                f"The prompt {line!r} has --{letter} {value.strip()!r}. Write {_KINDS[kind]} after --{letter}."
            ) from None
    try:
        return Prompt(text.strip(), dataclasses.replace(standard, **changes))
    except SettingError as error:
        raise SettingError(f"The prompt {line!r}: {error}") from None
