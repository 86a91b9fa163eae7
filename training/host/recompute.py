"""Gradient checkpointing: a block keeps its inputs and is computed again in backward (Chen et al. 2016).

One autograd Function per block. The block that is computed again is an ordinary autograd graph, so code that changes
what backward needs is noticed, as without checkpointing. Nothing is drawn inside a block but dropout, whose draws
depend on the step alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Recomputed:
    """A block's forward that is computed again in backward.

    Args:
        forward: The block's own.
        anchor: A tensor that requires a gradient and never gets one: it makes the outputs part of the graph.

    Attributes:
        probe: Copies of the arguments of the last call, while `keeps_call`.
    """

    def __init__(self, forward: Callable[..., Any], anchor: Tensor) -> None:
        self.forward, self.anchor = forward, anchor
        # Which tensor arguments the block changes in place: learned from the first call, on copies of all.
        self.changed: frozenset[int] | None = None
        self.keeps_call = False
        self.probe: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if self.keeps_call:
            copies = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self.probe = pytree.tree_unflatten(copies, spec)
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


_TENSOR = object()


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
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(leaf for leaf in found if not leaf.is_floating_point()))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = [
            tensor.detach().requires_grad_(needs) for tensor, needs in zip(ctx.saved_tensors, ctx.needs, strict=True)
        ]
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


def differences(block: Recomputed, gradients: Callable[[], list[Tensor]]) -> float:
    """Compare a block's gradients, computed again in backward, with those of running it plainly.

    Args:
        block: One that was called while `keeps_call` was set.
        gradients: Returns the gradients that running the block added to, and sets them to zero.

    Returns:
        The largest difference in a tensor, relative to its largest value.

    Raises:
        RuntimeError: The block changes in place what backward needs.
    """
    assert block.probe is not None, "not called"
    leaves, spec = pytree.tree_flatten(block.probe)
    block.probe, block.keeps_call = None, False
    found = []
    for run in (block.forward, block):
        inputs = [
            leaf.detach().clone().requires_grad_(leaf.is_floating_point()) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        # Not leaves of the graph: the block may change them in place.
        args, kwargs = pytree.tree_unflatten([i.clone() if isinstance(i, Tensor) else i for i in inputs], spec)
        outputs = [out for out in pytree.tree_leaves(run(*args, **kwargs)) if isinstance(out, Tensor)]
        outputs = [out for out in outputs if out.requires_grad]
        torch.autograd.backward(outputs, [out.detach().sin() + 1 for out in outputs])
        mine = [i.grad for i in inputs if isinstance(i, Tensor) and i.grad is not None]
        found.append([*mine, *gradients()])
    worst = 0.0
    for plain, again in zip(*found, strict=True):
        scale = float(plain.abs().max())
        if scale:
            worst = max(worst, float((plain - again).abs().max()) / scale)
    return worst
