"""Settings: frozen dataclasses whose fields carry a doc, a default and bounds, and are checked on creation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from .errors import SettingError

AnySettings = TypeVar("AnySettings")


def knob(
    default: Any,
    doc: str,
    *,
    min: float | None = None,
    max: float | None = None,
    step: float | None = None,
    rounded: bool = False,
    choices: tuple[str, ...] | None = None,
    multiline: bool = False,
    advanced: bool = False,
    saved_as: str = "",
) -> Any:
    """Declare one setting of a frozen dataclass.

    Args:
        default: The default value.
        doc: What it does, then which value to choose. Shown as the tooltip.
        min: Smallest value allowed.
        max: Largest value allowed.
        step: Step of the number widget.
        rounded: Whether the widget rounds a typed number to the decimals of its step.
        choices: The values allowed. They make a drop-down list.
        multiline: Whether the text widget has several lines.
        advanced: Whether the node hides it until asked.
        saved_as: Its key in the metadata of a LoRA file, kohya's where there is one (`ss_seed`). Empty: not saved.
    """
    metadata = {
        "doc": doc, "min": min, "max": max, "step": step, "rounded": rounded, "choices": choices,
        "multiline": multiline, "advanced": advanced, "saved_as": saved_as,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the dataclasses made of knobs. Values are checked on creation.

    Attributes:
        ORDER: Names of the settings in the order of the node's inputs, where it is not that of the fields.
        ADDED_FROM: The first of those that the node's first version lacked. Prompts in API format that were saved with
            that version lack all from this one on, so these inputs are optional.
    """

    ORDER: ClassVar[tuple[str, ...]] = ()
    ADDED_FROM: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check every value against its bounds.

        Raises:
            SettingError: A value is outside its range or not among its choices.
        """
        check_fields(self)


def ordered_fields(config: Any) -> list[dataclasses.Field[Any]]:
    """The settings of a config, or of its class, in the order of the node's inputs."""
    places = {name: place for place, name in enumerate(config.ORDER)}
    return sorted(dataclasses.fields(config), key=lambda field: places.get(field.name, len(places)))


def saved_settings(config: Any, in_force: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are saved in the metadata of a LoRA file, by their keys there.

    Args:
        config: Settings.
        in_force: Values that took effect instead of those in `config`, by name.
    """
    fields = [field for field in dataclasses.fields(config) if field.metadata["saved_as"]]
    return {field.metadata["saved_as"]: in_force.get(field.name, getattr(config, field.name)) for field in fields}


def settings_from(config: type[AnySettings], values: Mapping[str, Any]) -> AnySettings:
    """Make settings from a mapping, ignoring keys that belong to other dataclasses.

    Args:
        config: A dataclass made of knobs. Missing values take their defaults.
        values: Values by field name, such as a node's inputs.

    Raises:
        SettingError: A value is outside its range or not among its choices.
    """
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    return config(**{name: value for name, value in values.items() if name in names})


def check_fields(config: Any) -> None:
    """Check every setting of a dataclass against its own bounds.

    Raises:
        SettingError: A value is outside its range or not among its choices.
    """
    for field in dataclasses.fields(config):
        value, rule = getattr(config, field.name), field.metadata
        label = field.name.replace("_", " ")
        if rule.get("choices") and value not in rule["choices"]:
            raise SettingError(f"{label} is {value!r}. Choose one of {', '.join(rule['choices'])}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise SettingError(f"{label} is {value}. Enter a finite number.")
        low, high = rule.get("min"), rule.get("max")
        if low is not None and value < low:
            raise SettingError(f"{label} is {value}. Set it to at least {low}.")
        if high is not None and value > high:
            raise SettingError(f"{label} is {value}. Set it to at most {high}.")


_COLORS = {"white": (255, 255, 255), "grey": (128, 128, 128), "gray": (128, 128, 128), "black": (0, 0, 0)}


def parse_color(text: str) -> tuple[int, int, int]:
    """Parse a colour: `#rrggbb`, `white`, `grey` or `black`.

    Returns:
        (r, g, b), 0 to 255.

    Raises:
        SettingError: The text is not a colour.
    """
    word = text.strip().lower()
    if word in _COLORS:
        return _COLORS[word]
    digits = word.removeprefix("#")
    if len(digits) == 6 and all(digit in "0123456789abcdef" for digit in digits):
        red, green, blue = (int(digits[at : at + 2], 16) for at in (0, 2, 4))
        return red, green, blue
    raise SettingError(f"background is {text!r}. Write it as #rrggbb, white, grey or black.")
