"""The precision of the base model's trainings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast() -> AbstractContextManager[Any]:
    """bf16 if this processor has it in hardware, else fp32: emulated bf16 is twenty times slower."""
    from ...training.host.precision import has_bf16  # imports the host, which putting the model together does not need

    if has_bf16(torch.device("cpu")):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
