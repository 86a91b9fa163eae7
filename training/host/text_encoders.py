"""The text encoders that a run trains: encoding with gradients, through the host's own encode path.

A caption becomes conditioning exactly as a prompt does when sampling: the same tokenizer, weights in parentheses,
chunks of 75 tokens, clip skip. Encoders of the same CLIP that are not trained are served from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import comfy.model_management as management
import torch
from torch import Tensor, nn

from ..adapters.targets import is_target
from ..errors import UserError
from ..late import sent
from .layers import is_conv, is_linear
from .text import Conditioning, HostText

# What an encoder gives for a text: hidden states, the pooled vector, and sometimes a dict of more.
Encoded = tuple[Any, ...]


class _Parts(Protocol):
    """What frozen encoders made of each caption; a `CaptionStore` of `FrozenParts`."""

    def load(self, caption: str) -> dict[str, Encoded]: ...


def encoders_of(clip: Any) -> dict[str, Any]:
    """The text encoders inside a CLIP by their names: `clip_l`, `clip_g`, `t5xxl`, `qwen3_4b` …"""
    children = clip.cond_stage_model.named_children()
    return {name: child for name, child in children if hasattr(child, "encode_token_weights")}


class TextEncoders:
    """The encoders of a CLIP that are trained together with a model.

    Args:
        clip: CLIP socket.
        names: Of the encoders that are trained.

    Attributes:
        trained: Them, by name.
        frozen: Names of the CLIP's other encoders.
        patcher: Of all of them.
        stopped: Kinds of those that learn no more.
        parts: What the frozen ones made of each caption; given before training where there are any.
    """

    def __init__(self, clip: Any, names: list[str]) -> None:
        every = encoders_of(clip)
        self.patcher = clip.patcher
        self.trained = {name: every[name] for name in names}
        self.frozen = [name for name in every if name not in names]
        self.stopped: frozenset[str] = frozenset()
        self.parts: _Parts | None = None
        self.device: torch.device = clip.patcher.load_device
        self._clip = clip.clone()
        self._clip.load_model = lambda *_, **__: self.patcher  # the run has loaded it

    @property
    def modules(self) -> nn.Module:
        """All encoders of the CLIP."""
        return self._clip.cond_stage_model  # type: ignore[no-any-return]

    def targets(self) -> dict[str, tuple[str, nn.Module]]:
        """The layers that are trained: (kind of the encoder, layer) by path inside the CLIP."""
        return {
            f"{name}.{path}": (kind_of(name), module)
            for name, encoder in self.trained.items()
            for path, module in encoder.named_modules()
            if (is_linear(module) or is_conv(module)) and is_target(path, module)
        }

    def without_data(self, modules: nn.Module, device: torch.device) -> TextEncoders:
        """The same on another copy of the encoders, such as one on tensors without data."""
        clip = self._clip.clone()
        clip.cond_stage_model = modules
        twin = TextEncoders(clip, list(self.trained))
        twin.parts, twin.device = self.parts, device
        twin._clip.patcher.load_device = device  # newer hosts encode there, wherever the weights are
        return twin

    def encode(self, caption: str) -> Conditioning:
        """Encode a caption. Gradients flow to the trained encoders that have not stopped."""
        clip = self._clip
        tokens = clip.tokenize(caption)
        parts = self.parts.load(caption) if self.parts and self.frozen else {}
        with self._served(parts):
            return clip.encode_from_tokens_scheduled(tokens, show_pbar=False)  # type: ignore[no-any-return]

    @contextmanager
    def _served(self, parts: Mapping[str, Encoded]) -> Iterator[None]:
        """Inside the block frozen encoders give what was cached, and stopped ones compute without gradients.

        What encoders give stays on the device; the host would wait for it on the CPU.
        """
        every = encoders_of(self._clip)
        changed: dict[str, Callable[..., Encoded]] = {
            name: lambda _tokens, part=part: _on_device(part, self.device) for name, part in parts.items()
        }
        stopped = [name for name in self.trained if kind_of(name) in self.stopped]
        changed |= {name: torch.no_grad()(every[name].encode_token_weights) for name in stopped}
        intermediate_device = management.intermediate_device
        management.intermediate_device = lambda: self.device
        try:
            with _encoding(every, changed):
                yield
        finally:
            management.intermediate_device = intermediate_device


class FrozenParts:
    """What the frozen encoders of a CLIP make of captions, as the caption cache uses it.

    Args:
        clip: CLIP socket.
        names: Of the encoders.
    """

    def __init__(self, clip: Any, names: list[str]) -> None:
        self._text, self._clip, self._names = HostText(clip), clip, names
        self.identity = f"{self._text.identity} {' '.join(names)}"

    def encode(self, caption: str) -> dict[str, Encoded]:
        """Encode a caption with the whole CLIP and keep what each of the encoders gave."""
        found: dict[str, Encoded] = {}
        every = encoders_of(self._clip)

        def recording(name: str, encode: Callable[..., Encoded]) -> Callable[..., Encoded]:
            def encoded(*args: Any, **keywords: Any) -> Encoded:
                found[name] = encode(*args, **keywords)
                return found[name]

            return encoded

        self._clip.load_model()  # which puts other nodes' patches on the encoders
        with _encoding(every, {name: recording(name, every[name].encode_token_weights) for name in self._names}):
            self._text.encode(caption)
        return found

    @staticmethod
    def pack(found: dict[str, Encoded]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Take what the encoders gave apart for the cache; None when it holds what cannot be stored."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name, values in found.items():
            named = dict(zip(("hidden", "pooled"), values[:2], strict=True)) | (values[2] if len(values) > 2 else {})
            plain[name] = []
            for key, value in named.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                elif value is not None:
                    return None
                plain[name].append(key)
        return tensors, plain

    @staticmethod
    def unpack(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Encoded]:
        """The inverse of `pack`."""
        found: dict[str, Encoded] = {}
        for name, keys in plain.items():
            hidden, pooled, *more = (tensors.get(f"{name}/{key}") for key in keys)
            found[name] = (hidden, pooled, dict(zip(keys[2:], more, strict=True))) if more else (hidden, pooled)
        return found


@contextmanager
def _encoding(encoders: Mapping[str, Any], changed: Mapping[str, Callable[..., Encoded]]) -> Iterator[None]:
    """Let some encoders encode in another way inside the block."""
    own = {name: vars(encoders[name]).get("encode_token_weights") for name in changed}
    try:
        for name, encode in changed.items():
            encoders[name].encode_token_weights = encode
        yield
    finally:
        for name, before in own.items():
            if before is None:
                vars(encoders[name]).pop("encode_token_weights", None)
            else:
                encoders[name].encode_token_weights = before


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device=device) if device.type == "meta" else sent(value, device)
    if isinstance(value, dict):
        return {key: _on_device(item, device) for key, item in value.items()}
    return tuple(_on_device(item, device) for item in value) if isinstance(value, tuple) else value


def trained_text(clip: Any, wanted: Mapping[str, bool], device: torch.device) -> TextEncoders | None:
    """The text encoders that a run trains; None if it trains none.

    Args:
        clip: CLIP socket.
        wanted: Whether each kind of encoder is to be trained, by `kind_of`.
        device: What the model computes on.

    Raises:
        UserError: The CLIP has no encoder of a kind that is wanted, or computes elsewhere.
    """
    if not any(wanted.values()):
        return None
    kinds = {name: kind_of(name) for name in encoders_of(clip)}
    for kind, is_wanted in wanted.items():
        if is_wanted and kind not in kinds.values():
            label = kind.replace("_", " ")
            raise UserError(
                f"{label} is on in Text Encoder Options, but this CLIP has {' and '.join(kinds) or 'none'}. Turn "
                f"{label} off."
            )
    if clip.patcher.load_device != device:
        raise UserError(
            f"The text encoders compute on {clip.patcher.load_device} and the model on {device}, so they cannot be "
            "trained together. Start ComfyUI with --gpu-only, or disconnect Text Encoder Options."
        )
    return TextEncoders(clip, [name for name, kind in kinds.items() if wanted[kind]])


def kind_of(name: str) -> str:
    """The setting that a text encoder belongs to: `clip_l`, `clip_g` or `other`."""
    return {"clip_l": "clip_l", "clip_h": "clip_l", "clip_g": "clip_g"}.get(name, "other")
