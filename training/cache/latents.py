"""Latents and masks, each computed once and cached on disk by content."""

from __future__ import annotations

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
from ..events import Cancelled, Sink, counted
from .store import NotFiniteTensor, TensorCache, cache_key


class PictureEncoder(Protocol):
    """Turns pixels into latents."""

    identity: str
    name: str
    dtype: str

    def encode(self, pixels: np.ndarray) -> Tensor: ...  # noqa: D102 - see training/host/vae.py
    def encode_in_fp32(self, pixels: np.ndarray) -> Tensor | None: ...  # noqa: D102


@dataclass(frozen=True)
class LatentStore:
    """The latents of a dataset.

    Attributes:
        cache: The cache that holds them.
        dataset: The dataset to train, without pictures that could not be read.
        keys: Cache key of each (picture index, flipped).
        encoded: Number of latents that had to be encoded this time.
        masks: Cache key of the mask of each (picture index, flipped) that has one.
    """

    cache: TensorCache
    dataset: Dataset
    keys: dict[tuple[int, bool], str]
    encoded: int
    masks: dict[tuple[int, bool], str] = field(default_factory=dict)

    def mask(self, index: int, flipped: bool) -> Tensor | None:
        """How much of each latent position lies inside the mask, [h, w], 0 to 1; None without a mask."""
        key = self.masks.get((index, flipped))
        return self._get(key, index)["mask"] if key else None

    def load(self, index: int, flipped: bool) -> Tensor:
        """Return one latent [1, C, (T,) h, w]."""
        return self._get(self.keys[index, flipped], index)["latent"]

    def _get(self, key: str, index: int) -> dict[str, Tensor]:
        found = self.cache.get(key)
        if found is None:
            raise UserError(
                f"The cached latent of {self.dataset.pictures[index].path.name} disappeared from {self.cache.folder} "
                "during training. Queue again to encode it again."
            )
        return found[0]


def store_latents(dataset: Dataset, vae: PictureEncoder, cache: TensorCache, sink: Sink) -> LatentStore:
    """Encode the latents that are not cached yet.

    A latent's key covers the picture's content hash, its crop, the background and the VAE. So a moved or renamed file
    is found again, and an edited one is encoded again.

    A latent that is not finite is encoded once more in fp32, and the first such picture is named. A picture that fails
    in fp32 too is left out.

    Raises:
        Cancelled: The user pressed cancel between two pictures.
        UserError: No picture could be encoded.
    """
    writer = _Writer(dataset, vae, cache, sink)
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
            wanted = _latent_keys(picture, dataset, vae)
            missing = {flipped: key for flipped, key in wanted.items() if key not in cache}
            if missing:
                encoded += writer.encode(picture, missing)
            masked = _store_masks(picture, wanted, writer) if picture.is_masked else {}
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        for flipped, key in wanted.items():
            keys[len(kept), flipped] = key
        masks |= {(len(kept), flipped): key for flipped, key in masked.items()}
        kept.append(picture)
    if not kept:
        raise UserError(_none_encoded(dataset, skipped))
    sink.phase("encoding pictures", len(dataset.pictures), len(dataset.pictures))
    # One file can be there at several resolutions.
    trained = replace(dataset, pictures=tuple(kept), skipped=tuple(dict.fromkeys(skipped)))
    return LatentStore(cache, trained, keys, encoded, masks)


def wanted_latents(dataset: Dataset, vae: PictureEncoder, cache: TensorCache) -> LatentStore:
    """The latents and masks that a run asks of the cache, there or not. No picture is opened, nothing is encoded.

    Returns:
        A store of the keys, and of the dataset without pictures whose file is gone.

    Raises:
        UserError: No file is there.
    """
    kept: list[Picture] = []
    skipped = list(dataset.skipped)
    keys: dict[tuple[int, bool], str] = {}
    masks: dict[tuple[int, bool], str] = {}
    for picture in dataset.pictures:
        try:
            wanted = _latent_keys(picture, dataset, vae)
            masked = _mask_keys(picture, wanted) if picture.is_masked else {}
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        keys |= {(len(kept), flipped): key for flipped, key in wanted.items()}
        masks |= {(len(kept), flipped): key for flipped, key in masked.items()}
        kept.append(picture)
    if not kept:
        raise UserError(_none_encoded(dataset, skipped))
    there = replace(dataset, pictures=tuple(kept), skipped=tuple(dict.fromkeys(skipped)))
    return LatentStore(cache, there, keys, 0, masks)


def _latent_keys(picture: Picture, dataset: Dataset, vae: PictureEncoder) -> dict[bool, str]:
    """The keys of a picture's latents, by whether they are mirrored."""
    content = images.file_hash(picture.path)
    return {
        flipped: cache_key("latent-1", content, picture.placement, dataset.background, flipped, vae.identity)
        for flipped in ((False, True) if picture.flip else (False,))
    }


def _none_encoded(dataset: Dataset, skipped: list[str]) -> str:
    return f"None of the {counted(len(dataset.pictures), 'picture')} can be encoded. {skipped[-1]}"


class _Writer:
    """Encodes pictures into the cache: in the VAE's own precision, and in fp32 what is not finite there."""

    def __init__(self, dataset: Dataset, vae: PictureEncoder, cache: TensorCache, sink: Sink) -> None:
        self.dataset, self.vae, self.cache, self.sink = dataset, vae, cache, sink
        self._has_told = False

    def encode(self, picture: Picture, missing: dict[bool, str]) -> int:
        """Encode a picture, mirrored or not, under the keys given. Returns their number.

        Raises:
            UnreadableImage: The file cannot be read, or its latent is not finite in fp32 either.
        """
        assert picture.placement is not None, "not bucketed"
        whole = images.read_picture(picture, self.dataset.background)
        placed = images.place(whole, picture.placement, self.dataset.background)
        pixels = images.to_array(placed)
        for flipped, key in missing.items():
            shown = np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels
            try:
                self.cache.put(key, {"latent": self.vae.encode(shown)})
            except NotFiniteTensor:
                self._put_in_fp32(picture, key, shown)
        return len(missing)

    def _put_in_fp32(self, picture: Picture, key: str, shown: np.ndarray) -> None:
        # Each picture is tried in half precision first, so that its latent does not depend on the others.
        again = self.vae.encode_in_fp32(shown)
        precisions = self.vae.dtype if again is None else "fp32"
        try:
            if again is None:
                raise NotFiniteTensor
            self.cache.put(key, {"latent": again})
        except NotFiniteTensor as error:
            raise UnreadableImage(
                f"{picture.path} cannot be encoded: its latent from this VAE ({self.vae.name}) is not finite in "
                f"{precisions}. Connect another VAE."
            ) from error
        if not self._has_told:
            self._has_told = True
            self.sink.tell(
                f"The latent of {picture.path.name} is not finite with this VAE ({self.vae.name}) in {self.vae.dtype}. "
                "It and others like it are encoded in fp32. A VAE fixed for half precision, or starting ComfyUI with "
                "--fp32-vae, is faster."
            )


def _store_masks(picture: Picture, latents: dict[bool, str], writer: _Writer) -> dict[bool, str]:
    """Make the masks that are not cached yet. Returns their keys by whether they are mirrored."""
    cache = writer.cache
    keys = _mask_keys(picture, latents)
    for flipped, key in keys.items():
        if key not in cache:
            latent = latents[flipped]
            cached = cache.get(latent)
            if cached is None:  # its file was damaged
                writer.encode(picture, {flipped: latent})
                cached = cache.get(latent)
                assert cached is not None, "just encoded"
            height, width = cached[0]["latent"].shape[-2:]
            cache.put(key, {"mask": latent_mask(picture, (height, width), flipped)})
    return keys


def _mask_keys(picture: Picture, latents: dict[bool, str]) -> dict[bool, str]:
    """The keys of a picture's masks, by whether they are mirrored."""
    assert picture.mask is not None, "not masked"
    try:
        mask_hash = content_hash(picture.mask)
    except OSError as error:
        raise UnreadableImage(
            f"The mask {picture.mask} of {picture.path.name} cannot be read ({error.strerror}). Restore it, or queue "
            "again without it."
        ) from error
    is_alpha = picture.mask == picture.path
    return {
        flipped: cache_key("mask-1", latent, mask_hash, is_alpha, picture.outside > 0)
        for flipped, latent in latents.items()
    }


def cache_folders(root: Path) -> tuple[TensorCache, TensorCache]:
    """Return the caches of latents and of captions below a folder."""
    return TensorCache(root / "latents"), TensorCache(root / "captions")
