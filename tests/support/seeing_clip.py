"""A small text encoder that sees pictures and writes: the host's own Qwen3-VL classes with random weights."""

from __future__ import annotations

from typing import Any

import torch

NAME = "qwen3vl_4b"
_SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
_SMALL_EYES = {"hidden_size": 256, "intermediate_size": 256, "depth": 2, "deepstack_visual_indexes": [0, 1]}


def seeing_clip(monkeypatch: Any) -> Any:
    """A CLIP that writes words without sense, others for each picture.

    Only sizes are changed: the language model's by the host's own option, the eyes' in its table.
    """
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, NAME, _SMALL_EYES)

    class Target:
        params: dict[str, Any] = {}
        clip, tokenizer = qwen3vl.te(model_type=NAME), qwen3vl.tokenizer(NAME)

    options = {f"{NAME}_model_config": _SMALL, "dtype": torch.float32}
    clip = comfy.sd.CLIP(Target, model_options=options, parameters=0, state_dict=[])
    draws = torch.Generator().manual_seed(0)
    for weight in clip.cond_stage_model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=weight.shape[1] ** -0.5, generator=draws)
        else:
            weight.data.fill_(1.0)
    return clip
