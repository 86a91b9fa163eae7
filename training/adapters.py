"""The LoRA itself: two small matrices beside a frozen layer, acting on activations.

    y = f(x) + (alpha / rank) · up(drop(down(x)))                        (Hu et al. 2021, arXiv:2106.09685)

Nothing here ever forms `W + ΔW`: a step costs little more than the frozen model's own. Frozen weights are reached
through a `Frozen` that lends them for one operation, because the host may keep them as inference tensors, on the
CPU, quantized or paged out; backward borrows again instead of saving them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .draws import generator
from .errors import UserError


class Frozen(Protocol):
    """A frozen layer that lends its weights."""

    module: nn.Module

    def lend(self, x: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Lend (weight, bias) in the dtype and on the device of `x`, for the length of a `with` block."""


class LoraLayer:
    """The trainable pair of one layer.

    Attributes:
        path: Path of the frozen layer inside the host's model.
        down: [rank, in] for a linear layer, [rank, in, 1, 1] for a 1×1 convolution; fp32.
        up: [out, rank] or [out, rank, 1, 1]; fp32, zeros at the start so that training begins at the base model.
        scale: alpha / rank.
        is_off: Whether the frozen layer runs alone for now.
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

    def begin_micro_step(self, seed: int, micro_step: int) -> None:
        """Fix what dropout draws until the next call, so that a recomputed block drops the same values."""
        self._draw = (seed, micro_step)

    def keep_mask(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Draw which inner values stay, scaled so that their mean is kept; None without dropout."""
        if not self.dropout:
            return None
        seed, micro_step = self._draw
        draws = torch.rand(
            shape, device=device, generator=generator(seed, "dropout", micro_step, self.index, device=device)
        )
        return (draws >= self.dropout).float() / (1 - self.dropout)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a layer computes in: autocast's when it is on, else that of its input."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class AdaptedLinear(torch.autograd.Function):
    """A frozen linear layer with or without its LoRA, as one operation.

    Forward adds the LoRA into the layer's output in place; backward adds its share into the input's gradient in
    place. Saved for backward: the input (only where there is a LoRA) and its image under `down`. The frozen
    weight is borrowed again, never saved.
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
            # Into a tensor of its own: some models add into the result in place, which a view would forbid.
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
        saved = ctx.saved_tensors  # may be asked for once only when the block is checkpointed
        if saved:
            rows, inner, down, up, keep = saved
            flat = grad.reshape(-1, grad.shape[-1])
            # The scale goes on what is small, not on a copy of the whole gradient.
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
        """Return the gradient of x, from the weight and the input's shape alone."""
        if not ctx.needs_input_grad[0]:
            return None, None
        conv: Any = ctx.frozen.module
        with ctx.frozen.lend(grad) as (weight, _):
            # The input's values are not needed for its gradient; an expanded scalar stands in for its shape.
            shape_only = grad.new_empty(1).expand(ctx.shape)
            grad_x = torch.ops.aten.convolution_backward(
                grad, shape_only, weight, None, conv.stride, conv.padding, conv.dilation, False,
                [0] * (len(ctx.shape) - 2), conv.groups, (True, False, False),
            )[0]
        return grad_x.to(ctx.input_dtype), None


def adapted_linear(x: Tensor, frozen: Frozen, layer: LoraLayer | None) -> Tensor:
    """Run a frozen linear layer, with its LoRA when it has one."""
    layer = None if layer is None or layer.is_off else layer
    down, up = (layer.down, layer.up) if layer else (None, None)
    return AdaptedLinear.apply(x, down, up, frozen, layer)  # type: ignore[no-any-return]


def adapted_conv(x: Tensor, frozen: Frozen, layer: LoraLayer | None) -> Tensor:
    """Run a frozen convolution, with its LoRA (1×1, stride 1) when it has one."""
    y: Tensor = FrozenConv.apply(x, frozen)
    if layer is None or layer.is_off:
        return y
    inner = F.conv2d(x.to(y.dtype), layer.down.to(y.dtype))
    keep = layer.keep_mask(inner.shape, x.device)
    if keep is not None:
        inner = inner * keep.to(inner.dtype)
    return y.add_(F.conv2d(inner, layer.up.to(y.dtype)), alpha=layer.scale)


# Layers of a block that shape time, size or modulation rather than attention and feed-forward. kohya leaves the
# UNet's out as well; on DiTs a LoRA of them mostly shifts colour and contrast of everything.
_NOT_TARGETS = re.compile(r"emb|(^|_)mod(_|$)|modulation|adaln|norm|skip|time|guidance", re.I)


def is_target(path: str, module: nn.Module) -> bool:
    """Whether a layer belongs to the default targets: attention and feed-forward of the repeated blocks.

    A rule on structure, not a table of architectures: a linear layer inside a numbered block (`blocks.3.…`), or
    the 1×1 projection around a UNet's transformer, that is not one of the time, size or modulation layers.

    Args:
        path: Path inside the diffusion model, such as `joint_blocks.0.x_block.attn.qkv`.
        module: The layer.
    """
    parts = path.split(".")
    in_block = any(part.isdigit() for part in parts[1:-1])
    if not in_block or any(_NOT_TARGETS.search(part) for part in parts):
        return False
    if isinstance(module, nn.Conv2d):
        return parts[-1] in ("proj_in", "proj_out") and tuple(module.kernel_size) == (1, 1)
    return hasattr(module, "in_features")


class LoraNetwork:
    """All trainable pairs of a run, in the order of the model's layers."""

    def __init__(self, layers: Iterable[LoraLayer], rank: int, alpha: float) -> None:
        self.layers = list(layers)
        self.rank = rank
        self.alpha = alpha
        for index, layer in enumerate(self.layers):
            layer.index = index

    @classmethod
    def create(
        cls,
        targets: dict[str, nn.Module],
        *,
        rank: int,
        alpha: float,
        dropout: float,
        seed: int,
        device: torch.device,
    ) -> LoraNetwork:
        """Make a fresh pair for each target.

        `down` is drawn from U(-1/√in, 1/√in) (kaiming uniform with a = √5, as kohya and PEFT draw it) with one
        generator per layer, `up` is zero.

        Raises:
            UserError: There is nothing to train.
        """
        if not targets:
            raise UserError(
                "This MODEL has no layer a LoRA can be trained on: no attention or feed-forward layer was found in "
                "it. Connect the MODEL of an image model's checkpoint or diffusion-model loader."
            )
        layers = []
        for index, (path, module) in enumerate(targets.items()):
            if isinstance(module, nn.Conv2d):
                down_shape: tuple[int, ...] = (rank, module.in_channels, 1, 1)
                up_shape: tuple[int, ...] = (module.out_channels, rank, 1, 1)
            else:
                fan_in, fan_out = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
                down_shape, up_shape = (rank, fan_in), (fan_out, rank)
            bound = 1 / math.sqrt(down_shape[1])
            down = torch.rand(down_shape, generator=generator(seed, "init", index)) * (2 * bound) - bound
            up = torch.zeros(up_shape)
            layers.append(LoraLayer(path, down.to(device), up.to(device), alpha / rank, dropout))
        return cls(layers, rank, alpha)

    def parameters(self) -> Iterator[Tensor]:
        """Yield every trainable tensor, down before up, layer by layer."""
        for layer in self.layers:
            yield layer.down
            yield layer.up

    def begin_micro_step(self, seed: int, micro_step: int) -> None:
        """Tell each layer where in the run it is."""
        for layer in self.layers:
            layer.begin_micro_step(seed, micro_step)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the frozen model alone until the block ends."""
        for layer in self.layers:
            layer.is_off = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer.is_off = False
