"""The VAE: from placed pictures to latents, once for each picture and crop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .identity import weights_identity


class HostVAE:
    """A VAE socket as the latent cache needs it."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.identity = weights_identity(vae.first_stage_model)

    @property
    def step(self) -> int:
        """Pixels per latent position; sides of pictures must be multiples of it."""
        return int(self.vae.spacial_compression_encode())

    @property
    def latent_channels(self) -> int:
        """Channels of its latents."""
        return int(self.vae.latent_channels)

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Encode one picture.

        Args:
            pixels: [H, W, 3], 0 to 1.

        Returns:
            Latents [1, C, (T,) h, w] on the CPU, fp32, not yet scaled for a model.
        """
        # Some of the host's autoencoders sample; a fixed seed keeps the cache and the run repeatable, and the
        # global generator, which other nodes may draw from, is left as it was.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            latent: Tensor = self.vae.encode(torch.from_numpy(pixels)[None])
        return latent.float().cpu()
