"""Models of our own (captioners) that ComfyUI may move off the device when it needs the room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import comfy.model_management as management
import comfy.model_patcher
import torch


class _Shell(torch.nn.Module):
    """Around the model: the host writes its device onto it, which transformers' models do not let it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner = model


def held(model: torch.nn.Module) -> Callable[[], AbstractContextManager[torch.device]]:
    """Give a model into the host's keeping.

    Args:
        model: In inference mode or not; its weights are moved, never changed.

    Returns:
        What brings it to its device for as long as a `with` lasts.
    """
    patcher = comfy.model_patcher.ModelPatcher(
        _Shell(model),
        load_device=management.text_encoder_device(),
        offload_device=management.text_encoder_offload_device(),
    )

    @contextmanager
    def on_device() -> Iterator[torch.device]:
        # Whole or not at all: left to choose, the host would leave parts on the CPU, which only its own layers can do.
        management.load_models_gpu([patcher], force_full_load=True)
        yield patcher.load_device

    return on_device
