"""Captioners in the host's keeping: it may take them off their device whenever it needs the room, and forget them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

from PIL import Image


def test_the_host_can_evict_a_captioner_and_it_comes_back(comfy_host: Any, tmp_path: Path) -> None:
    import comfy.model_management as management
    from lora_workbench.training.captions.vision_language import SentenceSettings, VisionLanguage
    from lora_workbench.training.host.held import held
    from support.captioners import KNOWN, tiny_blip

    made = VisionLanguage(tiny_blip(tmp_path), SentenceSettings(), held)
    pictures = [Image.new("RGB", (40, 40), color) for color in KNOWN]
    management.unload_all_models()
    assert made.caption(pictures) == list(KNOWN.values())
    assert len(management.current_loaded_models) == 1, "the host does not know of it"
    management.unload_all_models()
    assert not management.current_loaded_models
    assert made.caption(pictures) == list(KNOWN.values())

    weights = weakref.ref(made._model)
    del made
    gc.collect()
    management.cleanup_models()
    assert weights() is None, "its weights are still held"
    assert not management.current_loaded_models
