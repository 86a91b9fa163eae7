"""The one dtype that a run computes in: weights, norms, activations and the LoRA's matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def compute_precision(wanted: str, device: torch.device, host: torch.dtype) -> torch.dtype:
    """Choose what to compute in on a device.

    `auto` is bf16 where hardware multiplies it. An NVIDIA card without it takes fp16, unless the host knows that its
    fp16 is slow or broken (GTX 10 and 16), and a processor fp32. Elsewhere
    (Apple, AMD, Intel) no rule holds for every card and driver, and the host has tables of them: its choice is taken.

    Args:
        wanted: `auto` or a key of `DTYPES`.
        device: Where training computes.
        host: What the host would compute in.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    if device.type == "cuda" and not torch.version.hip:
        if has_bf16(device):
            return torch.bfloat16
        return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
    return host if host in NAMES else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether a processor or an NVIDIA card multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Emulated by a processor it is twenty times slower. Older releases of torch cannot tell.
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    flags = capabilities() if device.type == "cpu" else {}
    return any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
