"""Makes the host's loaded model differentiable during a run, and restores it exactly.

The host's weights are inference tensors. They may be on the CPU, quantized or paged out, and other nodes of the graph
use them too. Linear and Conv layers therefore get a `forward` that borrows the weight (see `training/adapters/`). The
few tensors of all other layers are swapped for clones. The rest of the model's code runs unchanged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapted, Adapter, Parallel
from ..adapters.network import Network
from ..errors import NotRecomputable, UserError
from ..late import sent
from ..rung import Rung
from .calls import called
from .layers import FrozenConv, FrozenLinear, Weights, alias, alone, is_conv, is_linear, is_resident
from .recompute import Recomputed, differences

log = logging.getLogger(__name__)

_MOST_OFF = 0.05  # of a tensor's largest gradient; GPU kernels that add in any order stay below 0.01 in bf16


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
    """A host model that can be trained; between two steps it can be left and entered again.

    Args:
        model: The host's BaseModel, loaded on its device.
        network: The adapters, by the paths of the layers they sit on.
        dtype: The dtype that everything computes in.
        device: Where training computes.
        rung: How a step fits into memory.
        encoders: The text encoders that are trained with it, by name.
        recomputes_text: Whether checkpointing includes them. Dropout forbids it: each caption has draws of its own,
            which a block that is computed again would not find.
    """

    def __init__(
        self, model: nn.Module, network: Network, *, dtype: torch.dtype, device: torch.device, rung: Rung,
        encoders: Mapping[str, nn.Module] | None = None, recomputes_text: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.network, self.dtype = model, network, dtype
        self.encoders, self._recomputes_text = encoders or {}, recomputes_text
        self.device = torch.empty(0, device=device).device  # with its number, as tensors name it
        self.rung = rung
        self._copies_norm_inputs = False
        self._undo = _Undo()
        self._norms: list[nn.Module] = []
        self.blocks: list[Recomputed] = []

    @contextmanager
    def entered(self) -> Iterator[Differentiable]:
        """Keep the model differentiable inside the block; afterwards it is as it was."""
        self.enter()
        try:
            yield self
        finally:
            self.leave()

    def enter(self) -> None:
        """Make the model differentiable. Call it outside inference mode, with the model loaded on its device."""
        try:
            with torch.no_grad():
                self._enter()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the model back: every module has its own `forward`, parameters and buffers, never written to."""
        self._undo.close()
        self._norms, self.blocks = [], []

    def _enter(self) -> None:
        undo = self._undo
        undo.set_attr(self.model, "manual_cast_dtype", self.dtype)
        _unwrap_compiled(undo, self.model)
        diffusion_model: nn.Module = self.model.diffusion_model  # type: ignore[assignment]
        self._norms = self._enter_layers(diffusion_model)
        for module in self._schedule():
            _swap_tensors(undo, module, torch.float32, self.device)
        if self._copies_norm_inputs:
            self.copy_norm_inputs()
        trained = [diffusion_model]
        embedder = getattr(self.model, "embedder", None)
        if self.encoders and isinstance(embedder, nn.Module):
            # SDXL embeds sizes on the CPU and fetches the pooled text to them, for which every step would wait.
            undo.set_attr(embedder, "forward", _sending(embedder.forward, self.device))
        for name, encoder in self.encoders.items():
            for norm in self._enter_layers(encoder, f"{name}."):
                undo.set_attr(norm, "forward", _cloning(norm.forward))  # CLIP and T5 add in place
            if self._recomputes_text:
                trained.append(encoder)
        if self.rung.checkpointing:
            for block in (block for root in trained for block in blocks(root)):
                recomputed = Recomputed(block, self.network.anchor, offloads=self.rung.offloads)
                self.blocks.append(recomputed)
                undo.set_attr(block, "forward", recomputed)
        _use_differentiable_kernels(undo)

    def _enter_layers(self, root: nn.Module, prefix: str = "") -> list[nn.Module]:
        """Make every layer below a module differentiable; return the norms.

        Args:
            root: A diffusion model or a text encoder.
            prefix: What the paths of its adapters begin with.
        """
        undo, adapters = self._undo, self.network.by_path()
        norms = []
        for path, module in root.named_modules():
            if prefix and isinstance(module, nn.Embedding):
                # A lookup saves nothing of the table of words, whose copy would be large.
                if is_resident(module.weight, module.weight.dtype, self.device) and not hasattr(module, "_v"):
                    _swap_tensors(undo, module, module.weight.dtype, self.device)
                continue
            if not (is_linear(module) or is_conv(module)):
                _swap_tensors(undo, module, self.dtype, self.device)
                if "norm" in type(module).__name__.lower() and not list(module.children()):
                    norms.append(module)
                continue
            adapter = adapters.get(prefix + path)
            if "forward" in vars(module):  # another node's code, such as the host's bypass LoRA
                self._keep_replaced(prefix + path, module)
                undo.set_attr(module, "forward", self._parallel(module.forward, adapter))
                continue
            weights = Weights(module, self.dtype, self.device, prefix + path)
            if self.rung.copies and weights.copy_size:
                weights.copy()
            undo.set_attr(module, "forward", self._runner(prefix + path, _frozen(weights), adapter))
        return norms

    def _schedule(self) -> list[nn.Module]:
        """The modules of the noise schedule, whose tables the host may have left on the processor."""
        sampling = getattr(self.model, "model_sampling", None)
        return list(sampling.modules()) if isinstance(sampling, nn.Module) else []

    def _keep_replaced(self, path: str, module: nn.Module) -> None:
        """Let a forward that another node put in place go on, where possible on a layer that saves no weight."""
        owner = getattr(module.forward, "__self__", None)
        _free_held_tensors(self._undo, owner)
        own = getattr(owner, "original_forward", None)  # of the host's bypass LoRA
        if owner is not None and getattr(own, "__self__", None) is module:
            bare = _frozen(Weights(module, self.dtype, self.device, path))
            self._undo.set_attr(owner, "original_forward", self._runner(path, bare, None))
        else:
            _swap_tensors(self._undo, module, self.dtype, self.device)

    def _runner(
        self, path: str, frozen: FrozenLinear | FrozenConv, adapter: Adapter | None
    ) -> Callable[..., Tensor]:
        """The forward of a frozen layer, with its adapter if it has one."""
        dtype, anchor, bare = self.dtype, self.network.anchor, alone(frozen)

        def layer(x: Tensor) -> Tensor:
            if x.dtype != dtype:
                x = x.to(dtype)
            if adapter is None or adapter.is_off:
                return bare(x)
            return Adapted.apply(x, anchor, frozen, adapter)  # type: ignore[no-any-return]

        def forward(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
            comfy.ops.run_every_op()  # raises the host's interrupt, as the host's own layers do
            return called(path, layer, x, args, keywords) if args or keywords else layer(x)

        return forward

    def _parallel(self, replaced: Callable[..., Tensor], adapter: Adapter | None) -> Callable[..., Tensor]:
        """The forward of a layer whose own was replaced by another node, with its adapter if it has one."""
        dtype, anchor = self.dtype, self.network.anchor

        def forward(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
            x = x.to(dtype)
            y = replaced(x, *args, **keywords)
            return y if adapter is None or adapter.is_off else Parallel.apply(x, y, anchor, adapter)  # type: ignore[no-any-return]

        return forward

    def rehearse(self, step: Callable[[], None], *, compares: bool = True) -> None:
        """Run one forward and backward as a trial, and adapt to the model's code.

        Some models add in place to what their norms saved for backward (Flux's `img += …`), which autograd rejects.
        Only for those do norms get a copy of their input, since it costs memory. With checkpointing, the gradients of
        one block of each class are compared with those of running it plainly.

        Args:
            step: One forward and backward.
            compares: Whether blocks are compared.

        Raises:
            UserError: The model changes in place what its backward needs, or its blocks cannot be computed again.
        """
        if self._works(step, compares):
            return
        if not self._copies_norm_inputs:
            log.info("LoRA Workbench: this model adds in place, so its norms get copies of their inputs")
            self._copies_norm_inputs = True
            self.copy_norm_inputs()
            if self._works(step, compares):
                return
        raise UserError(
            f"{self._name} changes values in place that its gradients depend on, so it cannot be trained. Report this "
            "model to LoRA Workbench."
        )

    def _works(self, step: Callable[[], None], compares: bool) -> bool:
        """Try a step; False if the model changes in place what its backward needs. A failed try holds no memory."""
        try:
            self._try(step, compares)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            return False
        return True

    @property
    def _name(self) -> str:
        return f"This MODEL ({type(self.model.diffusion_model).__name__})"

    def _try(self, step: Callable[[], None], compares: bool) -> None:
        """Run a step, then compare one block of each class."""
        by_class: dict[type, list[Recomputed]] = {}
        for block in self.blocks if compares else ():
            by_class.setdefault(type(block.module), []).append(block)
        # The input of a model's first block often needs no gradient.
        chosen = [blocks[min(1, len(blocks) - 1)] for blocks in by_class.values()]
        for block in chosen:
            block.keeps_call = True
        step()
        for block in chosen:
            if (off := differences(block, self.network.flat)) > _MOST_OFF:
                raise NotRecomputable(
                    f"{self._name} cannot be trained with gradient_checkpointing: the gradients of a block "
                    f"({type(block.module).__name__}) are off by {off:.0%}. Turn gradient_checkpointing off."
                )

    def copy_norm_inputs(self) -> None:
        """Give every norm a copy of its input to save for backward."""
        for module in self._norms:
            self._undo.set_attr(module, "forward", _cloning(module.forward))
        self._norms = []


def _unwrap_compiled(undo: _Undo, root: nn.Module) -> None:
    """Put a module wrapped by `torch.compile` back in its place, so that the paths of layers are the model's own."""
    for module in list(root.modules()):
        for name, child in module._modules.items():
            inner = getattr(child, "_orig_mod", None)
            if inner is not None:
                undo.set_item(module._modules, name, inner)


def _frozen(weights: Weights) -> FrozenLinear | FrozenConv:
    return FrozenLinear(weights) if is_linear(weights.module) else FrozenConv(weights)


def _free_held_tensors(undo: _Undo, owner: Any) -> None:
    """Make the tensors of the object that replaced a forward normal ones, which autograd can save."""
    for held in (owner, getattr(owner, "adapter", None)):
        if held is None or isinstance(held, nn.Module):
            continue
        for name, value in list(vars(held).items()):
            if isinstance(value, Tensor) and value.is_inference():
                undo.set_attr(held, name, alias(value))
            elif isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) and v.is_inference() for v in value):
                normal = (alias(v) if isinstance(v, Tensor) and v.is_inference() else v for v in value)
                undo.set_attr(held, name, type(value)(normal))


def _cloning(forward: Callable[..., Any]) -> Callable[..., Any]:
    def cloned(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.clone(), *args, **kwargs)

    return cloned


def _sending(forward: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    def sending(*args: Any, **keywords: Any) -> Tensor:
        return sent(forward(*args, **keywords), device)

    return sending


def _swap_tensors(undo: _Undo, module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Replace a module's own parameters and buffers by normal tensors: an alias, or a copy where training computes.

    Autograd cannot save the host's inference tensors. Buffers in fp32, such as frequencies, stay so: the host's code
    expects them.
    """
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            is_half = tensor.dtype in (torch.float16, torch.bfloat16)
            is_weight = tensors is module._parameters and tensor.dtype == torch.float32
            wanted = dtype if is_half or is_weight else tensor.dtype
            if not hasattr(module, "_v") and is_resident(tensor, wanted, device):
                swapped = alias(tensor)
            else:
                swapped = tensor.detach().to(device, wanted, copy=True)
            if isinstance(tensor, nn.Parameter):
                swapped = nn.Parameter(swapped, requires_grad=False)
            undo.set_item(tensors, name, swapped)  # type: ignore[arg-type]


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


def _use_differentiable_kernels(undo: _Undo) -> None:
    """Replace what has no backward: fused kernels of newer hosts, other attention than torch's, changes in place."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("comfy.ldm."):
            continue
        for attention in ("optimized_attention", "optimized_attention_masked"):
            if hasattr(module, attention):  # some models call it without the options that carry the override
                undo.set_attr(module, attention, comfy.ldm.modules.attention.attention_pytorch)
        if hasattr(module, "apply_adaln_"):  # PixelDiT multiplies in place by what backward needs
            undo.set_attr(module, "apply_adaln_", lambda x, shift, scale: x * (1 + scale) + shift)
    for name, module in list(sys.modules.items()):
        is_text = name == "comfy.clip_model" or name.startswith("comfy.text_encoders.")
        if is_text and hasattr(module, "optimized_attention_for_device"):
            undo.set_attr(module, "optimized_attention_for_device", lambda *_, **__: _text_attention)
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


def _text_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **more: Any) -> Tensor:
    """Compute attention of a text encoder with torch, whose kernels want the mask in the dtype of the queries."""
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads, mask=mask, **more)  # type: ignore[no-any-return]


def torch_attention(_function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Compute attention with torch, which is differentiable and gives the same result on every recompute.

    The model gets this as `optimized_attention_override`, in place of the attention the host chose.
    """
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
