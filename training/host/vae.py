"""The VAE: turns placed pictures into latents, once for each picture and crop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.sd
import numpy as np
import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from comfy.ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from torch import Tensor, nn

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

    def encode(self, pixels: np.ndarray) -> dict[str, Tensor]:
        """Encode one picture. The VAE is the same afterwards.

        Args:
            pixels: [H, W, 3], 0 to 1.

        Returns:
            `latent`: the mean of the VAE's distribution [1, C, (T,) h, w]. `spread`: its standard deviation, of the
            same shape; missing if the VAE has none. Both are on the CPU in fp32 and not yet scaled for a model. They
            may be not finite.
        """
        return _encoded(self.vae, pixels)

    def encode_in_fp32(self, pixels: np.ndarray) -> dict[str, Tensor] | None:
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
    """The shape of the latent that `HostVAE.encode` would give a picture, without encoding: [1, C, (T,) h, w].

    Args:
        vae: VAE socket.
        bucket: Width and height in pixels.
    """
    step = int(vae.spacial_compression_encode())
    frames = (1,) * (int(vae.latent_dim) - 2)
    return (1, int(vae.latent_channels), *frames, bucket[1] // step, bucket[0] // step)


def has_spread(vae: Any) -> bool:
    """Whether a VAE encodes a picture as a distribution: mean and standard deviation of each element."""
    return bool(_regularizers(vae))


def _regularizers(vae: Any) -> list[nn.Module]:
    return [part for part in vae.first_stage_model.modules() if isinstance(part, DiagonalGaussianRegularizer)]


def _encoded(vae: Any, pixels: np.ndarray) -> dict[str, Tensor]:
    """Encode a picture along the host's own path, which falls back to tiles where memory is short.

    The host returns one tensor for each picture. Its regularizer, which makes the latent from mean and standard
    deviation (Kingma & Welling 2014, section 2.4), gets another forward for that time. Three passes are made where
    tiles are blended or the model scales its latents; else one.
    """
    picture, seen = torch.from_numpy(pixels)[None], []

    def encoded(chosen: Callable[[DiagonalGaussianDistribution], Tensor]) -> Tensor:
        def forward(moments: Tensor) -> tuple[Tensor, None]:
            seen.append(DiagonalGaussianDistribution(moments.float()))
            return chosen(seen[-1]), None

        # Autoencoders of other packs may sample. A fixed seed keeps cache and run repeatable. The state of the
        # global generator, which other nodes may use, is restored.
        with seeded(), _with_forward(_regularizers(vae), forward):
            latent: Tensor = vae.encode(picture)
        return latent.float().cpu()

    mean = encoded(lambda found: found.mean)
    if not seen or not mean.isfinite().all():
        return {"latent": mean}
    first = seen[0]
    if len(seen) == 1 and first.mean.shape == mean.shape and torch.equal(first.mean.cpu(), mean):
        return {"latent": mean, "spread": first.std.cpu()}
    # Tiles were blended, or the model scales the latent further. Both are linear, so their offset cancels out.
    scaled, offset = encoded(lambda found: found.std), encoded(lambda found: torch.zeros_like(found.std))
    return {"latent": mean, "spread": (scaled - offset).abs()}


@contextmanager
def _with_forward(modules: list[nn.Module], forward: Callable[[Tensor], Any]) -> Iterator[None]:
    """Let modules compute something else inside the block."""
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = forward
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own


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
def seeded() -> Iterator[None]:
    """Seed the global generators inside the block and restore their states after it."""
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()), device_type="cuda"):
            torch.manual_seed(0)
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
