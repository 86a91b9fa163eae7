"""Slow drawings that are the same in every test, made once."""

from __future__ import annotations

import functools

import pytest
from lora_workbench.lab.base_model import assemble
from lora_workbench.lab.world import concepts

PICTURES = functools.cache(concepts.pictures)
TEXT_ENCODER = functools.cache(assemble.text_encoder_weights)


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are functions of their arguments alone, and no test changes what they return."""
    monkeypatch.setattr(concepts, "pictures", PICTURES)
    monkeypatch.setattr(assemble, "text_encoder_weights", TEXT_ENCODER)
