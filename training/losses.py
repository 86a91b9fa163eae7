"""How an error counts, and how much the loss of each noise level weighs.

Both are measured on the network's own prediction, noise or v. SNR is alpha_bar / (1 - alpha_bar), which is 1 / sigma²
in the host's scale. Every formula is written in sigma², so that it stays finite where zero-terminal SNR puts sigma at
some 4,500.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import LossOptions

EPS, V = "eps", "v_prediction"
FLOWS = ("flow", "cosmos_rflow")
_MOST_SNR = 1000.0  # kohya's ceiling for debiased


def level_weights(options: LossOptions, sigma: Tensor, prediction: str) -> Tensor | None:
    """The weight of the loss at each noise level.

    An error of v is that of the noise times sqrt(SNR + 1) / sqrt(SNR), squared in the loss. So the v form of a weight
    is the noise form times SNR / (SNR + 1), except for debiased, where it is kohya's.

    Args:
        options: `weighting` with its gamma.
        sigma: Noise levels [B] in the host's scale, above 0.
        prediction: `eps` or `v_prediction`; what `refuse_unfit` lets through.

    Returns:
        [B], finite; None where all weigh 1.
    """
    kind, is_v, variance = options.weighting, prediction == V, sigma.square()
    if kind == "none":
        return None
    signal = 1 / (1 + variance)  # SNR / (SNR + 1), which is alpha_bar
    if kind == "min-SNR":  # Hang et al. 2023, arXiv:2303.09556: min(SNR, gamma) / SNR
        noise_form = (options.gamma * variance).clamp(max=1)
    elif kind == "soft min-SNR":  # Crowson et al. 2024, arXiv:2401.11605: gamma / (SNR + gamma)
        noise_form = options.gamma * variance / (1 + options.gamma * variance)
    elif kind == "debiased":  # Yu et al. 2023, arXiv:2310.08442: 1 / sqrt(SNR)
        snr = (1 / variance).clamp(max=_MOST_SNR)
        return 1 / (snr + 1) if is_v else snr.rsqrt()
    elif kind == "P2":  # Choi et al. 2022, arXiv:2204.00227, with k = 1: 1 / (1 + SNR)^gamma
        noise_form = (variance * signal).pow(options.p2_gamma)
    else:  # scale v like noise
        noise_form = torch.ones_like(sigma)
    return noise_form * signal if is_v else noise_form


def huber_widths(options: LossOptions, sigma: Tensor, time: Tensor) -> Tensor | None:
    """The error at which Huber and smooth L1 turn from square to linear, at each noise level.

    Schedules of Dolgov et al. (arXiv:2403.16728) as kohya's trainer has them.

    Args:
        options: `loss`, `huber_c`, `huber_schedule`.
        sigma: Noise levels [B] in the host's scale.
        time: The same as places in the schedule [B], 0 to 1.

    Returns:
        [B], or None for the losses without it.
    """
    if options.loss not in ("Huber", "smooth L1"):
        return None
    least = options.huber_c
    if options.huber_schedule == "exponential":
        return torch.full_like(time, least).pow(time)
    if options.huber_schedule == "snr":
        return (1 - least) / (1 + sigma).square() + least
    return torch.full_like(sigma, least)


def robust(loss: str, error: Tensor, width: Tensor | None) -> Tensor:
    """The loss of each value that grows linearly with large errors, unlike L2.

    Args:
        loss: One of `options.LOSSES` besides L2.
        error: [B, C, …].
        width: `huber_widths` [B]; None for L1.

    Returns:
        L1: |d|. Huber is pseudo-Huber (Charbonnier et al. 1997): 2c (sqrt(d² + c²) - c), which is d² for small
        errors with c = 1. smooth L1 is the same over c: 2 (sqrt(d² + c²) - c), of slope 2 for large errors.
    """
    if width is None:
        return error.abs()
    c = width.view(-1, *[1] * (error.ndim - 1))
    rooted = 2 * ((error.square() + c.square()).sqrt() - c)
    return rooted * c if loss == "Huber" else rooted
