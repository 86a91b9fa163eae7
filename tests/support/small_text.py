"""Small CLIPs with the widths that models expect, made by the host's own classes with seeded random weights.

Needs a host on sys.path (fixture `comfy_host`); it is imported inside the functions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

_SMALL = {"num_hidden_layers": 3, "intermediate_size": 256}
_NARROW = {"hidden_size": 32, "num_attention_heads": 2}
_SMALL_T5 = {"num_layers": 2, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4}


def small_clip(name: str, dtype: torch.dtype | None = None) -> Any:
    """A CLIP socket of encoders of two and three layers, as a running server has it: its weights are inference tensors.

    Args:
        name: `sd15`, `sdxl` or `flux` (CLIP-L and T5), each with the widths of the small model of that name.
        dtype: Of its weights; None for fp32.
    """
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.flux as flux

    target = {
        "sd15": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
        "sdxl": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
        "flux": (flux.FluxClipModel, flux.FluxTokenizer),
    }[name]
    options = {
        "clip_l_model_config": _SMALL | (_NARROW if name == "flux" else {}),
        "clip_g_model_config": _SMALL,
        "t5xxl_model_config": _SMALL_T5,
        "dtype": dtype or torch.float32,
    }
    with torch.inference_mode():
        clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=target[0], tokenizer=target[1]), model_options=options)
        draws = torch.Generator().manual_seed(5)
        for key, value in clip.cond_stage_model.state_dict().items():
            if "norm" in key:
                value.fill_(1.0 if key.endswith("weight") else 0.0)
            elif value.is_floating_point() and value.ndim:
                scale = 0.3 if "position" in key else 1.0 if "embed" in key or "shared" in key else 0.03
                value.copy_(torch.randn(value.shape, generator=draws) * scale)
    return clip
