"""The two walls of the engine: a frozen layer computes, an adapter is no part of it; and what joins them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .flat import Part, View

# What part of a batch is shown: its first picture, its number of pictures, the batch's number of pictures.
Share = tuple[int, int, int]
WHOLE: Share = (0, 1, 1)


class Frozen(Protocol):
    """A frozen layer that computes, wherever and in whatever form its weight is kept."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, a new tensor that is no view."""

    def grad_input(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of an input of this shape, a new tensor, from that of the output."""


class Adapter(Protocol):
    """The trainable part of one adapted layer.

    Attributes:
        path: Of the frozen layer inside the host's model.
        index: Its number among the run's adapters, which its random draws depend on.
        is_off: Whether the frozen layer runs alone at present.
        drops: Whether it drops values at random at present, if it is set to.
        part_of: The model that the layer belongs to: the denoiser, or a text encoder by its kind.
        rank: Its size, as metadata shows it.
        alpha: What scales its output, as metadata shows it.
    """

    path: str
    index: int
    is_off: bool
    drops: bool
    part_of: str
    rank: int
    alpha: float

    def parts(self) -> list[Part]:
        """Its trainable tensors as they start."""

    def place(self, views: list[View]) -> None:
        """Take its tensors' places in the run's buffers, one for each of its parts."""

    def begin_micro_step(self, seed: int, micro_step: int, share: Share) -> None:
        """Fix its random draws until the next call.

        Args:
            seed: The run's seed.
            micro_step: Micro-steps since the run began.
            share: What part of the batch is shown.
        """

    def add_output(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Add its output for the layer's input x to the layer's output y, in place; return what backward needs."""

    def add_gradients(
        self, grad: Tensor, x: Tensor, kept: tuple[Tensor | None, ...], grad_x: Tensor | None
    ) -> None:
        """Add to its gradients, and to that of x unless None, in place.

        Args:
            grad: Gradient of y.
            x: The layer's input.
            kept: What `add_output` returned.
            grad_x: Gradient of x so far.
        """

    def saved_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a LoRA file, fp32 copies on the CPU, under the name its layer has there."""


class Adapted(torch.autograd.Function):
    """A frozen layer with its adapter as one operation, which saves the input and what the adapter asks for.

    The adapter's gradients go straight into the run's buffer, not through autograd. `anchor` is a tensor that
    requires a gradient and never gets one: it makes the output part of the graph when x is not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, frozen: Frozen, adapter: Adapter) -> Tensor:  # type: ignore[override]
        """Compute the layer's output with the adapter's added."""
        ctx.frozen, ctx.adapter = frozen, adapter
        y = frozen.forward(x)
        ctx.save_for_backward(x, *adapter.add_output(x, y))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of x."""
        x, *kept = ctx.saved_tensors
        grad_x = ctx.frozen.grad_input(grad, x.shape) if ctx.needs_input_grad[0] else None
        ctx.adapter.add_gradients(grad, x, tuple(kept), grad_x)
        return grad_x, None, None, None


class Parallel(torch.autograd.Function):
    """An adapter parallel to a layer whose forward another node replaced."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, anchor: Tensor, adapter: Adapter) -> Tensor:  # type: ignore[override]
        """Compute y with the adapter's output for x added."""
        ctx.adapter = adapter
        out = y.clone(memory_format=torch.contiguous_format)
        ctx.save_for_backward(x, *adapter.add_output(x, out))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x and y."""
        x, *kept = ctx.saved_tensors
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        ctx.adapter.add_gradients(grad, x, tuple(kept), grad_x)
        return grad_x, grad, None, None
