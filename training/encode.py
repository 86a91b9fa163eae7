"""What a run asks of the caption cache: whole conditionings, or what frozen text encoders make of each caption."""

from __future__ import annotations

from typing import Any, NamedTuple

from .cache.captions import CaptionEncoder, CaptionStore, SomeCaptions, store_captions
from .cache.store import TensorCache
from .events import Sink
from .host.model import HostModel
from .host.text import HostText
from .host.text_encoders import FrozenParts


class Asked(NamedTuple):
    """Captions, and what encodes them for the cache."""

    encoder: CaptionEncoder
    captions: list[str]


def asked_captions(model: HostModel, clip: Any, captions: list[str]) -> Asked:
    """What is encoded before training: whole captions, or what encoders make of them that are not trained.

    Args:
        model: The model, with the text encoders that are trained.
        clip: CLIP socket.
        captions: Of the run.
    """
    if model.text is None:
        return Asked(HostText(clip), captions)
    return Asked(FrozenParts(clip, model.text.frozen), captions if model.text.frozen else [])


def encode_captions(
    model: HostModel, asked: Asked, cache: TensorCache, sink: Sink, *, is_part: bool = False
) -> CaptionStore:
    """Encode what the cache lacks, and give the trained text encoders what they need of it.

    Args:
        model: The model.
        asked: The result of `asked_captions`.
        cache: The cache of encoded captions.
        sink: Receives the progress and is checked for a cancel.
        is_part: Whether these are only some of the run's captions; the first then stands for the others.

    Returns:
        Whole conditionings; none where text encoders are trained, but the number that had to be encoded.

    Raises:
        Cancelled: The user pressed cancel between two captions.
        UserError: A caption's encoding is not finite.
    """
    store = store_captions(asked.captions, asked.encoder, cache, sink)
    if is_part:
        store = SomeCaptions.of(store)
    if model.text is None:
        return store
    model.text.parts = store
    return CaptionStore(cache, {}, {}, store.encoded, HostText.unpack)
