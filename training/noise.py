"""The noise that is added to the latents: plain, in several resolutions, offset or perturbed.

All of it is drawn on the CPU, so that every machine draws the same. Only the strength of an adaptive offset comes from
the latents, which are on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .draws import generator
from .late import sent
from .options import LossOptions


def draw_noise(shape: tuple[int, ...], options: LossOptions, seed: int, micro_step: int) -> Tensor:
    """Draw the noise of a micro-step, without offset.

    Args:
        shape: [B, C, (T,) H, W].
        options: `multires_iterations`, `multires_discount`.
        seed: The run's seed.
        micro_step: Micro-steps since the run began.
    """
    noise = torch.randn(shape, generator=generator(seed, "noise", micro_step))
    if options.multires_iterations:
        noise = _with_coarser(noise, options, generator(seed, "multires", micro_step))
    return noise


def _with_coarser(noise: Tensor, options: LossOptions, source: torch.Generator) -> Tensor:
    """Add ever coarser noise, and bring each picture back to a standard deviation of 1.

    Multi-resolution noise (Whitaker 2023) as kohya's trainer counts it: the first layer is as fine as the noise itself,
    each of the others 2 to 4 times coarser, to the power of its number, and weaker by the discount.
    """
    flat = noise.flatten(1, -3) if noise.ndim > 4 else noise  # frames are channels here
    height, width = flat.shape[-2:]
    total = flat.clone()
    for layer in range(options.multires_iterations):
        factor = (2 + 2 * float(torch.rand((), generator=source))) ** layer
        size = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn(*flat.shape[:2], *size, generator=source)
        total += F.interpolate(coarse, size=(height, width), mode="bilinear") * options.multires_discount**layer
        if 1 in size:
            break
    total = total.view(noise.shape)
    spread = total.flatten(1).std(1)
    return total / spread.view(-1, *[1] * (noise.ndim - 1))


def add_offset(noise: Tensor, x0: Tensor, options: LossOptions, seed: int, micro_step: int) -> Tensor:
    """Shift the noise of each channel by one number drawn for it (Guttenberg 2023, "Diffusion with offset noise").

    The adaptive strength is kohya's: noise_offset + scale · |mean of the channel|, at least 0.

    Args:
        noise: [B, C, …].
        x0: Clean latents in the model's scale, on the same device.
        options: The settings of the noise offset.
        seed: The run's seed.
        micro_step: Micro-steps since the run began.
    """
    if not options.noise_offset:
        return noise
    source = generator(seed, "noise offset", micro_step)
    shift = torch.randn(*noise.shape[:2], *[1] * (noise.ndim - 2), generator=source)
    if options.noise_offset_random:
        shift *= torch.rand(noise.shape[0], *[1] * (noise.ndim - 1), generator=source)
    shift = sent(shift, noise.device)
    if not options.noise_offset_adaptive:
        return noise + options.noise_offset * shift
    size = x0.mean(dim=tuple(range(2, x0.ndim)), keepdim=True).abs()
    return noise + (options.noise_offset + options.noise_offset_adaptive * size).clamp(min=0) * shift


def draw_perturbation(shape: tuple[int, ...], options: LossOptions, seed: int, micro_step: int) -> Tensor | None:
    """Draw the extra noise that the model sees and is not asked for (Ning et al. 2023, arXiv:2301.11706).

    Args:
        shape: [B, C, (T,) H, W].
        options: `ip_noise_gamma`, `ip_noise_random`.
        seed: The run's seed.
        micro_step: Micro-steps since the run began.

    Returns:
        What is added to the noise on the way to the model, or None.
    """
    if not options.ip_noise_gamma:
        return None
    source = generator(seed, "perturbation", micro_step)
    extra = torch.randn(shape, generator=source) * options.ip_noise_gamma
    if options.ip_noise_random:
        extra *= torch.rand(shape[0], *[1] * (len(shape) - 1), generator=source)
    return extra
