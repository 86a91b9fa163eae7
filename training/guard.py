"""Keeps the weights that last gave finite losses, and decides on the device whether a step may change them.

A step whose loss or gradient is not finite changes nothing, and neither does any step after it, until the CPU has read
of it and stopped the run. Where the optimizer cannot skip a step on the device, one value is read before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .run.state import Run

_FIRST_SCALE = 2.0**16  # both as torch's GradScaler has them
_GROWS_AFTER = 2000  # steps without an overflow


class Guard:
    """Guards the weights of one run.

    Args:
        run: Between two steps.
        is_scaled: Whether the loss is scaled, for fp16 (Micikevicius et al. 2017, arXiv:1710.03740).

    Attributes:
        loss_scale: The factor on the loss, or None.
    """

    def __init__(self, run: Run, is_scaled: bool) -> None:
        flat = run.network.flat
        device = flat.master.device
        self.loss_scale = torch.tensor(_FIRST_SCALE, device=device) if is_scaled else None
        self._steps_since = torch.zeros((), device=device)
        self._bad = torch.zeros((), device=device)
        self._first_step = run.step
        self._good = flat.master.clone()
        self._other: list[tuple[Tensor, Tensor]] = []
        # Others would need a value on the CPU to leave a step out.
        self._skips = bool(run.optimizer.defaults.get("fused"))

    def step(self, run: Run, loss: Tensor, norm: Tensor) -> None:
        """Let the optimizer change the weights unless this step or one before it was not finite.

        Args:
            run: Its gradients are complete.
            loss: Sum of the step's losses.
            norm: Of its gradients.
        """
        is_finite, has_overflowed = torch.isfinite(loss) & torch.isfinite(norm), None
        if self.loss_scale is not None:
            has_overflowed = self._rescale(torch.isfinite(norm))
            # A gradient too large for fp16 is no divergence, as long as a smaller scale is left.
            is_finite = torch.isfinite(loss) & (torch.isfinite(norm) | (self.loss_scale >= 1))
        torch.maximum(self._bad, (~is_finite).float(), out=self._bad)
        skip = self._bad if has_overflowed is None else torch.maximum(self._bad, has_overflowed)
        flat = run.network.flat
        torch.where(self._bad.bool(), self._good, flat.master, out=self._good)
        optimizer = run.optimizer
        if self._skips:
            optimizer.found_inf, optimizer.grad_scale = skip, None  # type: ignore[attr-defined]
            optimizer.step()
        elif not bool(skip):
            self._keep_other(run)
            optimizer.step()

    def _rescale(self, is_finite: Tensor) -> Tensor:
        """Halve the loss scale after an overflow, double it after many steps without; return 1 for an overflow."""
        assert self.loss_scale is not None
        self._steps_since = torch.where(is_finite, self._steps_since + 1, 0)
        grows = self._steps_since >= _GROWS_AFTER
        factor = torch.where(is_finite, torch.where(grows, 2.0, 1.0), 0.5)
        self.loss_scale = self.loss_scale * factor
        self._steps_since = torch.where(grows, 0, self._steps_since)
        return (~is_finite).float()

    def _keep_other(self, run: Run) -> None:
        """Keep the other point (`z`) of a schedule-free optimizer: what it would save lies between the two."""
        live = [state["z"] for state in run.optimizer.state.values() if "z" in state]
        if len(live) != len(self._other):
            self._other = [(tensor, tensor.clone()) for tensor in live]
        for tensor, copy in self._other:
            copy.copy_(tensor)

    def restore(self, run: Run, failed: int) -> None:
        """Restore the weights before the last update, whose loss was finite, and set the run back to their step.

        Args:
            run: The run.
            failed: The step that was not finite, from 1.
        """
        with torch.no_grad():
            run.network.flat.master.copy_(self._good)
            for tensor, copy in self._other:
                tensor.copy_(copy)
        run.go_back_to(max(failed - 2, self._first_step))
