"""The VAE: turns placed pictures into latents, once for each picture and crop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .identity import weights_identity


class HostVAE:
    """A VAE as the latent cache uses it."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.identity = weights_identity(vae.first_stage_model)

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Encode one picture.

        Args:
            pixels: [H, W, 3], 0 to 1.

        Returns:
            Latents [1, C, (T,) h, w] on the CPU in fp32, not yet scaled for a model.
        """
        # Some of the host's autoencoders sample. A fixed seed keeps cache and run repeatable. The state of the global
        # generator, which other nodes may use, is restored.
        with _seeded():
            latent: Tensor = self.vae.encode(torch.from_numpy(pixels)[None])
        return latent.float().cpu()


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the global generators inside the block and restore their states after it."""
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()), device_type="cuda"):
            torch.manual_seed(0)
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
