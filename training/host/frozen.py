"""Makes the host's loaded model differentiable during a run, and restores it exactly.

The host's weights are inference tensors. They may be on the CPU, quantized or paged out, and other nodes of the graph
use them too. Linear and Conv layers therefore get a `forward` that borrows the weight (see `training/adapters/`). The
few tensors of all other layers are swapped for clones. The rest of the model's code runs unchanged.
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
    """A host layer that lends its weight for one operation, wherever and in whatever form the host stores it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @contextmanager
    def lend(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Lend (weight, bias) in the dtype and on the device of `x`.

        The host casts, moves, dequantizes and applies patches. Inside the block the weight may be read; after it the
        host may page it out or reuse its buffer.
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
        """Return the weight that the layer's own forward effectively multiplies by."""
        if hasattr(weight, "dequantize") and type(weight) not in (Tensor, nn.Parameter):
            weight = weight.dequantize().to(dtype)
        # Scaled fp8 stores one factor per layer next to the weight, AWQ one per input channel.
        for name in ("scale_weight", "pre_quant_scale"):
            factor = getattr(self.module, name, None)
            if factor is not None:
                weight = weight * factor.to(device=weight.device, dtype=weight.dtype)
        return weight


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


class _Undo(ExitStack):
    """Records every change and undoes all of them in reverse order."""

    def set_attr(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of an object; at the end its own value, or the lack of one, is restored."""
        own = vars(owner)
        if name in own:
            self.callback(setattr, owner, name, own[name])
        else:
            self.callback(delattr, owner, name)
        setattr(owner, name, value)

    def set_item(self, owner: dict[str, Any], name: str, value: Any) -> None:
        """Replace an existing item of a dict; at the end the same object is restored."""
        self.callback(owner.__setitem__, name, owner[name])
        owner[name] = value


class Differentiable:
    """A host model that is differentiable at present."""

    def __init__(self, undo: _Undo, norms: list[nn.Module]) -> None:
        self._undo, self._norms = undo, norms

    def rehearse(self, step: Callable[[], None]) -> None:
        """Run one forward and backward as a trial, and adapt to the model's code.

        Some models add in place to what their norms saved for backward (Flux's `img += …`), which autograd rejects.
        Only for those do norms get a copy of their input, since it costs memory.
        """
        try:
            step()
            return
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
        # Outside the except block: the traceback would keep the first attempt's activations alive.
        log.info("LoRA Workbench: this model adds in place, so its norms get copies of their inputs")
        self.copy_norm_inputs()
        step()

    def copy_norm_inputs(self) -> None:
        """Give every norm a copy of its input to save for backward."""
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
    """Make a host model with the given LoRA layers differentiable until the block ends.

    Enter it outside inference mode. After success, error or cancel, every module has its original `forward`,
    parameters and buffers: the same objects, never written to.

    Args:
        model: The host's BaseModel, loaded on its device.
        layers: LoRA layers by path below `model.diffusion_model`.
        precision: The dtype the frozen model computes in.
        checkpointing: Whether blocks are recomputed in backward instead of keeping their activations.

    Yields:
        The model. Call its `rehearse` with the first step.
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
            # Inside a recomputed block autograd does not notice changes in place.
            made.copy_norm_inputs()
            for block in blocks(diffusion_model):
                undo.set_attr(block, "forward", _checkpointed(block.forward))
        _use_differentiable_kernels(undo)
        with torch.enable_grad():
            yield made


def _runner(run: Callable[..., Tensor], module: nn.Module, layer: LoraLayer | None) -> Callable[..., Tensor]:
    frozen = FrozenLayer(module)

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        comfy.ops.run_every_op()  # raises the host's interrupt, as the host's own layers do
        return run(x, frozen, layer)

    return forward


def _cloning(forward: Callable[..., Any]) -> Callable[..., Any]:
    def cloned(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.clone(), *args, **kwargs)

    return cloned


def _swap_tensors(undo: _Undo, module: nn.Module, precision: torch.dtype) -> None:
    """Replace a module's own parameters and buffers by clones.

    Autograd cannot save the host's inference tensors. With fp32 the clones are fp32 too, because layers of a
    half-precision model would refuse the wider input.
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
    """Return the repeated blocks of a model, which are checkpointed; of nested blocks only the outermost.

    The elements of a ModuleList are blocks. In a UNet these elements are sequences whose members are called one by
    one, so there the members are the blocks.
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
        # A block that adds to its inputs in place would find them changed when it is recomputed.
        fresh = [a.clone() if isinstance(a, Tensor) else a for a in args]
        fresh_named = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return forward(*fresh, **fresh_named)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(on_clones, *args, use_reentrant=False, **kwargs)

    return checkpointed


def _use_differentiable_kernels(undo: _Undo) -> None:
    """Replace the fused kernels of newer hosts, which have no backward, by eager ones."""
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
    """Compute attention with torch, which is differentiable and gives the same result on every recompute.

    The model gets this as `optimized_attention_override`, in place of the attention the host chose.
    """
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
