"""What a training step draws and what it is held against.

The loss is the mean squared error of the network's own prediction (noise, v or velocity), in fp32, as kohya,
diffusers and the papers have it: DDPM (Ho et al. 2020), v-prediction (Salimans & Ho 2022), rectified flow
(Esser et al. 2024). It is computed from the host's clean-image estimate divided by the slope of that estimate, so
one formula serves every kind of prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .data.dataset import Placement
from .draws import generator


class Denoiser(Protocol):
    """The part of a model that the objective needs."""

    is_flow: bool

    def sigma_table(self) -> Tensor: ...  # noqa: D102 - see training/host/model.py
    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...  # noqa: D102
    def output_scale(self, sigma: Tensor, ndim: int) -> Tensor: ...  # noqa: D102
    def denoised(self, xt: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor: ...  # noqa: D102


def timesteps_in_force(wanted: str, is_flow: bool) -> str:
    """How noise levels are drawn: `auto` is logit-normal for flows, uniform for diffusion models."""
    if wanted != "auto":
        return wanted
    return "logit-normal" if is_flow else "uniform"


@dataclass(frozen=True)
class Draw:
    """The random part of one micro-step: noise [B, C, …] and noise levels sigma [B]."""

    noise: Tensor
    sigma: Tensor


def draw(shape: tuple[int, ...], table: Tensor, timesteps: str, seed: int, micro_step: int) -> Draw:
    """Draw noise and noise levels for one micro-step, on the CPU so that every machine draws the same.

    Noise levels are taken from the model's own schedule: uniformly, or logit-normally (around the middle, Esser et al.
    2024, section 3.1). A flow's schedule carries the model's shift already.

    Args:
        shape: [B, C, (T,) H, W].
        table: Rising noise levels of the schedule.
        timesteps: `uniform` or `logit-normal`.
        seed: The run's seed.
        micro_step: Micro-steps since the run began.
    """
    noise = torch.randn(shape, generator=generator(seed, "noise", micro_step))
    times = generator(seed, "timestep", micro_step)
    if timesteps == "logit-normal":
        share = torch.sigmoid(torch.randn(shape[0], generator=times))
    else:
        share = torch.rand(shape[0], generator=times)
    index = (share * len(table)).long().clamp_(max=len(table) - 1)
    return Draw(noise, table[index])


def prediction_losses(
    denoiser: Denoiser,
    x0: Tensor,
    drawn: Draw,
    conds: list[dict[str, Any]],
    mask: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Return the loss of each picture, [B], fp32, differentiable.

    Args:
        denoiser: The model.
        x0: Clean latents [B, C, …] in the model's own scale.
        drawn: Noise and noise levels, on the device of `x0`.
        conds: Conditions of each picture.
        mask: Weight of each latent position [B, 1, …]; the loss is the weighted mean. None: all alike.
        target: Latents [B, C, …] that the clean-image estimate is held against; None: `x0`.
    """
    xt = denoiser.noised(x0, drawn.noise, drawn.sigma)
    target = x0 if target is None else target
    error = (denoiser.denoised(xt, drawn.sigma, conds).float() - target) / denoiser.output_scale(
        drawn.sigma, x0.ndim
    )
    squared = error.square()
    if mask is None:
        return squared.flatten(1).mean(1)
    weight = mask.expand_as(squared)
    return (squared * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


def padding_mask(placement: Placement, latent: Tensor) -> Tensor | None:
    """Weight of each latent position by how much picture lies under it; None when all of it does.

    Args:
        placement: How the picture lies in its bucket.
        latent: [1, C, (T,) h, w], for its shape.
    """
    if placement.fit != "pad" or placement.scaled == placement.bucket:
        return None
    width, height = placement.bucket
    left, top = placement.offset
    pixels = torch.zeros(1, 1, height, width)
    pixels[..., top : top + placement.scaled[1], left : left + placement.scaled[0]] = 1
    mask = F.interpolate(pixels, size=latent.shape[-2:], mode="area")
    return mask.view(1, *[1] * (latent.ndim - 3), *latent.shape[-2:])
