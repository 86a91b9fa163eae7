"""The exceptions whose text is written for the person at the graph."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """An error the user can fix. Its text says what is wrong, where, and what to do.

    ComfyUI shows an error's type in front of its text, with the path of its module unless it is a built-in one. The
    path of ours begins with the folder of the pack on this machine, so these classes leave it out.
    """

    __module__ = "builtins"

    def __init_subclass__(cls, **parts: Any) -> None:
        """Leave the path out for the subclasses too."""
        super().__init_subclass__(**parts)
        cls.__module__ = UserError.__module__


class SettingError(UserError):
    """A setting is out of range or conflicts with another one."""


class UnreadableImage(UserError):
    """A picture cannot be read. The run can continue without it."""


class NotRecomputable(UserError):
    """A model's blocks give other gradients when they are computed again, so it trains without checkpointing only."""
