"""Identifies a model's weights, for caches that outlive the session."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WHOLE = 1 << 16  # most elements hashed per tensor; larger tensors are sampled evenly

_known: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def weights_identity(module: nn.Module, own: Mapping[str, Tensor] | None = None) -> str:
    """Return a hash of a module's weights.

    Large tensors are sampled evenly. A fine-tune changes every element a little, and reading a whole text encoder of
    10 GB would take longer than encoding the captions. The hash is cached per module, as loaded weights do not change.

    Args:
        module: The module.
        own: Its own weights, by name, where the host has put other nodes' patches on them.
    """
    if module not in _known:
        digest = hashlib.sha256()
        modules = dict(module.named_modules())
        held = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in sorted((module.state_dict() | dict(own or {})).items()):
            # SD1.5 checkpoints lack this tensor. The host leaves it uninitialized and never uses it.
            if not isinstance(tensor, Tensor) or name.endswith("clip_l.transformer.text_projection.weight"):
                continue
            if tensor.is_meta:  # layers of GGUF files tell no more than how large they are
                if name not in held or held[name].is_meta:
                    continue
                tensor = held[name]
            path, _, leaf = name.rpartition(".")
            dtype = _in_use(tensor, getattr(modules.get(path), f"{leaf}_comfy_model_dtype", None))
            digest.update(f"{name}:{tuple(tensor.shape)}:{dtype}{getattr(tensor, 'tensor_type', '')}".encode())
            digest.update(sampled(tensor, dtype))
        _known[module] = digest.hexdigest()
    return _known[module]


def _in_use(tensor: Tensor, chosen: torch.dtype | None) -> torch.dtype:
    """The dtype that a weight is used in. A host with dynamic memory keeps the file's until a layer computes."""
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point()
    return chosen if chosen is not None and chosen.is_floating_point and is_plain else tensor.dtype


def sampled(tensor: Tensor, dtype: torch.dtype | None = None) -> bytes:
    """The bytes of a tensor, or of evenly spread elements of a large one.

    Args:
        tensor: The tensor.
        dtype: That its values are taken in; None for its own.
    """
    if hasattr(tensor, "tensor_type"):  # of a GGUF file
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.detach().as_subclass(Tensor)  # the packed bytes
    elif type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "dequantize"):
        tensor, dtype = tensor.dequantize(), None
    flat = tensor.detach().reshape(-1)
    stride = max(1, flat.numel() // _WHOLE)
    taken = flat[::stride].contiguous().cpu().to(dtype or tensor.dtype)
    return taken.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def unpatched(patcher: Any, below: str = "") -> dict[str, Tensor]:
    """The weights that the host put patches on, as they were before, by name.

    Args:
        patcher: The host's ModelPatcher.
        below: Path of a module inside its model, with a dot at the end; names are below it.
    """
    kept = {name: getattr(entry, "weight", entry) for name, entry in patcher.backup.items()}
    return {name.removeprefix(below): weight for name, weight in kept.items() if name.startswith(below)}


def patches_identity(patcher: Any) -> str:
    """Return an id of a model's LoRA patches; the host gives a new one with each change."""
    return str(patcher.patches_uuid) if getattr(patcher, "patches", None) else "unpatched"
