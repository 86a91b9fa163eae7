"""Gradient checkpointing: a block keeps its inputs and is computed again in backward (Chen et al. 2016).

One autograd Function per block. The block that is computed again is an ordinary autograd graph, so code that changes
what backward needs is noticed, as without checkpointing. Nothing is drawn inside a block but dropout, whose draws
depend on the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..adapters.flat import Flat


class Recomputed:
    """A block's forward that is computed again in backward.

    Args:
        module: The block, with its own forward.
        anchor: A tensor that requires a gradient and never gets one: it makes the outputs part of the graph.
        offloads: Whether its inputs wait for backward in system memory.

    Attributes:
        keeps_call: Whether the next call is kept.
        kept_call: Copies of its arguments.
    """

    def __init__(self, module: nn.Module, anchor: Tensor, *, offloads: bool = False) -> None:
        self.module, self.anchor, self.offloads = module, anchor, offloads
        self.forward: Callable[..., Any] = module.forward
        # Which tensor arguments the block changes in place: learned from the first call, on copies of all.
        self.changed: frozenset[int] | None = None
        self.keeps_call = False
        self.kept_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        leaves, spec = _flattened((args, kwargs))
        if self.keeps_call:
            copies = [_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self.kept_call, self.keeps_call = pytree.tree_unflatten(copies, spec), False
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shape: list[Any] = []
        outputs = _Block.apply(self.anchor, self, leaves, spec, shape, *tensors)
        rest, out_spec = shape
        given = iter(outputs)
        return pytree.tree_unflatten([next(given) if leaf is _TENSOR else leaf for leaf in rest], out_spec)

    def run(self, leaves: list[Any], spec: Any) -> Any:
        """Run the block on its arguments; tensors that it changes in place are copied first."""
        number, given, originals = 0, [], []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                if self.changed is None or number in self.changed:
                    leaf = leaf.clone()
                originals.append((number, leaf, leaf._version))
                number += 1
            given.append(leaf)
        args, kwargs = pytree.tree_unflatten(given, spec)
        out = self.forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            changed = frozenset(number for number, tensor, version in originals if tensor._version != version)
            if self.changed is None:
                self.changed = changed
            elif changed - self.changed:
                raise RuntimeError("a block changed an input in place that it had left alone before")
        return out


class _Record:
    """A dataclass among the arguments, whose tensors are seen too: Chroma hands its modulation over in one."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def flatten(self) -> tuple[list[Any], Any]:
        """Its values, and what makes it again."""
        names = [field.name for field in fields(self.value)]
        return [getattr(self.value, name) for name in names], (type(self.value), names)

    @staticmethod
    def unflatten(values: Any, made_of: Any) -> Any:
        """The dataclass itself."""
        kind, names = made_of
        made = kind.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)
        return made


pytree.register_pytree_node(_Record, _Record.flatten, _Record.unflatten)


def _flattened(value: Any) -> tuple[list[Any], Any]:
    leaves, spec = pytree.tree_flatten(value)
    is_record = [is_dataclass(leaf) and not isinstance(leaf, type) for leaf in leaves]
    if any(is_record):
        opened = [_Record(leaf) if record else leaf for leaf, record in zip(leaves, is_record, strict=True)]
        leaves, spec = pytree.tree_flatten(pytree.tree_unflatten(opened, spec))
    return leaves, spec


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


_TENSOR = object()
_WORTH_SENDING = 2**20  # bytes


class _Waiting:
    """A tensor that waits in system memory. On a GPU the processor waits for neither way."""

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        self._copy: Tensor | None = None
        self._shape, self._dtype = tensor.shape, tensor.dtype
        if tensor.device.type != "meta":
            is_pinned = tensor.device.type == "cuda"
            self._copy = torch.empty_like(tensor.detach(), device="cpu", pin_memory=is_pinned)
            self._copy.copy_(tensor.detach(), non_blocking=is_pinned)

    def back(self) -> Tensor:
        """The tensor on its device again."""
        if self._copy is None:
            return torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return self._copy.to(self._device, non_blocking=self._copy.is_pinned())


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, anchor: Tensor, block: Recomputed, leaves: list[Any], spec: Any, shape: list[Any], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        outputs, out_spec = pytree.tree_flatten(block.run(leaves, spec))
        found = tuple(leaf for leaf in outputs if isinstance(leaf, Tensor))
        shape += [[_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in outputs], out_spec]
        ctx.block, ctx.spec = block, spec
        ctx.leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.needs = [tensor.requires_grad for tensor in tensors]
        ctx.waiting = {
            number: _Waiting(tensor)
            for number, tensor in enumerate(tensors)
            if block.offloads and tensor.requires_grad and tensor.nbytes >= _WORTH_SENDING
        }
        ctx.save_for_backward(*(tensor for number, tensor in enumerate(tensors) if number not in ctx.waiting))
        ctx.mark_non_differentiable(*(leaf for leaf in found if not leaf.is_floating_point()))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kept, waiting = iter(ctx.saved_tensors), ctx.waiting
        tensors = [waiting.pop(number).back() if number in waiting else next(kept) for number in range(len(ctx.needs))]
        inputs = [tensor.detach().requires_grad_(needs) for tensor, needs in zip(tensors, ctx.needs, strict=True)]
        del tensors
        given = iter(inputs)
        leaves = [next(given) if leaf is _TENSOR else leaf for leaf in ctx.leaves]
        with torch.enable_grad():
            outputs = pytree.tree_leaves(ctx.block.run(leaves, ctx.spec))
        found = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
        pairs = [
            (out, grad) for out, grad in zip(found, grads, strict=True) if out.requires_grad and grad is not None
        ]
        if pairs:
            torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
        return None, None, None, None, None, *(tensor.grad for tensor in inputs)


def differences(block: Recomputed, flat: Flat) -> float:
    """Compare a block's gradients, computed again in backward, with those of running it plainly.

    Args:
        block: One whose call was kept; it is forgotten.
        flat: The run's gradients; zero before and after.

    Returns:
        The largest difference in a tensor, relative to its largest value; 0 for a block that was not called.

    Raises:
        RuntimeError: The block changes in place what backward needs.
    """
    kept, block.kept_call, block.keeps_call = block.kept_call, None, False
    if kept is None:
        return 0.0
    leaves, spec = pytree.tree_flatten(kept)
    found: list[list[Tensor]] = []
    try:
        for run in (block.forward, block):
            inputs = [_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            # Copies, because a block may change its inputs in place, which a leaf of the graph forbids.
            args, kwargs = pytree.tree_unflatten([i.clone() if isinstance(i, Tensor) else i for i in inputs], spec)
            outputs = [out for out in pytree.tree_leaves(run(*args, **kwargs)) if isinstance(out, Tensor)]
            outputs = [out for out in outputs if out.requires_grad]
            # Small, so that sums over many tokens stay within fp16.
            if outputs:
                torch.autograd.backward(outputs, [(out.detach().sin() + 1) * out.numel() ** -0.5 for out in outputs])
            mine = [i.grad for i in inputs if isinstance(i, Tensor) and i.grad is not None]
            found.append([*mine, *(view.grad.clone() for view in flat.views)])
            flat.begin_step()
    finally:
        flat.begin_step()
    if len(found[0]) != len(found[1]):
        return math.inf
    return float(torch.stack([_apart(one.float(), other.float()) for one, other in zip(*found, strict=True)]).max())


def _apart(plain: Tensor, again: Tensor) -> Tensor:
    """The largest difference relative to the largest value; what is not finite in both is equal."""
    is_same = (plain == again) | (~plain.isfinite() & ~again.isfinite())
    apart = torch.where(is_same, 0, (plain - again).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    most = torch.where(plain.isfinite(), plain, 0).abs().max()
    return apart.max() / most.clamp_min(torch.finfo(torch.float32).tiny)
