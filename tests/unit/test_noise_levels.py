"""Noise levels: how they are distributed, shifted and cut."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_workbench.training.draws import generator
from lora_workbench.training.noise_levels import NoiseLevels, latent_tokens, resolution_shift, timesteps_in_force
from lora_workbench.training.options import LossOptions
from torch import Tensor

MANY = 40_000
QUANTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
BARS = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2 * -1 + 1).cumprod(0)
DIFFUSION = ((1 - BARS) / BARS).sqrt().float()


def flow(shift: float, steps: int = 1000) -> Tensor:
    time = torch.arange(1, steps + 1) / steps
    return shift * time / (1 + (shift - 1) * time)


def drawn(
    table: Tensor, timesteps: str = "auto", is_flow: bool = True, shift: float = 1.0, tokens: int = 4096, **options: Any
) -> tuple[Tensor, Tensor]:
    levels = NoiseLevels(table, is_flow, shift, timesteps_in_force(timesteps, is_flow), LossOptions(**options))
    return levels.draw(MANY, tokens, generator(0, "timestep", 0))


def quantiles(values: Tensor) -> list[float]:
    return values.quantile(QUANTILES).tolist()


def test_noise_levels_follow_the_kind_of_model() -> None:
    assert [timesteps_in_force("auto", is_flow) for is_flow in (True, False)] == ["logit-normal", "uniform"]
    assert timesteps_in_force("uniform", True) == "uniform"
    model: Any = SimpleNamespace(is_flow=True, flow_shift=None, sigma_table=lambda: flow(1))
    assert NoiseLevels.of(model, "auto", LossOptions()).timesteps == "logit-normal"


def test_default_draws_are_what_they_were() -> None:
    """The very numbers of the version before there were options."""
    source = generator(0, "timestep", 0)
    share = torch.sigmoid(torch.randn(MANY, generator=source))
    assert torch.equal(drawn(flow(3), shift=3)[0], flow(3)[(share * 1000).long().clamp_(max=999)])
    share = torch.rand(MANY, generator=generator(0, "timestep", 0))
    assert torch.equal(drawn(DIFFUSION, is_flow=False)[0], DIFFUSION[(share * 1000).long().clamp_(max=999)])


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.8, 0.5), (-0.5, 2.0)])
def test_logit_normal(mean: float, spread: float) -> None:
    sigma, _ = drawn(flow(1), "logit-normal", timestep_mean=mean, timestep_spread=spread)
    normal = torch.distributions.Normal(mean, spread)
    expected = [1 / (1 + math.exp(-normal.icdf(q).item())) for q in QUANTILES]
    assert quantiles(sigma) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("how", ["logit-normal", "mode"])
def test_distributions_are_those_of_diffusers(how: str) -> None:
    utils = pytest.importorskip("diffusers.training_utils")
    theirs = utils.compute_density_for_timestep_sampling(
        how.replace("-", "_"), MANY, logit_mean=0.4, logit_std=0.7, mode_scale=1.1, generator=generator(1, "theirs", 0)
    )
    given = {"timestep_mean": 0.4, "timestep_spread": 0.7} if how == "logit-normal" else {"mode_scale": 1.1}
    assert quantiles(drawn(flow(1), how, **given)[0]) == pytest.approx(quantiles(theirs), abs=0.01)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_has_the_density_of_its_paper(scale: float) -> None:
    """Esser et al. 2024, equation 20: the share below t is 1 - u where f(u) = t."""
    sigma, _ = drawn(flow(1), "mode", mode_scale=scale)
    for u in (0.1, 0.3, 0.5, 0.8):
        t = 1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
        assert (sigma <= t).float().mean().item() == pytest.approx(1 - u, abs=0.012), u


@pytest.mark.parametrize(("kept", "wanted"), [(3.0, 1.0), (1.0, 3.1582), (math.exp(1.15), 6.0)])
def test_a_shift_takes_the_place_of_the_one_in_force(kept: float, wanted: float) -> None:
    shifted, _ = drawn_shift(kept, wanted)
    plain, _ = drawn(flow(1))
    expected = [wanted / (wanted + 1 / t - 1) for t in quantiles(plain)]
    assert quantiles(shifted) == pytest.approx(expected, abs=0.005)


def drawn_shift(kept: float, wanted: float) -> tuple[Tensor, Tensor]:
    levels = NoiseLevels(flow(kept), True, kept, "logit-normal", LossOptions(shift=wanted))
    return levels.draw(MANY, 0, generator(0, "timestep", 0))


def test_resolution_shift_is_that_of_flux() -> None:
    assert math.log(resolution_shift(256)) == pytest.approx(0.5)
    assert math.log(resolution_shift(4096)) == pytest.approx(1.15)
    assert math.log(resolution_shift(1024)) == pytest.approx(0.5 + 768 / 3840 * 0.65)
    assert latent_tokens((1, 16, 128, 128), 2) == latent_tokens((1, 16, 1, 128, 128), 2) == 4096
    diffusers = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux")
    assert math.log(resolution_shift(2304)) == pytest.approx(diffusers.calculate_shift(2304))
    for tokens in (256, 4096):
        sigma, _ = drawn(flow(3), shift=3.0, tokens=tokens, resolution_shift=True)
        shift = math.exp(diffusers.calculate_shift(tokens))
        assert sigma.median().item() == pytest.approx(shift / (shift + 1), abs=0.005)


def test_range_of_a_diffusion_model() -> None:
    sigma, time = drawn(DIFFUSION, is_flow=False, min_timestep=200, max_timestep=700)
    assert (sigma.min(), sigma.max()) == (DIFFUSION[200], DIFFUSION[699])  # kohya's max is not trained either
    assert (time.min().item(), time.max().item()) == pytest.approx((0.2, 0.699))
    assert quantiles(time) == pytest.approx((0.2 + 0.5 * QUANTILES).tolist(), abs=0.01)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_range_of_a_flow_is_that_of_its_noise(shift: float) -> None:
    sigma, time = drawn(flow(shift), "uniform", shift=shift, min_timestep=200, max_timestep=700)
    assert torch.equal(sigma, time)
    assert 0.2 < sigma.min() < 0.205 and 0.695 < sigma.max() <= 0.7
    inside = flow(shift)[(flow(shift) > 0.2) & (flow(shift) <= 0.7)]
    assert quantiles(sigma) == pytest.approx(quantiles(inside), abs=0.01)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 2), (998, 999), (999, 1000)])
@pytest.mark.parametrize("is_flow", [True, False])
def test_a_narrow_range_has_at_least_one_level(low: int, high: int, is_flow: bool) -> None:
    sigma, _ = drawn(flow(7, 50) if is_flow else DIFFUSION[::20], is_flow=is_flow, min_timestep=low, max_timestep=high)
    assert sigma.unique().numel() == 1 and sigma.isfinite().all()


@pytest.mark.parametrize("wanted", [0.1, 1.0, 3.0, 100.0])
def test_the_ends_of_a_shifted_flow_stay(wanted: float) -> None:
    levels = NoiseLevels(flow(3), True, 3.0, "uniform", LossOptions(shift=wanted))
    sigma, _ = levels.draw(MANY, 0, generator(0, "timestep", 0))
    assert sigma.min() > 0 and sigma.max().item() == pytest.approx(1.0, abs=1e-6)
