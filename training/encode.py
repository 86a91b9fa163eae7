"""What a run asks of the caption cache: whole conditionings, and what frozen text encoders make of each caption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from .cache.captions import CaptionEncoder, CaptionStore, SomeCaptions, store_captions
from .cache.store import TensorCache
from .events import Sink
from .host.model import HostModel
from .host.text import HostText
from .host.text_encoders import FrozenParts


class Asked(NamedTuple):
    """Captions that are encoded in one way."""

    encoder: CaptionEncoder
    captions: list[str]


def asked_captions(model: HostModel, clip: Any, captions: list[str], preserved: list[str]) -> list[Asked]:
    """What is encoded before training.

    Without trained text encoders these are all captions. Otherwise they are those of prior preservation, whose target
    is the model without the LoRA, and what the encoders that are not trained make of every caption.

    Args:
        model: The model, with the text encoders that are trained.
        clip: CLIP socket.
        captions: Of the run.
        preserved: Those of pictures with prior preservation.

    Returns:
        The whole conditionings first.
    """
    if model.text is None:
        return [Asked(HostText(clip), captions)]
    whole = Asked(HostText(clip), preserved)
    return [whole, Asked(FrozenParts(clip, model.text.frozen), captions)] if model.text.frozen else [whole]


def encode_captions(
    model: HostModel, asked: list[Asked], cache: TensorCache, sink: Sink, *, is_part: bool = False
) -> CaptionStore:
    """Encode what the cache lacks, and give the trained text encoders what they need of it.

    Args:
        model: The model.
        asked: The result of `asked_captions`.
        cache: The cache of encoded captions.
        sink: Receives the progress and is checked for a cancel.
        is_part: Whether these are only some of the run's captions; the first then stands for the others.

    Returns:
        The whole conditionings, with the number of captions that had to be encoded.

    Raises:
        Cancelled: The user pressed cancel between two captions.
        UserError: A caption's encoding is not finite.
    """
    stores = [store_captions(captions, encoder, cache, sink) for encoder, captions in asked]
    if is_part:
        stores = [SomeCaptions.of(store) for store in stores]
    if model.text:
        model.text.parts = stores[1] if len(stores) > 1 else None
    return replace(stores[0], encoded=max(store.encoded for store in stores))
