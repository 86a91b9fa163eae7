"""The memory of the device that training computes on: what is free, what the model takes, what can leave."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterable
from typing import Any

import comfy.model_management as management
import torch
from torch import nn

from .layers import is_conv, is_linear, weight_shape
from .model import HostModel
from .quantized import stored_size

log = logging.getLogger(__name__)

_UNCOUNTED = 0.02  # share of a model that the host does not count as loaded, such as buffers


def free_memory() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()  # tracebacks and graphs that point to themselves hold activations
    management.soft_empty_cache()
    empty_pinned = getattr(torch._C, "_host_emptyCache", None)
    if empty_pinned and torch.cuda.is_available():
        empty_pinned()  # of block inputs that waited in system memory


def let_go(modules: Iterable[nn.Module]) -> None:
    """Take back the pages that the host had lent to layers when an error broke off their use.

    A host with dynamic memory would lend what lies there now, or leave the pages pinned for good.

    Args:
        modules: The layers, and what else may be among them.
    """
    lent = [module for module in modules if hasattr(module, "_prefetch")]
    if lent:
        from comfy.model_prefetch import cleanup_prefetched_modules

        for module in lent:
            cleanup_prefetched_modules(module, [module])


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
    here = [one for one in management.current_loaded_models if one.device == model.device and one.model is not None]
    mine = [one for one in here if _is_of(one, *model.patchers)]
    # Kept, as a model that has left is no longer in the host's list, even where it leaves to the same device.
    others = [one.model for one in here if one not in mine]
    management.free_memory(1e30, model.device, keep_loaded=mine)
    free_memory()
    return [type(patcher.model).__name__ for patcher in others if _lies_on(patcher, model.device)]


def _lies_on(patcher: Any, device: torch.device) -> bool:
    if patcher.loaded_size() and any(one.model is patcher for one in management.current_loaded_models):
        return True
    return any(tensor.device == device for tensor in patcher.model.parameters()) and device.type != "cpu"


def can_stream(model: HostModel) -> bool:
    """Whether weights can stay in system memory; `--highvram` keeps them on the device."""
    return is_apart(model.device) and (model.patcher.offload_device != model.device or model.device.type == "cpu")


def _is_of(loaded: Any, *patchers: Any) -> bool:
    if loaded.model is None:
        return False
    return any(loaded.model is patcher or patcher.is_clone(loaded.model) for patcher in patchers)


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
    here = [patcher for patcher in model.patchers if patcher.current_loaded_device() == model.device]
    return sum(int(patcher.loaded_size()) for patcher in here)


def load(model: HostModel, room: int, weights: int | None = None) -> None:
    """Have the host load a model on its device, and the text encoders that are trained with it.

    Args:
        model: The model.
        room: Bytes to leave free for training.
        weights: Most bytes that may lie on the device, the rest is sent when it is used. None: as the host decides.
            Only weights of the model itself are sent so.
    """
    if model.text:  # first and whole: older hosts encode where the table of words lies
        management.load_models_gpu([model.text.patcher], force_full_load=True)
    management.load_models_gpu(model.patchers, memory_required=room)
    if weights is None:
        return
    here = management.current_loaded_models
    loaded = next((one.model for one in here if _is_of(one, model.patcher)), model.patcher)
    surplus = _resident(model) - weights
    if surplus > 0:
        loaded.partially_unload(loaded.offload_device, surplus)
        free_memory()


def copies_bytes(model: HostModel, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of copies of all weights that are not in the compute dtype, and bytes of the largest such copy."""
    sizes = [0]
    for module in model.layers():
        if is_linear(module) or is_conv(module):
            sizes.append(_copy_bytes(module, dtype))
    return sum(sizes), max(sizes)


def _copy_bytes(module: Any, dtype: torch.dtype) -> int:
    weight = module.weight
    if hasattr(module, "_v"):  # paged by the host: it gets no copy
        return 0
    is_plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype == dtype
    is_used_as_it_is = not getattr(module, "weight_function", None) and not hasattr(module, "scale_weight")
    return 0 if is_plain and is_used_as_it_is else math.prod(weight_shape(module)) * dtype.itemsize


def weights_bytes(model: HostModel) -> int:
    """Bytes of all weights of the model and its text encoders, quantized ones as they are stored."""
    return sum(stored_size(module) for module in model.modules())


def text_bytes(model: HostModel) -> int:
    """Bytes of all weights of the text encoders that are loaded with the model."""
    return sum(map(stored_size, model.text.modules.modules())) if model.text else 0


def frozen_text_bytes(model: HostModel) -> int:
    """Those of them that are not trained."""
    trained = model.text.trained.values() if model.text else ()
    return text_bytes(model) - sum(stored_size(module) for encoder in trained for module in encoder.modules())


def kept_away(model: HostModel) -> int:
    """Bytes of a loaded model that the host keeps off the device. A host with dynamic memory decides as it goes."""
    if not is_apart(model.device) or getattr(model.patcher, "is_dynamic", bool)():
        return 0
    whole = sum(int(patcher.model_size()) for patcher in model.patchers)
    away = whole - _resident(model)
    return away if away > _UNCOUNTED * whole else 0


def begin_peak(device: torch.device) -> int:
    """Begin to watch the device's peak; return how much of its memory this program can have."""
    if not _is_counted(device):
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_reserved(device) + torch.cuda.mem_get_info(device)[0])


def peak(device: torch.device) -> int | None:
    """Most bytes that were taken on the device since `begin_peak`; None where nothing counts them."""
    return int(torch.cuda.max_memory_allocated(device)) if _is_counted(device) else None


def _is_counted(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def has_spilled(device: torch.device, most: int) -> bool:
    """Whether more was taken since `begin_peak` than it said: Windows then uses system memory, slowly."""
    if not (_is_counted(device) and management.WINDOWS):
        return False
    return bool(torch.cuda.max_memory_reserved(device) > most)
