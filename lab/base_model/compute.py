"""What the trainings of the base model compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast() -> AbstractContextManager[Any]:
    """bf16 where this processor multiplies it in hardware, else fp32: emulated, it is twenty times slower."""
    flags = getattr(torch.cpu, "get_capabilities", dict)()  # older releases cannot tell
    if flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
