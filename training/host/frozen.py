"""Makes the host's loaded model differentiable for the length of a run, and puts it back exactly as it was.

The host's weights are inference tensors, may be on the CPU, quantized or paged out, and belong to every other node
of the graph. So Linear and Conv layers get a `forward` that borrows the weight (see `training/adapters.py`), the
few tensors of all other layers are swapped for clones, and the rest of the model's code runs as it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..adapters.lora import LoraLayer, adapted_conv, adapted_linear

log = logging.getLogger(__name__)


class FrozenLayer:
    """A host layer that lends its weight for one operation, wherever and however the host keeps it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @contextmanager
    def lend(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Lend (weight, bias) in the dtype and on the device of `x`.

        The host casts, moves, dequantizes and applies patches; inside the block the weight is ours to read, after
        it the host may page it out or reuse its buffer.
        """
        module: Any = self.module
        if not hasattr(module, "weight_function"):  # a plain torch layer, not one of the host's
            bias = None if module.bias is None else module.bias.to(x.device, x.dtype)
            yield module.weight.to(x.device, x.dtype), bias
            return
        weight, bias, handle = comfy.ops.cast_bias_weight(
            module, dtype=x.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
        )
        try:
            yield self._as_computed(weight, x.dtype), bias
        finally:
            comfy.ops.uncast_bias_weight(module, weight, bias, handle)

    def _as_computed(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight the layer's own forward would in effect multiply with."""
        if hasattr(weight, "dequantize") and type(weight) not in (Tensor, nn.Parameter):
            weight = weight.dequantize().to(dtype)
        # Scaled fp8 keeps one factor per layer beside the weight, AWQ one per input channel.
        for name in ("scale_weight", "pre_quant_scale"):
            factor = getattr(self.module, name, None)
            if factor is not None:
                weight = weight * factor.to(device=weight.device, dtype=weight.dtype)
        return weight


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, the host's quantized ones included (they are no nn.Linear)."""
    if isinstance(module, nn.Linear):
        return True
    return "Linear" in type(module).__name__ and hasattr(module, "in_features") and hasattr(module, "weight_function")


def is_conv(module: nn.Module) -> bool:
    """Whether a module is a convolution whose backward needs no more than its weight and padding by zeros."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


class _Undo(ExitStack):
    """Remembers how to put back each thing that was changed, and does so in reverse order."""

    def set_attr(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of an object, restoring the object's own one (or its absence) at the end."""
        own = vars(owner)
        if name in own:
            self.callback(setattr, owner, name, own[name])
        else:
            self.callback(delattr, owner, name)
        setattr(owner, name, value)

    def set_item(self, owner: dict[str, Any], name: str, value: Any) -> None:
        """Set an item of a dict that is already there, restoring the very same object at the end."""
        self.callback(owner.__setitem__, name, owner[name])
        owner[name] = value


class Differentiable:
    """A host model while it is differentiable."""

    def __init__(self, undo: _Undo, norms: list[nn.Module]) -> None:
        self._undo, self._norms = undo, norms

    def rehearse(self, step: Callable[[], None]) -> None:
        """Do one forward and backward for trial, and change what the model's code turns out to need.

        Some models go on adding in place into what their norms have saved for backward (Flux's `img += …`), which
        autograd notices: for those, norms get a copy. Others are spared its memory.
        """
        try:
            step()
            return
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
        # Out here, or the exception's traceback would keep the first attempt's activations through the second.
        log.info("LoRA Workbench: this model adds in place; its norms get copies")
        self.copy_norm_inputs()
        step()

    def copy_norm_inputs(self) -> None:
        """Give every norm a copy of its input to save."""
        for module in self._norms:
            self._undo.set_attr(module, "forward", _cloning(module.forward))
        self._norms = []


@contextmanager
def differentiable(
    model: nn.Module,
    layers: dict[str, LoraLayer],
    *,
    precision: torch.dtype,
    checkpointing: bool,
) -> Iterator[Differentiable]:
    """Make a host model differentiable with the given LoRA layers on it, until the block ends.

    Must be entered outside inference mode. On leaving, on success, error and cancel alike, every module has the
    `forward`, parameters and buffers it came with: the same objects, never written to.

    Args:
        model: The host's BaseModel, loaded on its device.
        layers: LoRA layers by path below `model.diffusion_model`.
        precision: What the frozen model computes in.
        checkpointing: Whether blocks are computed again in backward instead of keeping their activations.

    Yields:
        The model, whose `rehearse` must be called with the first step.
    """
    norms: list[nn.Module] = []
    diffusion_model: nn.Module = model.diffusion_model  # type: ignore[assignment]
    with _Undo() as undo, torch.no_grad():
        undo.set_attr(model, "manual_cast_dtype", precision)
        for path, module in diffusion_model.named_modules():
            if is_linear(module):
                undo.set_attr(module, "forward", _runner(adapted_linear, module, layers.get(path)))
            elif is_conv(module):
                undo.set_attr(module, "forward", _runner(adapted_conv, module, layers.get(path)))
            else:
                _swap_tensors(undo, module, precision)
                if "norm" in type(module).__name__.lower() and not list(module.children()):
                    norms.append(module)
        made = Differentiable(undo, norms)
        if checkpointing:
            # Within a recomputed block autograd does not notice what is changed in place.
            made.copy_norm_inputs()
            for block in blocks(diffusion_model):
                undo.set_attr(block, "forward", _checkpointed(block.forward))
        _use_differentiable_kernels(undo)
        with torch.enable_grad():
            yield made


def _runner(run: Callable[..., Tensor], module: nn.Module, layer: LoraLayer | None) -> Callable[..., Tensor]:
    frozen = FrozenLayer(module)

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        comfy.ops.run_every_op()  # raises the host's interrupt, as its own layers do
        return run(x, frozen, layer)

    return forward


def _cloning(forward: Callable[..., Any]) -> Callable[..., Any]:
    def cloned(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.clone(), *args, **kwargs)

    return cloned


def _swap_tensors(undo: _Undo, module: nn.Module, precision: torch.dtype) -> None:
    """Replace a module's own parameters and buffers by clones that autograd may save.

    They are the host's inference tensors, which it may not. For fp32 the clones are fp32 too, since layers of a
    half-precision model otherwise refuse the wider input.
    """
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            clone = tensor.detach().clone()
            if precision == torch.float32 and clone.dtype in (torch.float16, torch.bfloat16):
                clone = clone.float()
            if isinstance(tensor, nn.Parameter):
                clone = nn.Parameter(clone, requires_grad=False)
            undo.set_item(tensors, name, clone)  # type: ignore[arg-type]


def blocks(diffusion_model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, outermost first come: what is checkpointed.

    Elements of a ModuleList are blocks. A UNet's elements are sequences whose members are called one by one, so
    there the members are the blocks.
    """
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, (nn.ModuleList, nn.Sequential)) and not isinstance(
                child, (nn.ModuleList, nn.Sequential)
            ):
                if next(child.children(), None) is not None:
                    found.append(child)
            else:
                visit(child)

    visit(diffusion_model)
    return found


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def on_clones(*args: Any, **kwargs: Any) -> Any:
        # Blocks that add into their inputs in place would otherwise find them changed when computed again.
        fresh = [a.clone() if isinstance(a, Tensor) else a for a in args]
        fresh_named = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return forward(*fresh, **fresh_named)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(on_clones, *args, use_reentrant=False, **kwargs)

    return checkpointed


def _use_differentiable_kernels(undo: _Undo) -> None:
    """Turn off the fused kernels of newer hosts that have no backward; hosts without them need nothing."""
    if hasattr(comfy.model_management, "in_training"):
        undo.set_attr(comfy.model_management, "in_training", True)
    try:
        import comfy_kitchen.backends.eager.rope as eager
        from comfy import quant_ops
    except ImportError:
        return
    kitchen = getattr(quant_ops, "ck", None)
    for name in dir(eager):
        if kitchen is not None and "rope" in name and callable(getattr(eager, name)) and hasattr(kitchen, name):
            undo.set_attr(kitchen, name, getattr(eager, name))


def torch_attention(_function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for whatever attention the host chose: torch's own, differentiable and the same on every recompute.

    Given to the model as `optimized_attention_override`.
    """
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
