"""How much memory a computation holds at once, counted while it runs on tensors without data."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts what is allocated without data inside the block, until it is freed. Each storage counts once.

    Without data PyTorch takes the slowest form of some operations. They are counted in the form they have on a device.

    Args:
        device: Where the computation would run.

    Attributes:
        held: Bytes held at present.
        peak: Most bytes held at once.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        # NVIDIA's kernel came with this operation.
        self._fuses_norms = device.type == "cuda" and hasattr(torch.ops.aten, "_fused_rms_norm")
        self.held = self.peak = 0
        self._known: dict[int, Any] = {}

    def __enter__(self) -> Allocations:
        """Begin to count."""
        self._attention = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self._attend  # type: ignore[assignment]
        self._rms_norm = torch.rms_norm
        if self._fuses_norms:
            torch.rms_norm = self._normalize  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Count no more."""
        super().__exit__(*error)
        F.scaled_dot_product_attention, torch.rms_norm = self._attention, self._rms_norm

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what one operation makes."""
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is_empty(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if _is_empty(leaf):
                self._count(leaf.untyped_storage(), before)
        return out

    def _attend(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention as every device has it: it keeps its inputs, its output and one number for each row."""
        if not _is_empty(q) or q.ndim < 4:
            return self._attention(q, *args, **kwargs)
        return _Attention.apply(q, *args[:2])  # type: ignore[no-any-return]

    def _normalize(self, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        """RMS norm in one kernel, which keeps its input and one number for each row."""
        if not _is_empty(x) or (weight is not None and weight.dtype != x.dtype):
            return self._rms_norm(x, shape, weight, eps)
        return _RmsNorm.apply(x)  # type: ignore[no-any-return]

    def _count(self, storage: Any, before: set[int]) -> None:
        key = id(storage)
        if key in before or key in self._known:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            del self._known[key]
            self.held -= size

        self._known[key] = weakref.ref(storage, freed)
        self.held += size
        self.peak = max(self.peak, self.held)


def _is_empty(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        # It lies in memory as q does, as the kernels write it: so the model's reshape to [B, L, H·D] may copy nothing.
        out = torch.empty_like(q) if q.shape[-1] == v.shape[-1] else q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.empty_like(grad)
