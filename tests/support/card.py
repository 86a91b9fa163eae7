"""A card that stands in for a GPU."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch

STREAMED = {"checkpointing": True, "offloads": True, "streams": True}


class Card:
    """A stand-in for a GPU: it has its own memory and runs out of it on request.

    Attributes:
        free: Bytes that it says are free; None if it does not tell.
        fails: How many forward passes from now on find no memory.
        after: How many succeed before.
        held: What each failed pass held.
        on_pass: Called before each pass.
        on_failure: Called when one fails.
    """

    def __init__(self, free: int | None = 1 << 40, fails: int = 0, after: int = 0) -> None:
        self.free, self.fails, self.after = free, fails, after
        self.held: list[weakref.ref[Any]] = []
        self.on_pass: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None

    @contextmanager
    def inserted(self) -> Iterator[Card]:
        """Train on it inside the block."""
        from lora_workbench.training.host import memory
        from lora_workbench.training.host.model import HostModel

        real = HostModel.denoised

        def denoised(model: Any, *args: Any) -> Any:
            if model.device.type != "meta":
                self.on_pass()
            out = real(model, *args)
            if model.device.type == "meta":
                return out
            assert all(one() is None for one in self.held), "a failed try still holds its activations"
            self.after -= 1
            if self.after < 0 and self.fails > 0:
                self.fails -= 1
                self.on_failure()
                self.held.append(weakref.ref(out))  # its graph holds the activations
                raise torch.OutOfMemoryError("Allocation on device")
            return out

        with (
            mock.patch.object(memory, "is_apart", lambda _device: True),
            mock.patch.object(memory, "free", lambda _device: self.free),
            mock.patch.object(HostModel, "denoised", denoised),
        ):
            yield self


@contextmanager
def lending() -> Iterator[list[Any]]:
    """A host with dynamic memory, as far as it takes back what it lent: yields the layers whose pages were taken."""
    taken_back: list[Any] = []

    def cleanup(_module: Any, modules: list[Any]) -> None:
        taken_back.extend(modules)
        for module in modules:
            del module._prefetch

    pages = ModuleType("comfy.model_prefetch")
    pages.cleanup_prefetched_modules = cleanup  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"comfy.model_prefetch": pages}):
        yield taken_back


@contextmanager
def on_rung(**rung: Any) -> Iterator[None]:
    """Train on one rung, on a stand-in card."""
    from lora_workbench.training import train
    from lora_workbench.training.rung import Rung

    with Card().inserted(), mock.patch.object(train, "prepared", partial(train.prepared, only=Rung(**rung))):
        yield
