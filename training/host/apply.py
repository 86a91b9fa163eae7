"""Applies a LORA_MODEL to a MODEL and CLIP with the host's own loader, as LoraLoader does with a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd

from ..errors import UserError
from ..settings import Settings, knob


@dataclass(frozen=True)
class ApplySettings(Settings):
    """How strongly a LoRA is applied."""

    strength_model: float = knob(
        1.0, "Strength of the LoRA on the model. 0 turns it off; 1 is the trained strength.",
        min=-100.0, max=100.0, step=0.01, rounded=True,
    )
    strength_clip: float = knob(
        1.0,
        "Strength of the LoRA on the text encoders. It has no effect where none was trained; the node then says so.",
        min=-100.0, max=100.0, step=0.01, rounded=True,
    )


def apply_lora(model: Any, clip: Any, lora: dict[str, Any], strength_model: float, strength_clip: float) -> Any:
    """Return clones of MODEL and CLIP with the LoRA applied.

    Raises:
        UserError: No layer of the LoRA belongs to this MODEL or CLIP.
    """
    if strength_model == 0 and strength_clip == 0:
        return model, clip
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    # The host's own reader, because a LORA_MODEL of its nodes can also be a LoHa, LoKr or OFT.
    if not comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), names, log_missing=False):
        raise does_not_fit(model, lora)
    return comfy.sd.load_lora_for_models(model, clip, dict(lora), strength_model, strength_clip)


def has_text_layers(clip: Any, lora: dict[str, Any]) -> bool:
    """Whether a LoRA has a layer that belongs to a text encoder of this CLIP."""
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    return bool(comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), names, log_missing=False))


def does_not_fit(model: Any, lora: Mapping[str, Any]) -> UserError:
    """The error that no layer of a LoRA belongs to a MODEL."""
    return UserError(
        f"This LoRA does not fit this MODEL ({type(model.model.model_config).__name__}): none of its {len(lora)} "
        "tensors has a place in it. Connect a MODEL of the architecture it was trained on."
    )
