"""One finding of the doctor: what is wrong, in which files, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..events import counted

# Severity of a finding: it spoils the training, weakens it, or is worth knowing.
SPOILS, WEAKENS, NOTE = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        severity: SPOILS, WEAKENS or NOTE.
        kind: A short name, such as `near-duplicates`.
        what: What was found.
        advice: What to do, and why.
        files: The pictures concerned, as paths within the dataset.
        exclude: The pictures among them that can be left out without loss.
    """

    severity: int
    kind: str
    what: str
    advice: str
    files: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def pictures_that(files: Sequence[str], one: str, more: str, rest: str = "") -> str:
    """Begin a sentence with a number of pictures: `1 picture lacks …`, `2 pictures lack …`."""
    said = f"{counted(len(files), 'picture')} {one if len(files) == 1 else more}"
    return f"{said} {rest}" if rest else f"{said}."
