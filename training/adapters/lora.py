"""LoRA: two small matrices parallel to a frozen layer, acting on activations.

    y = f(x) + (alpha / rank) · up(drop(down(x)))                        (Hu et al. 2021, arXiv:2106.09685)

`W + ΔW` is never formed, so a step costs little more than the frozen model's own. A `Frozen` lends the weights for one
operation, because the host may keep them as inference tensors, on the CPU, quantized or paged out. Backward borrows
them again instead of saving them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..draws import generator
from .frozen import Frozen, FrozenConv, compute_dtype


class LoraLayer:
    """The trainable pair of one layer.

    Attributes:
        path: Path of the frozen layer inside the host's model.
        down: [rank, in] for a linear layer, [rank, in, 1, 1] for a 1×1 convolution; fp32.
        up: [out, rank] or [out, rank, 1, 1]; fp32, initially zero so that training starts at the base model.
        scale: alpha / rank.
        is_off: Whether the frozen layer currently runs without the pair.
    """

    def __init__(self, path: str, down: Tensor, up: Tensor, scale: float, dropout: float) -> None:
        self.path = path
        self.down = down.requires_grad_(True)
        self.up = up.requires_grad_(True)
        self.scale = scale
        self.dropout = dropout
        self.index = 0
        self.is_off = False
        self._draw = (0, 0)

    @classmethod
    def fresh(
        cls, path: str, module: nn.Module, rank: int, alpha: float, dropout: float, start: torch.Generator,
        device: torch.device,
    ) -> LoraLayer:  # fmt: skip
        """A pair that changes nothing yet.

        `down` is drawn from U(-1/√in, 1/√in) (kaiming uniform with a = √5, as kohya and PEFT draw it), `up` is zero.
        """
        if isinstance(module, nn.Conv2d):
            down_shape: tuple[int, ...] = (rank, module.in_channels, 1, 1)
            up_shape: tuple[int, ...] = (module.out_channels, rank, 1, 1)
        else:
            fan_in, fan_out = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
            down_shape, up_shape = (rank, fan_in), (fan_out, rank)
        bound = 1 / math.sqrt(down_shape[1])
        down = torch.rand(down_shape, generator=start) * (2 * bound) - bound
        return cls(path, down.to(device), torch.zeros(up_shape).to(device), alpha / rank, dropout)

    def saved_tensors(self, name: str, alpha: float) -> dict[str, Tensor]:
        """The tensors of a LoRA file: fp32 copies on the CPU, which later training steps leave alone.

        Args:
            name: What the layer is called in the file.
            alpha: The network's alpha.
        """
        return {
            f"{name}.lora_down.weight": self.down.detach().float().cpu().clone(),
            f"{name}.lora_up.weight": self.up.detach().float().cpu().clone(),
            f"{name}.alpha": torch.tensor(float(alpha)),
        }

    def begin_micro_step(self, seed: int, micro_step: int) -> None:
        """Fix the dropout draws until the next call, so that a recomputed block drops the same values."""
        self._draw = (seed, micro_step)

    def keep_mask(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Draw which inner values to keep, scaled to preserve their mean; None without dropout."""
        if not self.dropout:
            return None
        seed, micro_step = self._draw
        draws = torch.rand(
            shape, device=device, generator=generator(seed, "dropout", micro_step, self.index, device=device)
        )
        return (draws >= self.dropout).float() / (1 - self.dropout)


class AdaptedLinear(torch.autograd.Function):
    """A frozen linear layer with or without its LoRA, as one operation.

    Forward adds the LoRA's output in place to the layer's. Backward adds its gradient in place to the input's. Saved
    for backward are the input and its projection by `down`, and only with a LoRA. The frozen weight is borrowed again,
    never saved.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        frozen: Frozen,
        layer: LoraLayer | None,
    ) -> Tensor:
        """Compute `x Wᵀ + b + scale · keep ⊙ (x downᵀ) upᵀ` for x of shape [..., in]."""
        ctx.frozen, ctx.layer = frozen, layer
        ctx.input_dtype = x.dtype
        x = x.to(compute_dtype(x))
        rows = x.reshape(-1, x.shape[-1])
        with frozen.lend(x) as (weight, bias):
            # Into a new tensor: some models add to the result in place, which autograd forbids on a view.
            y = x.new_empty(*x.shape[:-1], weight.shape[0])
            flat = y.view(-1, weight.shape[0])
            if bias is None:
                torch.mm(rows, weight.t(), out=flat)
            else:
                torch.addmm(bias, rows, weight.t(), out=flat)
        if layer is None or down is None or up is None:
            return y
        inner = rows @ down.to(x.dtype).t()
        keep = layer.keep_mask(inner.shape, x.device)
        if keep is not None:
            keep = keep.to(x.dtype)
            inner = inner * keep
        flat.addmm_(inner, up.to(x.dtype).t(), alpha=layer.scale)
        ctx.save_for_backward(rows, inner, down, up, keep)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x, down and up."""
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[0]:
            with ctx.frozen.lend(grad) as (weight, _):
                grad_x = grad @ weight
        saved = ctx.saved_tensors  # in a checkpointed block it may be accessed only once
        if saved:
            rows, inner, down, up, keep = saved
            flat = grad.reshape(-1, grad.shape[-1])
            # The scale is applied to the small results, not to a copy of the whole gradient.
            grad_up = (flat.t() @ inner).to(up.dtype).mul_(ctx.layer.scale)
            grad_inner = (flat @ up.to(grad.dtype)).mul_(ctx.layer.scale)
            if keep is not None:
                grad_inner = grad_inner * keep
            grad_down = (grad_inner.t() @ rows).to(down.dtype)
            if grad_x is not None:
                grad_x.view(-1, grad_x.shape[-1]).addmm_(grad_inner, down.to(grad.dtype))
        if grad_x is not None:
            grad_x = grad_x.to(ctx.input_dtype)
        return grad_x, grad_down, grad_up, None, None


def adapted_linear(x: Tensor, frozen: Frozen, layer: LoraLayer | None) -> Tensor:
    """Run a frozen linear layer, with its LoRA if it has one."""
    layer = None if layer is None or layer.is_off else layer
    down, up = (layer.down, layer.up) if layer else (None, None)
    return AdaptedLinear.apply(x, down, up, frozen, layer)  # type: ignore[no-any-return]


def adapted_conv(x: Tensor, frozen: Frozen, layer: LoraLayer | None) -> Tensor:
    """Run a frozen convolution, with its LoRA (1×1, stride 1) if it has one."""
    y: Tensor = FrozenConv.apply(x, frozen)
    if layer is None or layer.is_off:
        return y
    inner = F.conv2d(x.to(y.dtype), layer.down.to(y.dtype))
    keep = layer.keep_mask(inner.shape, x.device)
    if keep is not None:
        inner = inner * keep.to(inner.dtype)
    return y.add_(F.conv2d(inner, layer.up.to(y.dtype)), alpha=layer.scale)
