"""How a setting is declared: one dataclass field with its doc, default and bounds, checked in words."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from .errors import SettingError


def knob(
    default: Any,
    doc: str,
    *,
    min: float | None = None,
    max: float | None = None,
    step: float | None = None,
    choices: tuple[str, ...] | None = None,
    advanced: bool = False,
    saved_as: str = "",
) -> Any:
    """Declare one setting of a frozen dataclass.

    Args:
        default: Its value when nothing is said.
        doc: What it does and what to choose, shown as the tooltip.
        min: Smallest value allowed.
        max: Largest value allowed.
        step: Step of the number widget.
        choices: The values allowed, for a choice.
        advanced: Whether the node hides it until asked.
        saved_as: Its key in the metadata of a LoRA file, kohya's where there is one (`ss_seed`). Empty: not saved.
    """
    metadata = {
        "doc": doc, "min": min, "max": max, "step": step, "choices": choices, "advanced": advanced,
        "saved_as": saved_as,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of the frozen dataclasses made of knobs: their values are checked when they are made.

    Attributes:
        ORDER: Names of the settings in the order of the node's inputs, where it is not that of the fields.
    """

    ORDER: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Hold every setting against its bounds.

        Raises:
            SettingError: A value is outside its range or not among its choices.
        """
        check_fields(self)


def ordered_fields(config: Any) -> list[dataclasses.Field[Any]]:
    """The settings of a config, or of its class, in the order of the node's inputs."""
    places = {name: place for place, name in enumerate(config.ORDER)}
    return sorted(dataclasses.fields(config), key=lambda field: places.get(field.name, len(places)))


def saved_settings(config: Any) -> dict[str, Any]:
    """The values that are saved in the metadata of a LoRA file, by their keys there."""
    fields = [field for field in dataclasses.fields(config) if field.metadata["saved_as"]]
    return {field.metadata["saved_as"]: getattr(config, field.name) for field in fields}


def check_fields(config: Any) -> None:
    """Hold every setting of a config against its own bounds.

    Raises:
        SettingError: A value is outside its range or not among its choices.
    """
    for field in dataclasses.fields(config):
        value, rule = getattr(config, field.name), field.metadata
        label = field.name.replace("_", " ")
        if rule.get("choices") and value not in rule["choices"]:
            raise SettingError(f"{label} is {value!r}: choose one of {', '.join(rule['choices'])}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise SettingError(f"{label} is {value}: it must be a finite number.")
        low, high = rule.get("min"), rule.get("max")
        if low is not None and value < low:
            raise SettingError(f"{label} is {value}: it must be at least {low}.")
        if high is not None and value > high:
            raise SettingError(f"{label} is {value}: it must be at most {high}.")


_COLORS = {"white": (255, 255, 255), "grey": (128, 128, 128), "gray": (128, 128, 128), "black": (0, 0, 0)}


def parse_color(text: str) -> tuple[int, int, int]:
    """Read a colour: `#rrggbb`, `white`, `grey` or `black`.

    Raises:
        SettingError: It is neither.
    """
    word = text.strip().lower()
    if word in _COLORS:
        return _COLORS[word]
    digits = word.removeprefix("#")
    if len(digits) == 6 and all(digit in "0123456789abcdef" for digit in digits):
        red, green, blue = (int(digits[at : at + 2], 16) for at in (0, 2, 4))
        return red, green, blue
    raise SettingError(f"background is {text!r}: write it as #rrggbb, or white, grey or black.")
