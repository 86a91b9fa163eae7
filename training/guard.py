"""Keeps the last weights with a finite loss and their average; decides on the device whether a step may change them.

A step whose loss or gradient is not finite changes nothing, and neither does any step after it, until the CPU has read
of it and stopped the run. Where the optimizer cannot skip a step on the device, one value is read before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from .adapters.flat import Flat

_FIRST_SCALE = 2.0**16  # both as torch's GradScaler has them
_GROWS_AFTER = 2000  # steps without an overflow


class Average:
    """The running average of a run's weights (EMA), after Polyak & Juditsky 1992.

    After n updates it is A_n = d A_{n-1} + (1 - d) W_n from A_0 = W_0. Its d = min(decay, (1 + n) / (10 + n)) lets the
    first steps count less and less. Weights enter it when their loss was finite, one step after they were made. So it
    never holds a weight that diverged. Weights that still wait are added where the average is read.

    Args:
        weights: The run's weights at their start.
        decay: Between 0 and 1.
    """

    def __init__(self, weights: Tensor, decay: float) -> None:
        self._decay = decay
        self._mean = weights.clone()
        # Both on the device, where it is decided whether a step is left out.
        self._updates = torch.zeros((), device=weights.device)
        self._waits = torch.zeros((), device=weights.device)

    def take(self, good: Tensor, is_bad: Tensor) -> None:
        """Take in the weights that wait, as their loss is finite.

        Args:
            good: The weights, or older ones if their loss is not finite.
            is_bad: 1 if it is not finite, else 0.
        """
        is_new = self._waits * (1 - is_bad)
        self._mean.lerp_(good, self._share() * is_new)
        self._updates += is_new
        self._waits.zero_()

    def wait(self, is_left_out: Tensor) -> None:
        """Note that the weights were updated, unless `is_left_out` is 1."""
        self._waits.copy_(1 - is_left_out)

    def read_into(self, weights: Tensor) -> None:
        """Replace the current weights by the average that includes them; the average itself stays as it is."""
        torch.lerp(self._mean, weights, self._share() * self._waits, out=weights)

    def _share(self) -> Tensor:
        """What the next weights count in the average."""
        n = self._updates + 1
        return 1 - ((1 + n) / (10 + n)).clamp_(max=self._decay)


class Guard:
    """Guards the weights of one run.

    Args:
        flat: The weights and their gradients.
        optimizer: That changes them.
        is_scaled: Whether the loss is scaled, for fp16 (Micikevicius et al. 2017, arXiv:1710.03740).
        ema_decay: Of the average of the weights; 0 for none.

    Attributes:
        loss_scale: The factor on the loss, or None.
    """

    def __init__(self, flat: Flat, optimizer: Optimizer, is_scaled: bool, ema_decay: float = 0.0) -> None:
        self._flat, self._optimizer = flat, optimizer
        device = flat.master.device
        self.loss_scale = torch.tensor(_FIRST_SCALE, device=device) if is_scaled else None
        self._steps_since = torch.zeros((), device=device)
        self._bad = torch.zeros((), device=device)
        self._good = flat.master.clone()
        self._average = Average(flat.master, ema_decay) if ema_decay else None
        self._other: list[tuple[Tensor, Tensor]] = []
        # Others would need a value on the CPU to leave a step out.
        self._skips = bool(optimizer.defaults.get("fused"))

    def step(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Let the optimizer change the weights unless this step or one before it was not finite.

        Args:
            loss: Sum of the step's losses.
            norm: Of its gradients, which are complete.

        Returns:
            1 if this step or one before it was not finite, else 0, on the device.
        """
        before = self.loss_scale, self._steps_since
        try:
            return self._step(loss, norm)
        except Exception:  # such as out of memory: the step can be done again
            self.loss_scale, self._steps_since = before
            raise

    def _step(self, loss: Tensor, norm: Tensor) -> Tensor:
        is_finite, has_overflowed = torch.isfinite(loss) & torch.isfinite(norm), None
        if self.loss_scale is not None:
            has_overflowed = self._rescale(torch.isfinite(norm))
            # A gradient too large for fp16 is no divergence, as long as a smaller scale is left.
            is_finite = torch.isfinite(loss) & (torch.isfinite(norm) | (self.loss_scale >= 1))
        torch.maximum(self._bad, (~is_finite).float(), out=self._bad)
        skip = self._bad if has_overflowed is None else torch.maximum(self._bad, has_overflowed)
        torch.where(self._bad.bool(), self._good, self._flat.master, out=self._good)
        if self._average:
            self._average.take(self._good, self._bad)
        if self._skips:
            self._optimizer.found_inf, self._optimizer.grad_scale = skip, None  # type: ignore[attr-defined]
            self._update()
        elif not bool(skip):
            self._keep_other()
            self._update()
        if self._average:
            self._average.wait(skip)
        return self._bad

    def _update(self) -> None:
        is_first = not self._optimizer.state
        try:
            self._optimizer.step()
        except Exception:  # with some weights changed and others not
            self.restore()
            if is_first:  # half of its state may be missing
                self._optimizer.state.clear()
            raise

    def change_optimizer(self, optimizer: Optimizer) -> None:
        """Guard the same weights under another optimizer."""
        self._optimizer = optimizer
        self._skips = bool(optimizer.defaults.get("fused"))

    def _rescale(self, is_finite: Tensor) -> Tensor:
        """Halve the loss scale after an overflow, double it after many steps without; return 1 for an overflow."""
        assert self.loss_scale is not None
        self._steps_since = torch.where(is_finite, self._steps_since + 1, 0)
        grows = self._steps_since >= _GROWS_AFTER
        factor = torch.where(is_finite, torch.where(grows, 2.0, 1.0), 0.5)
        self.loss_scale = self.loss_scale * factor
        self._steps_since = torch.where(grows, 0, self._steps_since)
        return (~is_finite).float()

    def _keep_other(self) -> None:
        """Keep the other point (`z`) of a schedule-free optimizer: what it would save lies between the two."""
        live = [state["z"] for state in self._optimizer.state.values() if "z" in state]
        if len(live) != len(self._other):
            self._other = [(tensor, tensor.clone()) for tensor in live]
        for tensor, copy in self._other:
            copy.copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the weights before the last update, whose loss was finite."""
        self._flat.master.copy_(self._good)
        for tensor, copy in self._other:
            tensor.copy_(copy)

    @property
    def averages(self) -> bool:
        """Whether there is an average of the weights."""
        return self._average is not None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Show the average in the place of the weights inside the block; afterwards they are as they were."""
        assert self._average is not None
        weights = self._flat.master
        copy = weights.to("cpu", copy=True)  # a file can be due when the device is full
        try:
            with torch.no_grad():
                self._average.read_into(weights)
            yield
        finally:
            weights.copy_(copy)
