"""Which errors say that memory is out."""

from __future__ import annotations

import comfy.model_management as management

# What they say whose error has no class of its own: CUDA, cuBLAS, Apple's, the host's pager, the processor's.
_OUT_OF_MEMORY = (
    "out of memory", "ALLOC_FAILED", "VRAM grow failed", "can't allocate memory", "not enough memory",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device has no memory left."""
    is_of_host = getattr(management, "is_oom", None)
    if isinstance(error, management.OOM_EXCEPTION) or (is_of_host and is_of_host(error)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
