"""Everything the base model uses of ComfyUI, in one place to adapt to its next version.

Imported late, for training and painting: assembling the checkpoint needs no host.
"""

from __future__ import annotations

from typing import Any

import comfy.ops
import comfy.sample
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper, get_2d_sincos_pos_embed
from comfy.taesd.taesd import TAESD

__all__ = ["get_2d_sincos_pos_embed", "load_checkpoint", "new_mmdit", "new_taesd", "noise_of", "sample", "text_encoder"]

noise_of, sample = comfy.sample.prepare_noise, comfy.sample.sample


def new_mmdit(config: dict[str, Any]) -> torch.nn.Module:
    """SD3's denoiser in fp32, with uninitialised weights."""
    operations = comfy.ops.disable_weight_init
    return OpenAISignatureMMDITWrapper(**config, device="cpu", dtype=torch.float32, operations=operations)


def new_taesd() -> torch.nn.Module:
    """The small VAE with 16 latent channels."""
    return TAESD(latent_channels=16)


def text_encoder(clip_l: dict[str, torch.Tensor]) -> Any:
    """SD3's CLIP with only a CLIP-L."""
    return comfy.sd.load_text_encoder_state_dicts([clip_l], clip_type=comfy.sd.CLIPType.SD3)


def load_checkpoint(file: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, as CheckpointLoaderSimple loads them."""
    return comfy.sd.load_checkpoint_guess_config(file)[:3]
