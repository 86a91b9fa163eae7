"""Frozen layers, which lend their weights for one operation at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Frozen(Protocol):
    """A frozen layer that lends its weights."""

    module: nn.Module

    def lend(self, x: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Lend (weight, bias) in the dtype and on the device of `x` for a `with` block."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a layer computes in: autocast's if it is on, else the input's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class FrozenConv(torch.autograd.Function):
    """A frozen convolution that saves neither its weight nor its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen) -> Tensor:  # type: ignore[override]
        """Convolve x of shape [B, C, ...] as the module would."""
        ctx.frozen, ctx.shape, ctx.input_dtype = frozen, x.shape, x.dtype
        x = x.to(compute_dtype(x))
        with frozen.lend(x) as (weight, bias):
            return frozen.module._conv_forward(x, weight, bias)  # type: ignore[operator]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        """Return the gradient of x, which needs only the weight and the shape of x."""
        if not ctx.needs_input_grad[0]:
            return None, None
        conv: Any = ctx.frozen.module
        with ctx.frozen.lend(grad) as (weight, _):
            # The gradient of x does not depend on its values, so an expanded scalar provides the shape.
            shape_only = grad.new_empty(1).expand(ctx.shape)
            grad_x = torch.ops.aten.convolution_backward(
                grad, shape_only, weight, None, conv.stride, conv.padding, conv.dilation, False,
                [0] * (len(ctx.shape) - 2), conv.groups, (True, False, False),
            )[0]
        return grad_x.to(ctx.input_dtype), None
