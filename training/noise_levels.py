"""Which noise levels are trained: the model's own schedule, how it is shifted and cut, and what is drawn from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .options import LossOptions

# Flux's shift by the number of latent tokens: mu rises in a straight line from the first point to the second.
_TOKENS, _MU = (256, 4096), (0.5, 1.15)


def timesteps_in_force(wanted: str, is_flow: bool) -> str:
    """How noise levels are drawn: `auto` is logit-normal for flows, uniform for diffusion models."""
    if wanted != "auto":
        return wanted
    return "logit-normal" if is_flow else "uniform"


def resolution_shift(tokens: int) -> float:
    """The shift for a picture of so many latent tokens, as Flux was trained: e^mu (Black Forest Labs 2024)."""
    share = (tokens - _TOKENS[0]) / (_TOKENS[1] - _TOKENS[0])
    return math.exp(_MU[0] + share * (_MU[1] - _MU[0]))


def latent_tokens(shape: tuple[int, ...], patch_size: int) -> int:
    """Tokens of one picture's latent [B, C, (T,) H, W], of one frame."""
    return math.ceil(shape[-2] / patch_size) * math.ceil(shape[-1] / patch_size)


@dataclass(frozen=True)
class NoiseLevels:
    """The schedule of a model and the settings that choose from it.

    Attributes:
        table: Rising noise levels of the schedule in force.
        is_flow: Whether they are those of a flow, 0 to 1.
        table_shift: The shift that a flow's table has.
        timesteps: The distribution in force: uniform, logit-normal or mode.
        options: Its parameters, shift and range.
    """

    table: Tensor
    is_flow: bool
    table_shift: float
    timesteps: str
    options: LossOptions

    @classmethod
    def of(cls, model: Any, timesteps: str, options: LossOptions) -> NoiseLevels:
        """Those of a `Denoiser`.

        Args:
            model: The model with its sampling in force.
            timesteps: The trainer's setting, `auto` or a distribution.
            options: The rest of the settings.
        """
        in_force = timesteps_in_force(timesteps, model.is_flow)
        return cls(model.sigma_table(), model.is_flow, model.flow_shift or 1.0, in_force, options)

    def draw(self, count: int, tokens: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw noise levels.

        Args:
            count: How many.
            tokens: Latent tokens of each picture, for `resolution_shift`.
            source: Where the random numbers come from.

        Returns:
            Noise levels and their timesteps, 0 to 1, [count] each.
        """
        return self._at(self._shares(count, source), tokens)

    def strata(self, count: int, tokens: int) -> Tensor:
        """Noise levels that stand for the whole distribution: the middle of each of `count` equally likely parts.

        Args:
            count: How many.
            tokens: Latent tokens of each picture, for `resolution_shift`.

        Returns:
            Noise levels, [count], rising.
        """
        sigma, _ = self._at(self._transformed((torch.arange(count) + 0.5) / count), tokens)
        return sigma.sort().values

    def _at(self, shares: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """The noise levels and timesteps at shares of what is trained of the schedule."""
        table = self._shifted(tokens)
        times = table if self.is_flow else torch.arange(len(table)) / len(table)
        first, last = self._range(times)
        place = first + (shares * (last - first)).long().clamp_(max=last - first - 1)
        return table[place], times[place]

    def _transformed(self, quantile: Tensor) -> Tensor:
        """The places of `_shares` at quantiles of their distribution, 0 to 1."""
        o = self.options
        if self.timesteps == "logit-normal":
            return torch.sigmoid(o.timestep_mean + o.timestep_spread * torch.special.ndtri(quantile))
        if self.timesteps == "mode":
            quantile = 1 - quantile - o.mode_scale * ((math.pi / 2 * quantile).cos().square() - 1 + quantile)
        return quantile.clamp(0, 1)

    def _shares(self, count: int, source: torch.Generator) -> Tensor:
        """Places in the schedule as shares of its length, 0 to 1, rising with the noise.

        The distributions are those of Esser et al. 2024, section 3.1. Logit-normal with mean 0 is what kohya calls
        sigmoid, with sigmoid_scale for the spread.
        """
        o = self.options
        if self.timesteps == "logit-normal":
            return torch.sigmoid(o.timestep_mean + o.timestep_spread * torch.randn(count, generator=source))
        return self._transformed(torch.rand(count, generator=source))

    def _shifted(self, tokens: int) -> Tensor:
        """The table with the shift that is wanted: a shift multiplies the odds sigma / (1 - sigma)."""
        wanted = resolution_shift(tokens) if self.options.resolution_shift else self.options.shift
        if not (self.is_flow and wanted):
            return self.table
        factor = wanted / self.table_shift
        return factor * self.table / (1 + (factor - 1) * self.table)

    def _range(self, times: Tensor) -> tuple[int, int]:
        """First place that is trained and the one after the last: at least one, where a table has none between.

        As in kohya's trainer max_timestep itself is not trained. A flow's times are the upper ends of their steps, so
        there it is min_timestep.
        """
        o = self.options
        if not o.min_timestep and o.max_timestep == 1000:
            return 0, len(times)
        bounds = torch.tensor([o.min_timestep / 1000, o.max_timestep / 1000])
        low, high = torch.searchsorted(times, bounds, right=self.is_flow).tolist()
        first = low if o.min_timestep else 0
        last = high if o.max_timestep < 1000 else len(times)
        first = min(first, len(times) - 1)
        return first, max(last, first + 1)
