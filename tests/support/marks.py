"""Parameters of tests of which only some run in the quick suite."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def long_but(quick: Collection[Any], values: Iterable[Any], ids: Callable[[Any], str] | None = None) -> list[Any]:
    """All values as parameters of a test. Those that are not quick run with the long tests."""
    marks = {False: [pytest.mark.long], True: []}
    return [pytest.param(value, marks=marks[value in quick], id=ids(value) if ids else None) for value in values]
