"""Latents and encoded captions, each made once and kept on disk by content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from ..data import images
from ..data.dataset import Dataset, Picture
from ..data.masks import latent_mask
from ..disk import content_hash
from ..errors import UnreadableImage, UserError
from ..events import Cancelled, Sink
from .store import TensorCache


class PictureEncoder(Protocol):
    """What turns pixels into latents."""

    identity: str

    def encode(self, pixels: np.ndarray) -> Tensor: ...  # noqa: D102 - see training/host/vae.py




@dataclass(frozen=True)
class LatentStore:
    """The latents of a dataset.

    Attributes:
        dataset: The dataset as it is trained: without the pictures that turned out unreadable.
        keys: Cache key of each (picture index, flipped).
        masks: Cache key of the mask of each (picture index, flipped) that has one.
        encoded: How many had to be encoded this time.
    """

    cache: TensorCache
    dataset: Dataset
    keys: dict[tuple[int, bool], str]
    encoded: int
    masks: dict[tuple[int, bool], str] = field(default_factory=dict)

    def mask(self, index: int, flipped: bool) -> Tensor | None:
        """How much of each position of a latent lies inside its mask, [h, w], 0 to 1; None without a mask."""
        key = self.masks.get((index, flipped))
        return self._get(key, index)["mask"] if key else None

    def load(self, index: int, flipped: bool) -> Tensor:
        """Return one latent [1, C, (T,) h, w]."""
        return self._get(self.keys[index, flipped], index)["latent"]

    def _get(self, key: str, index: int) -> dict[str, Tensor]:
        found = self.cache.get(key)
        if found is None:
            raise UserError(
                f"The cached latent of {self.dataset.pictures[index].path.name} has gone from {self.cache.folder} "
                "while training. Queue again: it will be made anew."
            )
        return found[0]


def store_latents(dataset: Dataset, vae: PictureEncoder, cache: TensorCache, sink: Sink) -> LatentStore:
    """Encode what the cache does not hold yet.

    A picture's key is made of its file's bytes, its crop, the background and the VAE, so a moved or renamed file
    is found again and an edited one is not mistaken for its old self.

    Raises:
        Cancelled: The person pressed cancel between two pictures.
        UserError: No picture could be read.
    """
    kept: list[Picture] = []
    skipped = list(dataset.skipped)
    keys: dict[tuple[int, bool], str] = {}
    masks: dict[tuple[int, bool], str] = {}
    encoded = 0
    for done, picture in enumerate(dataset.pictures):
        if sink.cancelled():
            raise Cancelled
        sink.phase("encoding pictures", done, len(dataset.pictures))
        try:
            flips = (False, True) if picture.flip else (False,)
            wanted = {flipped: _latent_key(picture, flipped, dataset, vae) for flipped in flips}
            missing = {flipped: key for flipped, key in wanted.items() if key not in cache}
            if missing:
                encoded += _encode(picture, missing, dataset, vae, cache)
            masked = _store_masks(picture, wanted, dataset, vae, cache) if picture.is_masked else {}
        except (UnreadableImage, FileNotFoundError) as error:
            skipped.append(str(error))
            continue
        for flipped, key in wanted.items():
            keys[len(kept), flipped] = key
        masks |= {(len(kept), flipped): key for flipped, key in masked.items()}
        kept.append(picture)
    if not kept:
        raise UserError(f"None of the {len(dataset.pictures)} pictures can be read. The first: {skipped[-1]}")
    sink.phase("encoding pictures", len(dataset.pictures), len(dataset.pictures))
    trained = replace(dataset, pictures=tuple(kept), skipped=tuple(skipped))
    return LatentStore(cache, trained, keys, encoded, masks)


def _latent_key(picture: Picture, flipped: bool, dataset: Dataset, vae: PictureEncoder) -> str:
    parts = ["latent-1", content_hash(picture.path), repr(picture.placement), repr(dataset.background), flipped,
             vae.identity]  # fmt: skip
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _encode(
    picture: Picture, missing: dict[bool, str], dataset: Dataset, vae: PictureEncoder, cache: TensorCache
) -> int:
    assert picture.placement is not None, "not bucketed"
    whole = images.read_picture(picture, dataset.background)
    placed = images.place(whole, picture.placement, dataset.background)
    pixels = images.to_array(placed)
    for flipped, key in missing.items():
        shown = np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels
        cache.put(key, {"latent": vae.encode(shown)})
    return len(missing)


def _store_masks(
    picture: Picture, latents: dict[bool, str], dataset: Dataset, vae: PictureEncoder, cache: TensorCache
) -> dict[bool, str]:
    """Make the masks that the cache does not hold yet; returns their keys by whether they are mirrored."""
    assert picture.mask is not None, "not masked"
    try:
        mask = content_hash(picture.mask)
    except OSError as error:
        raise UnreadableImage(
            f"The mask {picture.mask} of {picture.path.name} cannot be read ({error.strerror}): put it back, or queue "
            "again without it."
        ) from error
    found = {}
    for flipped, latent in latents.items():
        parts = ("mask-1", latent, mask, picture.mask == picture.path, picture.outside > 0)
        found[flipped] = key = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
        if key not in cache:
            known = cache.get(latent)
            if known is None:  # it was there and is damaged
                _encode(picture, {flipped: latent}, dataset, vae, cache)
                known = cache.get(latent)
                assert known is not None, "just encoded"
            height, width = known[0]["latent"].shape[-2:]
            cache.put(key, {"mask": latent_mask(picture, (height, width), flipped)})
    return found






def cache_folders(root: Path) -> tuple[TensorCache, TensorCache]:
    """Return the caches of latents and of captions below a folder."""
    return TensorCache(root / "latents"), TensorCache(root / "captions")
