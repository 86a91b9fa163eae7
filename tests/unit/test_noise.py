"""The noise: its statistics, and that it is repeatable and drawn for each picture."""

from __future__ import annotations

import pytest
import torch
from lora_workbench.training.draws import generator
from lora_workbench.training.noise import add_offset, draw_noise, draw_perturbation
from lora_workbench.training.options import LossOptions

SHAPES = [(64, 4, 32, 24), (64, 4, 1, 32, 24)]  # the second with one frame, as video models have


def test_plain_noise_is_what_it_was() -> None:
    expected = torch.randn(2, 4, 8, 8, generator=generator(3, "noise", 5))
    assert torch.equal(draw_noise((2, 4, 8, 8), LossOptions(), 3, 5), expected)
    assert add_offset(expected, expected, LossOptions(), 3, 5) is expected
    assert draw_perturbation((2, 4, 8, 8), LossOptions(), 3, 5) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_offset_moves_each_channel_as_one(shape: tuple[int, ...]) -> None:
    noise, options = draw_noise(shape, LossOptions(), 0, 0), LossOptions(noise_offset=0.5)
    shift = add_offset(noise, torch.zeros(shape), options, 0, 0) - noise
    means = shift.flatten(2).mean(2)
    assert shift.flatten(2).std(2).max() < 1e-6
    assert means.std().item() == pytest.approx(0.5, rel=0.1) and abs(means.mean().item()) < 0.1
    again = add_offset(noise, torch.zeros(shape), options, 0, 0) - noise
    assert torch.equal(shift, again)
    assert not torch.equal(shift, add_offset(noise, torch.zeros(shape), options, 0, 1) - noise)


def test_random_strength_of_the_offset_lies_between_none_and_all() -> None:
    noise = torch.zeros(4000, 1, 1, 1)
    full, part = (
        add_offset(noise, noise, LossOptions(noise_offset=0.5, noise_offset_random=how), 0, 0) for how in (False, True)
    )
    ratio = (part / full).flatten()
    assert ratio.min() >= 0 and ratio.max() <= 1
    assert ratio.mean().item() == pytest.approx(0.5, abs=0.03)
    assert ratio.std().item() == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_adaptive_offset_follows_the_mean_of_the_latent(shape: tuple[int, ...]) -> None:
    x0 = torch.randn(shape) + torch.arange(4.0).view(1, 4, *[1] * (len(shape) - 2)) - 2
    noise = torch.zeros(shape)
    plain = add_offset(noise, x0, LossOptions(noise_offset=1.0), 0, 0)
    for scale in (0.25, -0.75):
        found = add_offset(noise, x0, LossOptions(noise_offset=1.0, noise_offset_adaptive=scale), 0, 0) / plain
        for picture in range(3):
            for channel in range(4):
                strength = max(0.0, 1.0 + scale * abs(float(x0[picture, channel].double().mean())))
                assert found[picture, channel].flatten()[0].item() == pytest.approx(strength, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_pyramid_noise_has_more_of_the_coarse(shape: tuple[int, ...]) -> None:
    options = LossOptions(multires_iterations=6, multires_discount=0.8)
    plain, coarse = draw_noise(shape, LossOptions(), 0, 0), draw_noise(shape, options, 0, 0)
    assert coarse.shape == plain.shape and torch.equal(coarse, draw_noise(shape, options, 0, 0))
    assert coarse.flatten(1).std(1).tolist() == pytest.approx([1.0] * shape[0], rel=1e-4)
    low = [
        noise.reshape(-1, 1, 32, 24).unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).mean(4).std().item()
        for noise in (plain, coarse)
    ]
    assert low[0] == pytest.approx(1 / 8, rel=0.1) and low[1] > 3 * low[0]


def test_one_pyramid_layer_is_as_fine_as_the_noise() -> None:
    plain = draw_noise((4, 4, 16, 16), LossOptions(), 0, 0)
    one = draw_noise((4, 4, 16, 16), LossOptions(multires_iterations=1), 0, 0)
    # Two independent layers of equal strength: what is left of the first is half of the variance.
    alike = torch.corrcoef(torch.stack([plain.flatten(), one.flatten()]))[0, 1].item()
    assert alike == pytest.approx(0.5**0.5, abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_perturbation_is_apart_from_the_noise(shape: tuple[int, ...]) -> None:
    extra = draw_perturbation(shape, LossOptions(ip_noise_gamma=0.1), 0, 0)
    assert extra is not None and extra.shape == shape and extra.std().item() == pytest.approx(0.1, rel=0.01)
    noise = draw_noise(shape, LossOptions(ip_noise_gamma=0.1), 0, 0)
    assert torch.equal(noise, draw_noise(shape, LossOptions(), 0, 0))
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), extra.flatten()]))[0, 1].item()) < 0.01
    random = draw_perturbation(shape, LossOptions(ip_noise_gamma=0.1, ip_noise_random=True), 0, 0)
    assert random is not None
    share = random.flatten(1).std(1) / extra.flatten(1).std(1)
    assert share.max() <= 1.0001 and share.mean().item() == pytest.approx(0.5, abs=0.12)
