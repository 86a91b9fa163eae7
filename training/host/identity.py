"""Tells one model's weights from another's, for caches that outlive the session."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import torch
from torch import Tensor, nn

_WHOLE = 1 << 16  # elements hashed whole; of larger tensors as many are taken, evenly spread

_known: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def weights_identity(module: nn.Module) -> str:
    """Return a hash that differs when the weights do.

    Of large tensors an even sample is hashed: a fine-tune moves every element a little, and reading a whole text
    encoder of 10 GB would take longer than encoding the captions. Kept per module, as loaded weights do not change.
    """
    if module not in _known:
        digest = hashlib.sha256()
        for name, tensor in sorted(module.state_dict().items()):
            # Checkpoints of SD1.5 lack this one; the host then leaves raw memory in it and never uses it.
            if isinstance(tensor, Tensor) and not name.endswith("clip_l.transformer.text_projection.weight"):
                digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
                digest.update(_sample(tensor))
        _known[module] = digest.hexdigest()
    return _known[module]


def _sample(tensor: Tensor) -> bytes:
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "dequantize"):
        tensor = tensor.dequantize()
    flat = tensor.detach().reshape(-1)
    stride = max(1, flat.numel() // _WHOLE)
    return flat[::stride].contiguous().cpu().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def patches_identity(patcher: Any) -> str:
    """Return what else shapes a patched model's output: its LoRA patches, which carry a fresh id per change."""
    return str(patcher.patches_uuid) if getattr(patcher, "patches", None) else "unpatched"
