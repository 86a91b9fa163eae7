"""Latents and masks, each computed once and cached on disk by content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data import images
from ..data.dataset import Dataset, Picture, Placement
from ..data.masks import latent_mask
from ..data.variants import Variant, recolored, variants_of
from ..disk import content_hash
from ..errors import UnreadableImage, UserError
from ..events import Cancelled, Sink, counted
from .store import NotFiniteTensor, TensorCache, cache_key


class PictureEncoder(Protocol):
    """Turns pixels into latents."""

    identity: str
    name: str
    dtype: str

    def encode(self, pixels: np.ndarray) -> dict[str, Tensor]: ...  # noqa: D102 - see training/host/vae.py
    def encode_in_fp32(self, pixels: np.ndarray) -> dict[str, Tensor] | None: ...  # noqa: D102


View = tuple[int, bool, int]  # index of a picture, whether it is mirrored, number of its variant


@dataclass(frozen=True)
class LatentStore:
    """The latents of a dataset.

    Attributes:
        cache: The cache that holds them.
        dataset: The dataset to train, without pictures that could not be read.
        keys: Cache key of each view.
        encoded: Number of latents that had to be encoded this time.
        masks: Cache key of the mask of each view that has one.
        crops: Placement of each (picture index, variant), for pictures that are cropped at random.
    """

    cache: TensorCache
    dataset: Dataset
    keys: dict[View, str]
    encoded: int
    masks: dict[View, str] = field(default_factory=dict)
    crops: dict[tuple[int, int], Placement] = field(default_factory=dict)

    def mask(self, index: int, flipped: bool, variant: int = 0) -> Tensor | None:
        """How much of each latent position lies inside the mask, [h, w], 0 to 1; None without a mask."""
        key = self.masks.get((index, flipped, variant))
        return self._get(key, index)["mask"] if key else None

    def load(self, index: int, flipped: bool, variant: int = 0) -> Tensor:
        """Return one latent [1, C, (T,) h, w]: the mean where the VAE gives a distribution."""
        return self._get(self.keys[index, flipped, variant], index)["latent"]

    def draw(self, index: int, flipped: bool, variant: int, source: torch.Generator) -> Tensor:
        """Draw one latent [1, C, (T,) h, w] from the VAE's distribution; without a spread it is the mean."""
        entry = self._get(self.keys[index, flipped, variant], index)
        mean, spread = entry["latent"], entry.get("spread")
        return mean if spread is None else mean + spread * torch.randn(mean.shape, generator=source)

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

    A latent's key covers the picture's content hash, its crop and colours, the background and the VAE. So a moved or
    renamed file is found again, and an edited one is encoded again.

    A latent that is not finite is encoded once more in fp32, and the first such picture is named. A picture that fails
    in fp32 too is left out.

    Raises:
        Cancelled: The user pressed cancel.
        UserError: No picture could be encoded.
    """
    writer = _Writer(dataset, vae, cache, sink)

    def keys_of(picture: Picture, done: int) -> tuple[_Views, dict[_Own, str]]:
        if sink.cancelled():
            raise Cancelled
        sink.phase("encoding pictures", done, len(dataset.pictures))
        views = _views(picture, dataset, vae)
        writer.encode(views, {key: own for own, key in views.keys.items() if key not in cache})
        return views, _store_masks(views, writer) if picture.is_masked else {}

    store = _store(dataset, cache, keys_of)
    sink.phase("encoding pictures", len(dataset.pictures), len(dataset.pictures))
    return replace(store, encoded=writer.encoded)


def wanted_latents(dataset: Dataset, vae: PictureEncoder, cache: TensorCache) -> LatentStore:
    """The latents and masks that a run asks of the cache, there or not. No picture is opened, nothing is encoded.

    Returns:
        A store of the keys, and of the dataset without pictures whose file is gone.

    Raises:
        UserError: No file is there.
    """

    def keys_of(picture: Picture, _: int) -> tuple[_Views, dict[_Own, str]]:
        views = _views(picture, dataset, vae)
        return views, _mask_keys(views) if picture.is_masked else {}

    return _store(dataset, cache, keys_of)


def _store(
    dataset: Dataset, cache: TensorCache, keys_of: Callable[[Picture, int], tuple[_Views, dict[_Own, str]]]
) -> LatentStore:
    """A store of what is there for each picture. Pictures that cannot be read are left out.

    Args:
        dataset: Bucketed.
        cache: The cache of the latents.
        keys_of: Gives a picture's views and the keys of its masks, from the picture and its place in the dataset.

    Raises:
        UserError: No picture is left.
    """
    kept: list[Picture] = []
    skipped = list(dataset.skipped)
    store = LatentStore(cache, dataset, {}, 0)
    for number, picture in enumerate(dataset.pictures):
        try:
            views, masks = keys_of(picture, number)
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        index = len(kept)
        store.keys.update({(index, *own): key for own, key in views.keys.items()})
        store.masks.update({(index, *own): key for own, key in masks.items()})
        if picture.random_crop:
            store.crops.update({(index, n): variant.placement for n, variant in enumerate(views.variants)})
        kept.append(picture)
    if not kept:
        raise UserError(_none_encoded(dataset, skipped))
    # One file can be there at several resolutions.
    return replace(store, dataset=replace(dataset, pictures=tuple(kept), skipped=tuple(dict.fromkeys(skipped))))


_Own = tuple[bool, int]  # whether a picture is mirrored, number of its variant


@dataclass(frozen=True)
class _Views:
    """What a run can show of one picture.

    Attributes:
        picture: The picture.
        variants: Its crops and colourings.
        keys: Cache key of each latent. Views that look the same have the same key.
    """

    picture: Picture
    variants: list[Variant]
    keys: dict[_Own, str]


def _views(picture: Picture, dataset: Dataset, vae: PictureEncoder) -> _Views:
    content = images.file_hash(picture.path)
    variants = variants_of(picture, content)
    keys = {
        (flipped, number): cache_key(
            "latent-2", content, variant.placement, dataset.background, flipped, vae.identity, *variant.color
        )
        for flipped in ((False, True) if picture.flip else (False,))
        for number, variant in enumerate(variants)
    }
    return _Views(picture, variants, keys)


def _none_encoded(dataset: Dataset, skipped: list[str]) -> str:
    return f"None of the {counted(len(dataset.pictures), 'picture')} can be encoded. {skipped[-1]}"


class _Writer:
    """Encodes pictures into the cache: in the VAE's own precision, and in fp32 what is not finite there."""

    def __init__(self, dataset: Dataset, vae: PictureEncoder, cache: TensorCache, sink: Sink) -> None:
        self.dataset, self.vae, self.cache, self.sink = dataset, vae, cache, sink
        self.encoded = 0
        self._has_told = False

    def encode(self, views: _Views, missing: dict[str, _Own]) -> None:
        """Encode views of a picture under the keys given.

        Raises:
            Cancelled: The user pressed cancel between two views.
            UnreadableImage: The file cannot be read, or its latent is not finite in fp32 either.
        """
        if not missing:
            return
        picture = views.picture
        whole = images.read_picture(picture, self.dataset.background)
        for key, (flipped, number) in missing.items():
            if self.sink.cancelled():
                raise Cancelled
            variant = views.variants[number]
            placed = images.place(whole, variant.placement, self.dataset.background)
            shown = recolored(images.to_array(placed), variant)
            shown = np.ascontiguousarray(shown[:, ::-1]) if flipped else shown
            try:
                self.cache.put(key, self.vae.encode(shown))
            except NotFiniteTensor:
                self._put_in_fp32(picture, key, shown)
            self.encoded += 1

    def _put_in_fp32(self, picture: Picture, key: str, shown: np.ndarray) -> None:
        # Each picture is tried in half precision first, so that its latent does not depend on the others.
        again = self.vae.encode_in_fp32(shown)
        precisions = self.vae.dtype if again is None else "fp32"
        try:
            if again is None:
                raise NotFiniteTensor
            self.cache.put(key, again)
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


def _store_masks(views: _Views, writer: _Writer) -> dict[_Own, str]:
    """Make the masks that are not cached yet. Returns their keys by view."""
    cache = writer.cache
    keys = _mask_keys(views)
    for (flipped, number), key in keys.items():
        if key not in cache:
            latent = views.keys[flipped, number]
            cached = cache.get(latent)
            if cached is None:  # its file was damaged
                writer.encode(views, {latent: (flipped, number)})
                cached = cache.get(latent)
                assert cached is not None, "just encoded"
            height, width = cached[0]["latent"].shape[-2:]
            cropped = replace(views.picture, placement=views.variants[number].placement)
            cache.put(key, {"mask": latent_mask(cropped, (height, width), flipped)})
    return keys


def _mask_keys(views: _Views) -> dict[_Own, str]:
    """The keys of a picture's masks by view."""
    picture = views.picture
    assert picture.mask is not None, "not masked"
    try:
        mask_hash = content_hash(picture.mask)
    except OSError as error:
        raise UnreadableImage(
            f"The mask {picture.mask} of {picture.path.name} cannot be read ({error.strerror}). Restore it, or queue "
            "again without it."
        ) from error
    is_alpha, may_be_black = picture.mask == picture.path, picture.outside > 0 or picture.random_crop
    return {
        own: cache_key("mask-1", latent, mask_hash, is_alpha, may_be_black)
        for own, latent in views.keys.items()
    }


def cache_folders(root: Path) -> tuple[TensorCache, TensorCache]:
    """Return the caches of latents and of captions below a folder."""
    return TensorCache(root / "latents"), TensorCache(root / "captions")
