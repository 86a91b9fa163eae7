"""Counts of what a step asks of the device, and of what it keeps for backward: the same on every machine."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .cases import Case, Job, our_inputs
from .models import random_model

if TYPE_CHECKING:
    from torch import Tensor

# Calls that start no kernel: they make a view, or memory without content.
FREE = frozenset((
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "expand_as", "lift", "lift_fresh", "movedim", "narrow",
    "new_empty", "new_empty_strided", "permute", "reshape", "resize_", "select", "set_", "slice", "split",
    "split_with_sizes", "squeeze", "squeeze_", "swapaxes", "t", "t_", "transpose", "transpose_", "unbind",
    "unflatten", "unfold", "unsqueeze", "unsqueeze_", "view", "view_as", "view_as_complex", "view_as_real",
))  # fmt: skip
# Calls for which the processor waits, wherever their tensors are.
WAITS = frozenset(("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"))
COPIES = frozenset(("_to_copy", "copy_", "_copy_from"))


class Calls(TorchDispatchMode):
    """Counts the calls of PyTorch's own operations in this thread, backward included.

    Attributes:
        calls: How often each operation that starts a kernel was called.
        waits: How often the processor waited for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one call and make it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in WAITS or (name in COPIES and _waits_for_the_device(args, kwargs, out)):
            self.waits += 1
        elif name not in FREE:
            self.calls[name] += 1
        return out


def _waits_for_the_device(args: Any, kwargs: Any, out: Any) -> bool:
    """Whether a copy goes from the device to the processor and does not let it go on meanwhile."""
    if kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True):
        return False
    inputs = {value.device.type for value in args if isinstance(value, torch.Tensor)}
    return isinstance(out, torch.Tensor) and out.device.type == "cpu" and inputs - {"cpu"} != set()


class Counting:
    """The watch of a case whose calls are counted."""

    def __init__(self) -> None:
        self.counted = Calls()

    def running(self) -> Calls:
        """Count the calls inside the block."""
        return self.counted

    def step(self) -> None:
        """Do nothing: only all the steps together are counted."""


def count_a_step(case: Case, load: Any, job: Job) -> dict[str, float]:
    """What a step adds: the counts of six steps less those of three, by three.

    Args:
        case: What is counted.
        load: Makes a fresh MODEL.
        job: Of six steps.
    """
    found = []
    for steps in (6, 3):
        watch = Counting()
        case(load(), replace(job, steps=steps), watch)
        found.append((watch.counted.calls.total(), watch.counted.waits))
    (calls, waits), (fewer, fewer_waits) = found
    return {"calls": round((calls - fewer) / 3, 1), "syncs": round((waits - fewer_waits) / 3, 1)}


# -- what is kept for backward -------------------------------------------------------------------


class _Measured(BaseException):
    """Ends the trial step when its forward is done."""


class Saved:
    """Adds up the tensors that autograd saves, each storage once, apart from those that were there before forward."""

    def __init__(self) -> None:
        self.total = 0
        self._seen: dict[int, Any] = {}

    def forward_begins(self) -> None:
        """Leave out what is alive now: weights, their copies, the LoRA, the inputs."""
        self._seen = {}
        for thing in gc.get_objects():
            if issubclass(type(thing), FakeTensor):
                self._add(thing)
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves."""
        self._add(tensor)
        return tensor

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # kept, so that no other gets its address
            self.total += storage.nbytes()


class OnlyTheGpu(FakeTensorMode):
    """Makes tensors without data on the GPU, and lets the processor compute as ever: the plan draws numbers there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute shapes for a tensor of the GPU, values for others."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        there = any(isinstance(leaf, torch.device) and leaf.type != "cpu" for leaf in leaves)
        if there or any(isinstance(leaf, FakeTensor) for leaf in leaves):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


def saved_activations(job: Job) -> int:
    """Bytes that our trainer's trial step keeps for backward, on tensors without data of a GPU that need not exist.

    The model has fp16 weights, as its files have. Attention is counted as a fused kernel: its inputs, its output and
    one number for each row.
    """
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.preflight import prepared

    saved, gpu = Saved(), torch.device("cuda", 0)
    plan, *stores = our_inputs(job)
    with OnlyTheGpu(allow_non_fake_inputs=True), as_on_a_gpu():
        patcher = random_model(job.shape, torch.float16, gpu, draws=False)
        patcher.model.apply_model = _after(saved.forward_begins, patcher.model.apply_model)
        hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
        try:
            with hooks, prepared(HostModel(patcher), plan, *stores, only=job.rung):
                raise AssertionError("the trial step has no backward")
        except _Measured:
            return saved.total


def _after(first: Any, then: Any) -> Any:
    def both(*args: Any, **kwargs: Any) -> Any:
        first()
        return then(*args, **kwargs)

    return both


def _much_memory(*_: Any, torch_free_too: bool = False) -> Any:
    return (1 << 40, 1 << 40) if torch_free_too else 1 << 40


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let PyTorch and the host compute shapes as on an NVIDIA GPU, up to the first backward, which raises."""
    import comfy.model_management
    import comfy.ops
    from lora_workbench.training.host import memory

    def backward(*_: Any, **__: Any) -> None:
        raise _Measured

    with (
        mock.patch.object(comfy.model_management, "get_free_memory", _much_memory),
        mock.patch.object(memory, "load", lambda *_: None),  # it is there
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        mock.patch.object(torch.autograd, "backward", backward),
        # The engine takes every unknown kind of tensor for a quantized one.
        mock.patch.object(FakeTensor, "dequantize", lambda tensor: tensor, create=True),
        mock.patch.object(comfy.ops, "scaled_dot_product_attention", fused_attention),
    ):
        yield


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention without data, which saves what a fused kernel saves."""
    return _Fused.apply(q, k, v)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError("only forward is measured")
