"""Encoded captions, each encoded once and cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..errors import UserError
from ..events import Cancelled, Sink
from .store import NotFiniteTensor, TensorCache, cache_key, is_finite


class CaptionEncoder(Protocol):
    """Turns captions into conditioning."""

    identity: str

    def encode(self, caption: str) -> Any: ...  # noqa: D102 - see training/host/text.py
    def pack(self, conditioning: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...  # noqa: D102
    def unpack(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class CaptionStore:
    """The encoded captions of a dataset.

    Attributes:
        cache: The cache that holds them.
        keys: Cache key of each distinct caption.
        loose: Conditioning that cannot be stored on disk, by caption.
        encoded: Number of captions that had to be encoded this time.
        unpack: Turns a cached (tensors, note) back into a conditioning.
    """

    cache: TensorCache
    keys: dict[str, str]
    loose: dict[str, Any]
    encoded: int
    unpack: Callable[[dict[str, Tensor], dict[str, Any]], Any]

    def load(self, caption: str) -> Any:
        """Return the conditioning of one caption."""
        if caption in self.loose:
            return self.loose[caption]
        found = self.cache.get(self.keys[caption])
        if found is None:
            raise UserError(
                f"The cached caption {caption[:40]!r} disappeared from {self.cache.folder} during training. "
                "Queue again to encode it again."
            )
        return self.unpack(*found)


class SomeCaptions(CaptionStore):
    """Some of a run's captions; the first stands for those that are not among them."""

    @classmethod
    def of(cls, store: CaptionStore) -> SomeCaptions:
        """The captions of a store."""
        return cls(store.cache, store.keys, store.loose, store.encoded, store.unpack)

    def load(self, caption: str) -> Any:
        """Return the conditioning of one caption, or of the first."""
        return super().load(caption if caption in self.keys else next(iter(self.keys)))


def caption_key(caption: str, text: CaptionEncoder) -> str:
    """Cache key of one caption."""
    return cache_key("caption-1", text.identity, caption)


def store_captions(captions: list[str], text: CaptionEncoder, cache: TensorCache, sink: Sink) -> CaptionStore:
    """Encode each distinct caption that is not cached yet.

    Args:
        captions: Captions of all pictures; duplicates are encoded once.
        text: The text encoder.
        cache: The cache of encoded captions.
        sink: Receives the progress and is checked for a cancel.

    Raises:
        Cancelled: The user pressed cancel between two captions.
        UserError: A caption's encoding is not finite. Nothing of it is cached.
    """
    distinct = list(dict.fromkeys(captions))
    keys: dict[str, str] = {}
    loose: dict[str, Any] = {}
    encoded = 0
    for done, caption in enumerate(distinct):
        if sink.cancelled():
            raise Cancelled
        sink.phase("encoding captions", done, len(distinct))
        key = keys[caption] = caption_key(caption, text)
        if key in cache:
            continue
        conditioning = text.encode(caption)
        encoded += 1
        # The key does not cover the content of an embedding file.
        packed = text.pack(conditioning) if "embedding:" not in caption else None
        try:
            if packed is not None:
                cache.put(key, *packed)
            elif is_finite(conditioning):
                loose[caption] = conditioning
            else:
                raise NotFiniteTensor
        except NotFiniteTensor as error:
            raise UserError(
                f"The CLIP's encoding of the caption {caption[:40]!r} is not finite. Start ComfyUI with "
                "--fp32-text-enc, or connect another CLIP."
            ) from error
    sink.phase("encoding captions", len(distinct), len(distinct))
    return CaptionStore(cache, keys, loose, encoded, text.unpack)
