"""The VAE: turns placed pictures into latents, once for each picture and crop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.sd
import numpy as np
import torch
from torch import Tensor

from .identity import weights_identity

log = logging.getLogger(__name__)

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class HostVAE:
    """A VAE as the latent cache uses it."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.identity = weights_identity(vae.first_stage_model)
        self.name = type(vae.first_stage_model).__name__
        precision = getattr(vae, "vae_dtype", torch.float32)
        self.dtype = _SHORT.get(precision, str(precision).removeprefix("torch."))
        self._copy: Any = None

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Encode one picture.

        Args:
            pixels: [H, W, 3], 0 to 1.

        Returns:
            Latents [1, C, (T,) h, w] on the CPU in fp32, not yet scaled for a model. They may be not finite.
        """
        return _encoded(self.vae, pixels)

    def encode_in_fp32(self, pixels: np.ndarray) -> Tensor | None:
        """Encode one picture with a copy of the VAE in fp32, made on the first call; the VAE itself is not touched.

        Returns:
            As `encode`; None if the VAE is in fp32 already or cannot be copied.
        """
        if self.dtype == "fp32":
            return None
        if self._copy is None:
            self._copy = _in_fp32(self.vae)
        return None if self._copy is None else _encoded(self._copy, pixels)


def latent_shape_of(vae: Any, bucket: tuple[int, int]) -> tuple[int, ...]:
    """The shape that `HostVAE.encode` would give a picture, without encoding: [1, C, (T,) h, w].

    Args:
        vae: VAE socket.
        bucket: Width and height in pixels.
    """
    step = int(vae.spacial_compression_encode())
    frames = (1,) * (int(vae.latent_dim) - 2)
    return (1, int(vae.latent_channels), *frames, bucket[1] // step, bucket[0] // step)


def _encoded(vae: Any, pixels: np.ndarray) -> Tensor:
    # Some of the host's autoencoders sample. A fixed seed keeps cache and run repeatable. The state of the global
    # generator, which other nodes may use, is restored.
    with _seeded():
        latent: Tensor = vae.encode(torch.from_numpy(pixels)[None])
    return latent.float().cpu()


def _in_fp32(vae: Any) -> Any:
    """Build the same VAE from its weights in fp32, as the host loads a saved one; None if that is another VAE.

    The module itself cannot be copied: with dynamic memory, it holds handles of the host's pages.
    """
    if type(vae) is not comfy.sd.VAE:
        return None  # another node's; what its own code does with fp32 is unknown
    with torch.inference_mode():
        weights = {name: tensor.float().cpu() for name, tensor in vae.get_sd().items()}
        layout = {name: tensor.shape for name, tensor in weights.items()}
        try:
            copy = comfy.sd.VAE(sd=weights, device=vae.device, dtype=torch.float32)
            same = {name: tensor.shape for name, tensor in copy.get_sd().items()} == layout
        except (AttributeError, KeyError, RuntimeError) as error:  # the host cannot tell what the weights are of
            log.warning("LoRA Workbench: the VAE cannot be loaded in fp32 (%s)", error)
            return None
    return copy if same and type(copy.first_stage_model) is type(vae.first_stage_model) else None


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
