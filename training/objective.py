"""The pieces of the objective: the model as a step uses it, what a step draws, and masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TrainConfig
from .data.dataset import Placement
from .draws import generator
from .errors import SettingError
from .late import sent
from .losses import EPS, FLOWS, V
from .noise import draw_noise, draw_perturbation
from .noise_levels import NoiseLevels, latent_tokens


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
    @property
    def prediction(self) -> str: ...  # noqa: D102
    @property
    def flow_shift(self) -> float | None: ...  # noqa: D102
    @property
    def patch_size(self) -> int: ...  # noqa: D102

    def modules(self) -> Iterator[nn.Module]: ...  # noqa: D102
    def sigma_table(self) -> Tensor: ...  # noqa: D102
    def latents_in(self, latents: Tensor) -> Tensor: ...  # noqa: D102
    def conditions(self, conditioning: Any, noise: Tensor, extra: dict[str, Any]) -> dict[str, Any]: ...  # noqa: D102
    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...  # noqa: D102
    def denoised(self, xt: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor: ...  # noqa: D102
    def output_scale(self, sigma: Tensor, ndim: int) -> Tensor: ...  # noqa: D102
    def input_scale(self, sigma: Tensor, ndim: int) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Draw:
    """The random part of one micro-step.

    Attributes:
        noise: What the model is asked for [B, C, …].
        sigma: Noise levels [B].
        time: The same as timesteps, 0 to 1 [B]; None when nothing asks for them.
        extra: Noise that the model sees besides [B, C, …], or None.
    """

    noise: Tensor
    sigma: Tensor
    time: Tensor | None = None
    extra: Tensor | None = None

    @property
    def seen(self) -> Tensor:
        """The noise that the model sees."""
        return self.noise if self.extra is None else self.noise + self.extra

    def to(self, device: torch.device) -> Draw:
        """What a step uses of it, on a device."""
        return Draw(
            sent(self.noise, device), sent(self.sigma, device),
            extra=None if self.extra is None else sent(self.extra, device),
        )  # fmt: skip

    def part(self, at: slice) -> Draw:
        """That of some pictures."""
        return Draw(*(None if value is None else value[at] for value in vars(self).values()))  # type: ignore[arg-type]


def draw(
    shape: tuple[int, ...], levels: NoiseLevels, patch_size: int, seed: int, micro_step: int
) -> Draw:
    """Draw noise and noise levels for one micro-step, on the CPU so that every machine draws the same.

    Args:
        shape: [B, C, (T,) H, W].
        levels: The model's noise levels, and the settings.
        patch_size: Side of a token in latent positions.
        seed: The run's seed.
        micro_step: Micro-steps since the run began.
    """
    noise = draw_noise(shape, levels.options, seed, micro_step)
    tokens = latent_tokens(shape, patch_size)
    sigma, time = levels.draw(shape[0], tokens, generator(seed, "timestep", micro_step))
    return Draw(noise, sigma, time, draw_perturbation(shape, levels.options, seed, micro_step))


def refuse_unfit(model: Denoiser, config: TrainConfig) -> None:
    """Refuse settings that do not fit the model's kind, or that the way of drawing timesteps ignores.

    Raises:
        SettingError: Says which, and what to set.
    """
    weighs, kind = config.weighting, model.prediction
    if weighs != "none" and kind not in (EPS, V):
        what = "is a flow model" if kind in FLOWS else "predicts neither"
        raise SettingError(
            f"weighting is {weighs}, which is for models that predict noise or v, and this MODEL {what}. Set weighting "
            "to none."
        )
    if weighs == "scale v like noise" and kind == EPS:
        raise SettingError(f"weighting is {weighs}, but this MODEL predicts noise. Set weighting to none.")
    if config.loss in ("Huber", "smooth L1") and config.huber_schedule == "snr" and kind in FLOWS:
        raise SettingError("huber schedule is snr, but this MODEL is a flow model. Set huber schedule to exponential.")
    if not model.is_flow and config.shift:
        raise SettingError(f"shift is {config.shift:g}, but this MODEL is not a flow model. Set shift to 0.")
    if not model.is_flow and config.resolution_shift:
        raise SettingError("resolution shift is on, but this MODEL is not a flow model. Turn resolution shift off.")
    in_force = NoiseLevels.of(model, config.timesteps, config).timesteps
    for name, usual, belongs in (
        ("timestep_mean", 0.0, "logit-normal"), ("timestep_spread", 1.0, "logit-normal"), ("mode_scale", 1.29, "mode")
    ):  # fmt: skip
        if getattr(config, name) != usual and in_force != belongs:
            raise SettingError(
                f"{name.replace('_', ' ')} is {getattr(config, name):g}, but timesteps are drawn {in_force}, which "
                f"ignores it. Set timesteps in LoRA Trainer to {belongs}."
            )


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
