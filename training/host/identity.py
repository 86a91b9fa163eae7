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
        for name, tensor in sorted((module.state_dict() | dict(own or {})).items()):
            # SD1.5 checkpoints lack this tensor. The host leaves it uninitialized and never uses it.
            if isinstance(tensor, Tensor) and not name.endswith("clip_l.transformer.text_projection.weight"):
                digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
                digest.update(sampled(tensor))
        _known[module] = digest.hexdigest()
    return _known[module]


def sampled(tensor: Tensor) -> bytes:
    """The bytes of a tensor, or of evenly spread elements of a large one."""
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "dequantize"):
        tensor = tensor.dequantize()
    flat = tensor.detach().reshape(-1)
    stride = max(1, flat.numel() // _WHOLE)
    return flat[::stride].contiguous().cpu().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


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
