"""The precision of the base model's trainings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast() -> AbstractContextManager[Any]:
    """bf16 if this processor has it in hardware, else fp32: emulated bf16 is twenty times slower."""
    flags = getattr(torch.cpu, "get_capabilities", dict)()  # older releases cannot tell
    if flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
