"""Weights by noise level and kinds of loss, held against the formulas of their papers in alpha_bar."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from lora_workbench.training.errors import SettingError
from lora_workbench.training.losses import EPS, V, huber_widths, level_weights, robust
from lora_workbench.training.options import LOSSES, WEIGHTINGS, LossOptions, kohya_loss

BARS = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2 * -1 + 1).cumprod(0)
SIGMAS = ((1 - BARS) / BARS).sqrt().float()
TERMINAL = torch.tensor([4518.765])  # where ComfyUI ends a zero-terminal schedule

PAPERS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "min-SNR": (lambda snr: min(snr, 3.0) / snr, lambda snr: min(snr, 3.0) / (snr + 1)),
    "soft min-SNR": (lambda snr: 1 / (1 + snr / 3.0), lambda snr: snr / ((1 + snr / 3.0) * (snr + 1))),
    "debiased": (lambda snr: 1 / math.sqrt(min(snr, 1000)), lambda snr: 1 / (min(snr, 1000) + 1)),
    "P2": (lambda snr: (1 + snr) ** -0.7, lambda snr: (1 + snr) ** -0.7 * snr / (1 + snr)),
}


@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize("prediction", [EPS, V])
def test_weights_are_those_of_the_papers(kind: str, prediction: str) -> None:
    options = LossOptions(weighting=kind, gamma=3.0, p2_gamma=0.7)
    weights = level_weights(options, SIGMAS, prediction)
    formula = PAPERS[kind][prediction == V]
    expected = torch.tensor([formula(float(bar / (1 - bar))) for bar in BARS])
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_v_scaled_like_noise_is_alpha_bar() -> None:
    weights = level_weights(LossOptions(weighting="scale v like noise"), SIGMAS, V)
    torch.testing.assert_close(weights, BARS.float(), rtol=1e-5, atol=0)


def test_a_v_error_weighs_as_the_same_error_of_noise() -> None:
    """The two forms of a weight make one objective: errors of noise and v that are the same error of the picture."""
    for kind in ("min-SNR", "soft min-SNR", "P2"):
        options = LossOptions(weighting=kind)
        noise, v = (level_weights(options, SIGMAS, prediction) for prediction in (EPS, V))
        # An error d of the picture is d · alpha / sigma of the noise and d / sigma of v, with alpha² + sigma² = 1.
        torch.testing.assert_close(noise * BARS / (1 - BARS), v / (1 - BARS), rtol=1e-5, atol=0, check_dtype=False)


def test_min_snr_is_that_of_diffusers() -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = training_utils.compute_snr(scheduler, torch.arange(1000))
    clipped = snr.clamp(max=5)
    options = LossOptions(weighting="min-SNR")
    torch.testing.assert_close(level_weights(options, SIGMAS, EPS), clipped / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(level_weights(options, SIGMAS, V), clipped / (snr + 1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", WEIGHTINGS)
@pytest.mark.parametrize("prediction", [EPS, V])
def test_zero_terminal_snr_is_finite(kind: str, prediction: str) -> None:
    weights = level_weights(LossOptions(weighting=kind), TERMINAL, prediction)
    assert (weights is None) == (kind == "none")
    assert weights is None or (weights.isfinite().all() and (weights >= 0).all())
    rescaled = pytest.importorskip("diffusers.schedulers.scheduling_ddim").rescale_zero_terminal_snr(
        (1 - torch.cat([BARS[:1], BARS[1:] / BARS[:-1]])).float()
    )
    bars = (1 - rescaled).cumprod(0)[:-1]  # the last is 0
    weights = level_weights(LossOptions(weighting=kind), ((1 - bars) / bars).sqrt(), prediction)
    assert weights is None or weights.isfinite().all()


def test_losses_are_those_of_their_formulas() -> None:
    error = torch.linspace(-3, 3, 7).view(1, 1, 7).expand(2, 1, 7)
    width = torch.tensor([0.1, 0.5])
    for row, c in enumerate(width.tolist()):
        huber = [2 * c * (math.hypot(d, c) - c) for d in error[row].flatten().tolist()]
        smooth = [2 * (math.hypot(d, c) - c) for d in error[row].flatten().tolist()]
        assert robust("Huber", error, width)[row].flatten().tolist() == pytest.approx(huber, rel=1e-5, abs=1e-7)
        assert robust("smooth L1", error, width)[row].flatten().tolist() == pytest.approx(smooth, rel=1e-5, abs=1e-7)
    assert robust("L1", error, None)[0].flatten().tolist() == [3, 2, 1, 0, 1, 2, 3]


def test_huber_schedules() -> None:
    sigma, time = SIGMAS[[0, 500, 999]], torch.tensor([0.0, 0.5, 0.999])

    def widths(schedule: str) -> list[float]:
        found = huber_widths(LossOptions(loss="Huber", huber_c=0.2, huber_schedule=schedule), sigma, time)
        assert found is not None
        return found.tolist()

    assert widths("constant") == pytest.approx([0.2] * 3)
    assert widths("exponential") == pytest.approx([1.0, math.exp(math.log(0.2) / 2), 0.2**0.999], rel=1e-5)
    ratios = [math.sqrt((1 - bar) / bar) for bar in BARS[[0, 500, 999]].tolist()]
    assert widths("snr") == pytest.approx([0.8 / (1 + ratio) ** 2 + 0.2 for ratio in ratios], rel=1e-5)
    assert all(huber_widths(LossOptions(loss=loss), sigma, time) is None for loss in ("L1", "L2"))


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_an_error_of_zero_has_a_gradient_of_zero(loss: str) -> None:
    error = torch.zeros(1, 3, requires_grad=True)
    robust(loss, error, None if loss == "L1" else torch.tensor([0.1])).sum().backward()
    assert error.grad is not None and error.grad.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"noise_offset": 0.1, "multires_iterations": 6}, "noise offset is 0.1 and multires iterations is 6"),
        ({"shift": 3.0, "resolution_shift": True}, "shift is 3 and resolution shift is on"),
        ({"min_timestep": 500, "max_timestep": 500}, "min timestep is 500 and max timestep is 500"),
        ({"weighting": "max-SNR"}, "weighting is 'max-SNR'"),
    ],
)
def test_what_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        LossOptions(**settings)  # type: ignore[arg-type]


def test_what_is_off_is_saved_as_none() -> None:
    plain = kohya_loss(LossOptions())
    assert plain["ss_loss_type"] == "l2" and plain["ss_debiased_estimation"] is False
    off = ("min_snr_gamma", "huber_c", "noise_offset", "multires_noise_discount", "ip_noise_gamma", "max_timestep")
    assert [plain[f"ss_{name}"] for name in off] == [None] * len(off)
    assert not any(key.startswith("lora_workbench.") for key in plain)
    # What has no effect is not saved either.
    assert kohya_loss(LossOptions(gamma=7.0, huber_c=0.5, multires_discount=0.1, noise_offset_random=True)) == plain
    full = kohya_loss(LossOptions(
        weighting="min-SNR", gamma=7.0, loss="smooth L1", noise_offset=0.05, noise_offset_adaptive=0.01,
        ip_noise_gamma=0.1, min_timestep=100, max_timestep=900, shift=3.0,
    ))  # fmt: skip
    assert (full["ss_min_snr_gamma"], full["ss_loss_type"], full["ss_huber_c"]) == (7.0, "smooth_l1", 0.1)
    assert (full["ss_noise_offset"], full["ss_adaptive_noise_scale"], full["ss_ip_noise_gamma"]) == (0.05, 0.01, 0.1)
    assert (full["ss_min_timestep"], full["ss_max_timestep"], full["lora_workbench.shift"]) == (100, 900, 3.0)
