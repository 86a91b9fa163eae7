"""Models of this pack (captioners) that ComfyUI may offload when it needs the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import comfy.model_management as management
import comfy.model_patcher
import torch


class _Shell(torch.nn.Module):
    """A wrapper that takes the attributes the host sets, which models of transformers refuse."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner = model


def held(model: torch.nn.Module) -> Callable[[], AbstractContextManager[torch.device]]:
    """Let the host manage a model's memory.

    Args:
        model: Any model, in inference mode or not. Its weights are moved, never changed.

    Returns:
        A function whose context manager keeps the model on its device.
    """
    patcher = comfy.model_patcher.ModelPatcher(
        _Shell(model),
        load_device=management.text_encoder_device(),
        offload_device=management.text_encoder_offload_device(),
    )

    @contextmanager
    def on_device() -> Iterator[torch.device]:
        # Loaded whole: the host would otherwise leave parts on the CPU, which only its own layers support.
        management.load_models_gpu([patcher], force_full_load=True)
        yield patcher.load_device

    return on_device
