"""All trainable tensors of a run in one buffer, so that what concerns all of them is one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DENOISER = "denoiser"
_ALIGNED = 8  # elements; matrix kernels read 16 bytes at once


Group = tuple[str, str]  # the model, and the kind of tensor


@dataclass(frozen=True)
class Part:
    """One trainable tensor at its start.

    Attributes:
        kind: What it is to its adapter, such as `up`; each kind can have a learning rate of its own.
        start: Its first values.
        part_of: The model that its layer belongs to, which can have a rate of its own too.
    """

    kind: str
    start: Tensor
    part_of: str = DENOISER

    @property
    def group(self) -> Group:
        """Its parameter group."""
        return self.part_of, self.kind


@dataclass(frozen=True)
class View:
    """One trainable tensor inside the buffers.

    Attributes:
        master: What the optimizer changes and files hold, fp32.
        used: What a step computes with, in the compute dtype.
        grad: What backward adds to, in the compute dtype.
        total: The gradient of the optimizer step, fp32.
    """

    master: Tensor
    used: Tensor
    grad: Tensor
    total: Tensor


class Flat:
    """Four buffers: fp32 weights and gradients, and both in the compute dtype. In fp32 these are the same two.

    Tensors of one parameter group lie next to each other, so that a group is a slice.

    Args:
        parts: The tensors, in the order their views are wanted in.
        dtype: The compute dtype.
        device: Where training computes.

    Attributes:
        views: One for each part.
        groups: The slice of each parameter group, in the order of first appearance.
    """

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype, device: torch.device) -> None:
        self.groups: dict[Group, slice] = {}
        places: dict[int, int] = {}
        end = 0
        for group in dict.fromkeys(part.group for part in parts):
            begin = end
            for index, part in enumerate(parts):
                if part.group == group:
                    places[index] = end
                    end += -(-part.start.numel() // _ALIGNED) * _ALIGNED
            self.groups[group] = slice(begin, end)
        self.master = torch.zeros(end, device=device)
        self.total = torch.zeros(end, device=device)
        is_full = dtype == torch.float32
        self.used = self.master if is_full else torch.zeros(end, dtype=dtype, device=device)
        self.grad = self.total if is_full else torch.zeros(end, dtype=dtype, device=device)
        self._groups = [part.group for part in parts]
        self.views = [self._view(places[index], part.start) for index, part in enumerate(parts)]
        self.refresh()

    def _view(self, place: int, start: Tensor) -> View:
        buffers = (self.master, self.used, self.grad, self.total)
        view = View(*(buffer[place : place + start.numel()].view(start.shape) for buffer in buffers))
        view.master.copy_(start)
        return view

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        buffers = {id(buffer): buffer.nbytes for buffer in (self.master, self.total, self.used, self.grad)}
        return sum(buffers.values())

    def refresh(self) -> None:
        """Compute with the weights as they are now."""
        if self.used is not self.master:
            self.used.copy_(self.master)

    def begin_step(self) -> None:
        """Begin an optimizer step: no gradient yet, the weights as they are now."""
        self.refresh()
        self.total.zero_()
        if self.grad is not self.total:
            self.grad.zero_()

    def add_up(self, loss_scale: Tensor | None = None) -> None:
        """Add one batch's gradient to that of the step, in fp32.

        Args:
            loss_scale: The factor that was on the loss, or None.
        """
        if self.grad is not self.total:
            self.total.add_(self.grad.float().div_(loss_scale) if loss_scale is not None else self.grad)
            self.grad.zero_()

    def trained(self, is_per_tensor: bool) -> dict[Group, list[Tensor]]:
        """The fp32 weights as an optimizer takes them, by parameter group, each with its gradient.

        Args:
            is_per_tensor: Whether the optimizer's rule depends on a tensor's shape or size. Otherwise a group is one
                tensor.
        """
        found: dict[Group, list[Tensor]] = {group: [] for group in self.groups}
        if is_per_tensor:
            pairs = [(group, view.master, view.total) for group, view in zip(self._groups, self.views, strict=True)]
        else:
            pairs = [(group, self.master[at], self.total[at]) for group, at in self.groups.items()]
        for group, weight, gradient in pairs:
            weight = weight.detach()
            weight.grad = gradient
            found[group].append(weight)
        return found
