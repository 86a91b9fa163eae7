"""The CLIP: turns captions into conditioning with ComfyUI's own encoding, once for each distinct caption.

The model is trained on the same encoding that a prompt gets: the same tokenizer, weights in parentheses, chunks and
clip skip.
"""

from __future__ import annotations

import hashlib
from typing import Any

import comfy.model_management
from comfyui_version import __version__ as host_version
from torch import Tensor

from .identity import patches_identity, unpatched, weights_identity

Conditioning = list[list[Any]]  # the value of a CONDITIONING socket: [[tensor, {name: value}], …]


class HostText:
    """A CLIP as the caption cache uses it."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        baked = getattr(clip.patcher.model, "current_weight_patches_uuid", None)
        if baked not in (None, clip.patcher.patches_uuid):
            # The weights carry another node's patches now; loading this patcher removes them.
            comfy.model_management.load_models_gpu([clip.patcher])
        parts = [
            host_version,  # a newer host may tokenize or pad differently
            type(clip.cond_stage_model).__name__,
            weights_identity(clip.cond_stage_model, unpatched(clip.patcher)),
            patches_identity(clip.patcher),
            str(clip.layer_idx),
            str(sorted((str(k), str(v)) for k, v in getattr(clip, "tokenizer_options", {}).items())),
        ]
        self.identity = hashlib.sha256("|".join(parts).encode()).hexdigest()

    def encode(self, caption: str) -> Conditioning:
        """Encode one caption as the CLIPTextEncode node does."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))  # type: ignore[no-any-return]

    @staticmethod
    def pack(conditioning: Conditioning) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Take the first entry of a conditioning apart for the cache.

        Returns:
            (tensors by name, the other values), or None when it holds something neither tensor nor plain value.
        """
        cross_attn, options = conditioning[0]
        tensors, plain = {"cross_attn": cross_attn}, {}
        for name, value in options.items():
            if isinstance(value, Tensor):
                tensors[f"option.{name}"] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain[name] = value
            else:
                return None
        return tensors, plain

    @staticmethod
    def unpack(tensors: dict[str, Tensor], plain: dict[str, Any]) -> Conditioning:
        """Put a conditioning together again: the inverse of `pack`."""
        options = dict(plain)
        for name, tensor in tensors.items():
            if name.startswith("option."):
                options[name.removeprefix("option.")] = tensor
        return [[tensors["cross_attn"], options]]


def count_tokens(clip: Any, caption: str) -> tuple[int, ...]:
    """Count the tokens of each chunk that the encoder reads, padding included, without encoding.

    Captions with equal counts have conditionings of one length, so they run in one forward.

    Args:
        clip: CLIP socket.
        caption: What is tokenized.
    """
    tokens = clip.tokenize(caption)
    # Some tokenizers add other values, such as settings of audio models.
    lists = [tokens[name] for name in sorted(tokens) if isinstance(tokens[name], list)]
    return tuple(len(chunk) for chunks in lists for chunk in chunks)
