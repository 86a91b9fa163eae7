"""A small autoencoder of the host whose latents have a mean and a spread."""

from __future__ import annotations

from typing import Any

import torch

SMALL = {
    "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def vae_of(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A small AutoencoderKL of the host in its VAE: 4 channels, one latent cell for 8 x 8 pixels, random weights.

    Args:
        dtype: What it computes in.
        more: Settings of its encoder and decoder.
    """
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    params = {"embed_dim": 4, "ddconfig": {**SMALL, **more}}
    source = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        state = AutoencoderKL(**params).state_dict()
        for name, value in state.items():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=source) * 0.1 + (1 if "norm" in name else 0))
            if name == "bn.running_var":
                value.copy_(torch.rand(value.shape, generator=source) + 0.5)
        return comfy.sd.VAE(sd=state, config={"params": params}, dtype=dtype)
