"""The memory of the device that training computes on: what is free, what the model takes, what can leave."""

from __future__ import annotations

import gc
import logging
import math
from typing import Any

import comfy.model_management as management
import torch
from torch import nn

from .layers import is_conv, is_linear, weight_shape
from .model import HostModel
from .quantized import stored_size

log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device has no memory left."""
    is_of_host = getattr(management, "is_oom", None)
    if isinstance(error, management.OOM_EXCEPTION) or (is_of_host and is_of_host(error)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # of the processor's


def free_memory() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()  # tracebacks and graphs that point to themselves hold activations
    management.soft_empty_cache()


def is_apart(device: torch.device) -> bool:
    """Whether a device has memory of its own, so that what leaves it makes room."""
    return device.type not in ("cpu", "mps", "meta") and management.vram_state != management.VRAMState.SHARED


def make_way(model: HostModel) -> list[str]:
    """Have the host move every other model off the device. Nothing is moved where memory is shared.

    Returns:
        The classes of those that stay.
    """
    if not is_apart(model.device):
        return []
    mine = [loaded for loaded in management.current_loaded_models if _is_of(loaded, model)]
    management.free_memory(1e30, model.device, keep_loaded=mine)
    free_memory()
    others = (one for one in management.current_loaded_models if one.device == model.device and one not in mine)
    return [type(one.model.model).__name__ for one in others if one.model is not None and one.model_loaded_memory()]


def _is_of(loaded: Any, model: HostModel) -> bool:
    return loaded.model is not None and (loaded.model is model.patcher or model.patcher.is_clone(loaded.model))


def free(device: torch.device) -> int | None:
    """Free bytes of a device's memory; None if it does not tell."""
    try:
        found = int(management.get_free_memory(device))
    except (RuntimeError, AttributeError, AssertionError, LookupError, OSError) as error:  # each back end has its own
        log.warning("LoRA Workbench: %s does not tell how much of its memory is free: %s", device, error)
        return None
    return found if found > 0 else None


def available(model: HostModel) -> int | None:
    """Bytes that training may take, those of the model's own weights included; None if the device does not tell."""
    found = free(model.device)
    if found is None:
        return None
    # In memory that is not apart the weights are there already.
    own = _resident(model) if is_apart(model.device) else weights_bytes(model)
    return found + int(own) - (int(management.extra_reserved_memory()) if is_apart(model.device) else 0)


def _resident(model: HostModel) -> int:
    """Bytes of the model that lie on the device now."""
    same = model.patcher.current_loaded_device() == model.device
    return int(model.patcher.loaded_size()) if same else 0


def load(model: HostModel, room: int, weights: int | None = None) -> None:
    """Have the host load a model on its device.

    Args:
        model: The model.
        room: Bytes to leave free for training.
        weights: Most bytes of it that may lie on the device, the rest is sent when it is used. None: as the host
            decides.
    """
    management.load_models_gpu([model.patcher], memory_required=room)
    if weights is None:
        return
    loaded = next((one.model for one in management.current_loaded_models if _is_of(one, model)), model.patcher)
    surplus = int(loaded.loaded_size()) - weights
    if surplus > 0:
        loaded.partially_unload(loaded.offload_device, surplus)
        free_memory()


def copies_bytes(model: HostModel, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of copies of all weights that are not in the compute dtype, and bytes of the largest such copy."""
    sizes = [0]
    for module in model.model.diffusion_model.modules():
        if is_linear(module) or is_conv(module):
            sizes.append(_copy_bytes(module, dtype))
    return sum(sizes), max(sizes)


def _copy_bytes(module: Any, dtype: torch.dtype) -> int:
    weight = module.weight
    is_plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype == dtype
    is_used_as_it_is = not getattr(module, "weight_function", None) and not hasattr(module, "scale_weight")
    return 0 if is_plain and is_used_as_it_is else math.prod(weight_shape(module)) * dtype.itemsize


def weights_bytes(model: HostModel) -> int:
    """Bytes of all weights of the model, quantized ones as they are stored."""
    return sum(stored_size(module) for module in model.model.modules())


def begin_peak(device: torch.device) -> None:
    """Begin to watch the device's peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Most bytes that were taken on the device since `begin_peak`; None where nothing counts them."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def has_spilled(device: torch.device) -> bool:
    """Whether more was taken since `begin_peak` than the device has: Windows then uses system memory, slowly."""
    if device.type != "cuda" or not management.WINDOWS:
        return False
    _, whole = torch.cuda.mem_get_info(device)
    return bool(torch.cuda.max_memory_reserved(device) > 0.97 * whole)
