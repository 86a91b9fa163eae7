"""Values on their way to or from the device, so that no step waits for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor to the device; the processor does not wait for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Late:
    """A tensor on its way to the CPU.

    Args:
        tensor: On the device; it may be changed afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tensor = tensor.clone()

    @property
    def has_arrived(self) -> bool:
        """Whether reading it would not wait."""
        return self._tensor.device.type == "cpu" and (self._event is None or self._event.query())

    def values(self) -> list[float]:
        """Its values; waits for them if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.tolist()  # type: ignore[no-any-return]
