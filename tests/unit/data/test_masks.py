"""Masks: their sources, their position on the latent, and masks that leave nothing to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_workbench.training.cache.latents import store_latents
from lora_workbench.training.cache.store import TensorCache
from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
from lora_workbench.training.data.dataset import Dataset, Placement
from lora_workbench.training.data.masks import SOURCES, latent_mask, read_mask, with_masks
from lora_workbench.training.data.mixing import with_prior_preservation
from lora_workbench.training.data.scan import folder_fingerprint, scan_folder
from lora_workbench.training.data.tensors import write_masks
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import SilentSink
from lora_workbench.training.review.bucket_sheet import bucket_sheet
from PIL import Image


class Averages:
    """An encoder whose latents are the picture, eight times smaller."""

    identity = "averages"

    def encode(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        return {"latent": torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1)[None], 8)}


def left_half(size: tuple[int, int] = (128, 128), mode: str = "L") -> Image.Image:
    mask = Image.new(mode, size)
    mask.paste(Image.new(mode, (size[0] // 2, size[1]), "white"))
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a has a mask file, b is transparent on its right, c has neither, d_mask is the mask of no picture."""
    root = tmp_path / "pictures"
    root.mkdir()
    for name in ("a.jpg", "c.png", "d_mask.png"):
        Image.new("RGB", (128, 128), "teal").save(root / name)
    left_half().save(root / "a_mask.png")
    clear = Image.new("RGBA", (128, 128), "teal")
    clear.putalpha(left_half())
    clear.save(root / "b.png")
    return root


def bucketed(dataset: Dataset, **settings: Any) -> Dataset:
    return assign_buckets(dataset, BucketConfig(resolution=128, step=64, **settings))


def test_a_mask_file_is_not_a_picture(folder):
    dataset = scan_folder(folder)
    assert [picture.path.name for picture in dataset.pictures] == ["a.jpg", "b.png", "c.png", "d_mask.png"]
    assert [picture.mask and picture.mask.name for picture in dataset.pictures] == ["a_mask.png", None, None, None]
    assert not any(picture.is_masked for picture in dataset.pictures), "masks are used only when a node asks for them"
    before = folder_fingerprint(folder)
    Image.new("L", (128, 128), 9).save(folder / "a_mask.png")
    assert folder_fingerprint(folder) != before


@pytest.mark.parametrize(
    ("source", "masked"),
    [(SOURCES[0], ["a.jpg", "b.png"]), (SOURCES[1], ["a.jpg"]), (SOURCES[2], ["b.png"])],
)
def test_sources(source, masked, folder):
    dataset, count = with_masks(scan_folder(folder), source, 0.25)
    found = [picture for picture in dataset.pictures if picture.is_masked]
    assert [picture.path.name for picture in found] == masked and count == len(masked)
    for picture in found:
        mask = np.asarray(read_mask(picture))
        assert mask[:, :64].min() == 255 and mask[:, 64:].max() == 0


def test_masks_from_the_graph_are_one_for_all_or_one_for_each(folder, tmp_path):
    dataset = scan_folder(folder)
    one = write_masks([torch.ones(1, 32, 32)], tmp_path / "temp")
    each = write_masks([torch.rand(3, 32, 32), torch.zeros(64, 64)], tmp_path / "temp")
    assert len(one) == 1 and len(each) == 4
    assert with_masks(dataset, SOURCES[2], 0.0, one)[1] == 4
    masked, _ = with_masks(dataset, SOURCES[2], 0.0, each)
    assert [picture.mask for picture in masked.pictures] == each
    assert read_mask(masked.pictures[3]).size == (128, 128)
    with pytest.raises(UserError, match="3 masks for 4 pictures"):
        with_masks(dataset, SOURCES[0], 0.0, each[:3])
    wide = write_masks([torch.ones(64, 16)], tmp_path / "temp")
    with pytest.raises(UserError, match="different shape"):
        read_mask(with_masks(dataset, SOURCES[0], 0.0, wide)[0].pictures[0])
    # Regularization pictures are preserved whole and take none of the given masks.
    preserved = with_prior_preservation(replace(dataset, trigger="zorp"), prompts=["a thing"])
    masked, count = with_masks(preserved, SOURCES[0], 0.0, each)
    assert count == 4 and {picture.is_masked for picture in masked.pictures if picture.is_regularization} == {False}


def test_the_mask_is_placed_like_its_picture(folder):
    dataset, _ = with_masks(scan_folder(folder), SOURCES[1], 0.0)
    (picture,) = (picture for picture in bucketed(dataset).pictures if picture.is_masked)
    expected = torch.cat([torch.ones(16, 8), torch.zeros(16, 8)], dim=1)
    assert torch.equal(latent_mask(picture, (16, 16), False), expected)
    assert torch.equal(latent_mask(picture, (16, 16), True), expected.flip(1))
    # Scaled to three times its size and cropped to the right third: nothing of the mask is left.
    right = replace(picture, placement=Placement((128, 128), (384, 384), (256, 0)))
    with pytest.raises(UserError, match="black over all of a.jpg"):
        latent_mask(right, (16, 16), False)
    assert float(latent_mask(replace(right, outside=0.1), (16, 16), False).max()) == 0


def test_masks_are_cached_and_made_again_when_they_change(folder, tmp_path):
    dataset, _ = with_masks(scan_folder(folder), SOURCES[0], 0.0)
    dataset = bucketed(dataset, flip=True)
    cache = TensorCache(tmp_path / "cache")
    store = store_latents(dataset, Averages(), cache, SilentSink())
    assert store.mask(2, False) is None and store.mask(3, True) is None
    for index in (0, 1):
        assert float(store.mask(index, False)[:, :8].mean()) == 1 == float(store.mask(index, True)[:, 8:].mean())
        assert float(store.mask(index, False)[:, 8:].mean()) == 0
    Image.new("L", (128, 128), 255).save(folder / "a_mask.png")
    again = store_latents(dataset, Averages(), cache, SilentSink())
    assert again.encoded == 0, "the latents are the same"
    assert float(again.mask(0, False).min()) == 1
    # A picture with an unusable mask is skipped, and the mask is named.
    Image.new("L", (128, 128), 0).save(folder / "a_mask.png")
    last = store_latents(dataset, Averages(), cache, SilentSink())
    assert len(last.dataset.pictures) == 3 and "a_mask.png is black" in last.dataset.skipped[-1]
    assert float(last.mask(0, False)[:, :8].mean()) == 1, "masks stay with their pictures"


def test_the_sheet_marks_what_counts_less(folder):
    dataset, _ = with_masks(scan_folder(folder), SOURCES[1], 0.0)
    plain, masked = (np.asarray(bucket_sheet(bucketed(d))) for d in (scan_folder(folder), dataset))
    reddened = (plain[..., 1].astype(int) - masked[..., 1] > 60) & (masked[..., 0].astype(int) - plain[..., 0] > 60)
    assert 0.3 < reddened.sum() / (112 * 112) < 0.7, "half of one thumbnail is under red"
