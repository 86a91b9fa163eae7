"""The pieces of the objective: the model as a step uses it, what a step draws, and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .data.dataset import Placement
from .draws import generator
from .late import sent


class TrainedText(Protocol):
    """The text encoders that are trained; `training/host/text_encoders.py` has the one there is."""

    stopped: frozenset[str]

    def encode(self, caption: str) -> Any: ...  # noqa: D102


class Denoiser(Protocol):
    """The model as a training step uses it; `training/host/model.py` is the one there is."""

    device: torch.device

    @property
    def text(self) -> TrainedText | None: ...  # noqa: D102

    @property
    def is_flow(self) -> bool: ...  # noqa: D102

    def sigma_table(self) -> Tensor: ...  # noqa: D102
    def latents_in(self, latents: Tensor) -> Tensor: ...  # noqa: D102
    def conditions(self, conditioning: Any, noise: Tensor, extra: dict[str, Any]) -> dict[str, Any]: ...  # noqa: D102
    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...  # noqa: D102
    def denoised(self, xt: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor: ...  # noqa: D102
    def output_scale(self, sigma: Tensor, ndim: int) -> Tensor: ...  # noqa: D102


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

    def to(self, device: torch.device) -> Draw:
        """The same on a device."""
        return Draw(sent(self.noise, device), sent(self.sigma, device))


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


def mean_per_picture(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each picture, [B].

    Args:
        values: [B, C, …].
        mask: Weight of each position [B, 1, …]; the mean is a weighted one. None: all positions weigh the same.
    """
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.expand_as(values)
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


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
