"""Which layers of a model are trained."""

from __future__ import annotations

import re

from torch import nn

# Layers of a block for time, size or modulation, not for attention or feed-forward. kohya excludes the UNet's as well.
# On DiTs a LoRA on them mostly shifts the colour and contrast of everything.
_NOT_TARGETS = re.compile(r"emb|(^|_)mod(_|$)|modulation|adaln|norm|skip|time|guidance", re.I)


def is_target(path: str, module: nn.Module) -> bool:
    """Whether a layer belongs to the default targets: attention and feed-forward of the repeated blocks.

    The rule goes by structure, not by a table of architectures. A target is a linear layer inside a numbered block
    (`blocks.3.…`) or the 1×1 projection around a UNet's transformer. Time, size and modulation layers are excluded.

    Args:
        path: Path inside the diffusion model, such as `joint_blocks.0.x_block.attn.qkv`.
        module: The layer.
    """
    parts = path.split(".")
    in_block = any(part.isdigit() for part in parts[1:-1])
    if not in_block or any(_NOT_TARGETS.search(part) for part in parts):
        return False
    if isinstance(module, nn.Conv2d):
        return parts[-1] in ("proj_in", "proj_out") and tuple(module.kernel_size) == (1, 1)
    return hasattr(module, "in_features")
