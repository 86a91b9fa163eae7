"""The ways a frozen layer computes: on its own weight, on a copy of it, or on one borrowed for each operation.

The host's weights are inference tensors, which autograd cannot save. They may be on the CPU, quantized or paged out.

- resident: an alias, a normal tensor on the same storage, where the weight is in the compute dtype on the device;
- copied: a copy in the compute dtype, made once, where there is memory for it;
- borrowed: the host lends the weight for one operation, and again in backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .out_of_memory import is_out_of_memory
from .quantized import ADVICE, is_packed, is_wrapped, quantization, refuse_unknown, unpacked


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer. The host's quantized ones are no nn.Linear but count."""
    if isinstance(module, nn.Linear):
        return True
    return "Linear" in type(module).__name__ and hasattr(module, "in_features") and hasattr(module, "weight_function")


def is_conv(module: nn.Module) -> bool:
    """Return whether a module is a convolution whose backward needs only its weight and zero padding."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def weight_shape(module: Any) -> tuple[int, ...]:
    """Return the shape of a layer's weight as it computes; a packed one is stored in another."""
    if is_linear(module):
        return (module.out_features, module.in_features)
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def alias(tensor: Tensor) -> Tensor:
    """Return a normal tensor on the storage of a host's inference tensor."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())  # type: ignore[call-overload,no-any-return]


def is_resident(tensor: Tensor | None, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a tensor can be used as it lies: plain, in this dtype, on this device."""
    if tensor is None:
        return True
    return type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == dtype and tensor.device == device


class Weights:
    """The weight and bias of one layer, in the compute dtype, for `with` blocks.

    Args:
        module: The host's layer.
        dtype: The compute dtype.
        device: Where training computes.
        path: The layer's path in the model, for messages.
    """

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device, path: str = "") -> None:
        self.module, self.path = module, path
        self.dtype, self.device = dtype, device
        self._quantization = quantization(module)
        self.held: tuple[Tensor, Tensor | None] | None = None
        if self._is_resident():
            weight, bias = self.module.weight, self.module.bias
            self.held = alias(weight), None if bias is None else alias(bias)

    def _is_resident(self) -> bool:
        module = self.module
        if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
            return False  # patches that the host applies when it computes
        if hasattr(module, "_v") or hasattr(module, "cast_bias_weight"):
            return False  # pages that the host may evict; packed weights
        if any(getattr(module, name, None) is not None for name in ("scale_weight", "pre_quant_scale")):
            return False
        return all(is_resident(tensor, self.dtype, self.device) for tensor in (module.weight, module.bias))

    @property
    def copy_size(self) -> int:
        """Bytes that a copy would take; 0 where none is needed or the host keeps the weight off the device."""
        if self.held is not None or self.module.weight.device != self.device:
            return 0
        bias = 0 if self.module.bias is None else self.module.bias.numel()
        return (math.prod(weight_shape(self.module)) + int(bias)) * self.dtype.itemsize

    def copy(self) -> None:
        """Keep a copy in the compute dtype."""
        with self.lend() as (weight, bias):
            self.held = weight.clone(), None if bias is None else bias.clone()

    def lend(self) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Lend (weight, bias). Inside the block they may be read; after it the host may reuse their memory."""
        return self._borrowed() if self.held is None else nullcontext(self.held)

    @contextmanager
    def _borrowed(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        weight, bias, give_back = self._take()
        try:
            yield weight, bias
        finally:
            give_back()

    def _take(self) -> tuple[Tensor, Tensor | None, Callable[[], None]]:
        """Return weight and bias, and what to call when they are used no more.

        Raises:
            UserError: The layer is quantized and does not give its weight.
        """
        kind = self._quantization
        try:
            taken = self._cast()
            if kind:
                self._check_unpacked(taken[0])
        except (RuntimeError, LookupError, AttributeError, TypeError, ValueError, AssertionError) as error:
            if kind is None or is_out_of_memory(error):
                raise
            layer = f"The layer {self.path}" if self.path else f"A layer of this MODEL ({type(self.module).__name__})"
            why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(f"{layer} is quantized as {kind} and cannot be unpacked: {why}. {ADVICE}") from error
        return taken

    def _cast(self) -> tuple[Tensor, Tensor | None, Callable[[], None]]:
        module, dtype, device = self.module, self.dtype, self.device
        if hasattr(module, "cast_bias_weight"):  # GGUF: the layer unpacks its own weight
            weight, bias = module.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)[:2]
            return unpacked(weight, dtype), bias, _nothing
        if is_packed(module.weight) and not is_wrapped(module.weight):
            raise TypeError("its weight has no way to unpack itself")
        if not hasattr(module, "weight_function"):  # a plain torch layer, not one of the host's
            bias = None if module.bias is None else module.bias.to(device, dtype)
            return self._as_computed(module.weight.to(device)), bias, _nothing
        # In its own dtype a wrapped weight stays packed: the host would change its own tensor, and with a warning.
        lent, bias, handle = comfy.ops.cast_bias_weight(
            module, dtype=module.weight.dtype if is_wrapped(module.weight) else dtype, device=device, bias_dtype=dtype,
            offloadable=True,
        )  # fmt: skip

        def give_back() -> None:
            comfy.ops.uncast_bias_weight(module, lent, bias, handle)

        try:
            return self._as_computed(lent), bias, give_back
        except BaseException:
            give_back()
            raise

    def _as_computed(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer's own forward effectively multiplies by."""
        weight = unpacked(weight, self.dtype)
        # Scaled fp8 stores one factor per layer next to the weight, AWQ one per input channel.
        for name in ("scale_weight", "pre_quant_scale"):
            factor = getattr(self.module, name, None)
            if factor is not None:
                weight = weight * factor.to(device=weight.device, dtype=weight.dtype)
        return weight

    def _check_unpacked(self, weight: Tensor) -> None:
        expected = weight_shape(self.module)
        # A patch may widen it.
        if weight.ndim != len(expected) or any(is_ < of for is_, of in zip(weight.shape, expected, strict=True)):
            raise ValueError(f"its weight is {tuple(weight.shape)} instead of {expected}")


def _nothing() -> None:
    pass


def refuse_untrainable(root: nn.Module) -> None:
    """Refuse a model with a layer that cannot be trained, before any work. One layer of each kind is unpacked.

    Args:
        root: The diffusion model, wherever its weights are.

    Raises:
        UserError: Names the layer and its quantization.
    """
    tried = set()
    for path, module in root.named_modules():
        path = path.replace("_orig_mod.", "")  # it may be compiled
        if "forward" in vars(module):
            continue  # another node's code computes it
        if not (is_linear(module) or is_conv(module)):
            refuse_unknown(path, module)
            continue
        if getattr(module, "weight", None) is None:
            refuse_unknown(path, module)
            raise UserError(f"The file of this MODEL has no weight for the layer {path}. Load a complete file.")
        kind = type(module), quantization(module)
        if kind[1] is None or kind in tried or module.weight.is_meta or hasattr(module, "_v"):
            continue  # those that the host pages are the host's own
        tried.add(kind)
        weights = Weights(module, torch.float32, module.weight.device, path)
        with torch.inference_mode(False), torch.no_grad(), weights.lend():
            pass


class FrozenLinear:
    """A frozen linear layer that computes; a `Frozen`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Compute x Wᵀ + b for x [..., in]."""
        with self.weights.lend() as (weight, bias):
            if bias is None:
                return x @ weight.t()
            # Into a new tensor: some models add to the result in place, which autograd forbids on a view.
            y = x.new_empty(*x.shape[:-1], weight.shape[0])
            torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t(), out=y.view(-1, weight.shape[0]))
        return y

    def grad_input(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Compute g W for g [..., out]."""
        with self.weights.lend() as (weight, _):
            return grad @ weight


class FrozenConv:
    """A frozen convolution that computes; a `Frozen`. Its backward needs neither its input nor its output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, in, …] as the module would."""
        with self.weights.lend() as (weight, bias):
            return self.weights.module._conv_forward(x, weight, bias)  # type: ignore[no-any-return]

    def grad_input(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Compute the gradient of an input of this shape, which does not depend on the input's values."""
        conv = self.weights.module
        with self.weights.lend() as (weight, _):
            # An expanded scalar provides the shape.
            like = grad.new_empty(1).expand(shape)
            grad_x: Tensor = torch.ops.aten.convolution_backward(
                grad, like, weight, None, conv.stride, conv.padding, conv.dilation, False,
                [0] * (len(shape) - 2), conv.groups, (True, False, False),
            )[0]
        return grad_x


class Alone(torch.autograd.Function):
    """A frozen layer without an adapter that saves neither weight nor input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenLinear | FrozenConv) -> Tensor:  # type: ignore[override]
        """Compute the layer's output."""
        ctx.frozen, ctx.shape = frozen, x.shape
        return frozen.forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        """Return the gradient of x."""
        return (ctx.frozen.grad_input(grad, ctx.shape) if ctx.needs_input_grad[0] else None), None


def alone(frozen: FrozenLinear | FrozenConv) -> Callable[[Tensor], Tensor]:
    """Return the computation of a frozen layer without an adapter."""
    held = frozen.weights.held
    if held is not None and isinstance(frozen, FrozenLinear):
        weight, bias = held
        return lambda x: F.linear(x, weight, bias)  # saves nothing but the weight, which is there anyway
    return lambda x: Alone.apply(x, frozen)  # type: ignore[no-any-return]
