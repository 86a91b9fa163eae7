"""Variants of a picture: random crops and colours, the same for the same file, each encoded once."""

from __future__ import annotations

import colorsys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_workbench.training.cache.latents import store_latents, wanted_latents
from lora_workbench.training.cache.store import TensorCache
from lora_workbench.training.data import batches
from lora_workbench.training.data.buckets import BucketConfig, assign_buckets, bucket_report
from lora_workbench.training.data.dataset import Dataset, Picture, Placement
from lora_workbench.training.data.variants import Variant, recolored, variants_of
from lora_workbench.training.disk import content_hash
from lora_workbench.training.errors import SettingError, UserError
from lora_workbench.training.events import SilentSink
from PIL import Image

WIDE = Placement((64, 64), (128, 72), (32, 4))
CONTENT = "0123456789abcdef" * 4


class Blocks:
    """Stands in for the VAE: the means of 8 x 8 blocks of pixels."""

    identity, name, dtype = "blocks", "Blocks", "fp32"

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"latent": torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1)[None], 8)}

    def encode_in_fp32(self, pixels: np.ndarray) -> None:
        return None


def picture(path: Path = Path("a.png"), **more: object) -> Picture:
    return replace(Picture(path, (128, 72), "", placement=WIDE), **more)


def written(folder: Path, **more: object) -> Dataset:
    """One picture whose red says how far right a pixel is, and whose green says how far down."""
    across, down = np.meshgrid(np.arange(128), np.arange(72))
    pixels = np.stack([across, down, np.full_like(across, 40)], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return Dataset((picture(folder / "a.png", **more),))


def test_without_either_there_is_one_variant_as_it_is() -> None:
    assert variants_of(picture(), CONTENT) == [Variant(WIDE)]
    assert variants_of(picture(), CONTENT)[0].color == ()


def test_crops_lie_anywhere_in_the_scaled_picture() -> None:
    found = variants_of(picture(random_crop=True, variants=4000), CONTENT)
    lefts, tops = (Counter(variant.placement.offset[axis] for variant in found) for axis in (0, 1))
    assert set(lefts) == set(range(65)) and set(tops) == set(range(9))
    assert max(lefts.values()) < 3 * 4000 / 65 and max(tops.values()) < 1.3 * 4000 / 9
    assert {replace(variant.placement, offset=WIDE.offset) for variant in found} == {WIDE}
    assert all(variant.color == () for variant in found)


def test_a_third_of_the_variants_has_other_colours() -> None:
    found = variants_of(picture(color_aug=True, variants=6000), CONTENT)
    hues = [variant.hue for variant in found if variant.hue]
    gammas = [variant.gamma for variant in found if variant.gamma != 1]
    assert len(hues) / 6000 == pytest.approx(0.165, abs=0.02) == len(gammas) / 6000
    assert not any(variant.hue and variant.gamma != 1 for variant in found)
    assert -16 <= min(hues) < -15.8 and 15.8 < max(hues) <= 16
    assert 0.95 <= min(gammas) < 0.951 and 1.049 < max(gammas) <= 1.05
    assert {variant.placement for variant in found} == {WIDE}


def test_variants_depend_on_the_file_and_their_number_alone() -> None:
    both = picture(random_crop=True, color_aug=True, variants=8)
    assert variants_of(both, CONTENT) == variants_of(replace(both, path=Path("moved.png")), CONTENT)
    for only in (replace(both, color_aug=False), replace(both, random_crop=False)):
        assert variants_of(only, CONTENT) != variants_of(only, CONTENT[:-1])
    assert variants_of(replace(both, variants=20), CONTENT)[:8] == variants_of(both, CONTENT)
    # Turning one on does not change the other.
    crops = variants_of(replace(both, color_aug=False), CONTENT)
    assert [v.placement for v in crops] == [v.placement for v in variants_of(both, CONTENT)]


@pytest.mark.parametrize("degrees", [-16.0, 3.5, 16.0, 200.0])
def test_the_hue_is_turned_and_nothing_else(degrees: float) -> None:
    pixels = np.random.default_rng(0).random((6, 5, 3), dtype=np.float32)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = 0, 1, 0.5  # grey has no hue
    turned = recolored(pixels, Variant(WIDE, hue=degrees))
    assert turned.dtype == np.float32 and np.array_equal(turned[0, :3], pixels[0, :3])
    for before, after in zip(pixels.reshape(-1, 3), turned.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value), abs=1e-5)


def test_gamma_keeps_black_and_white() -> None:
    pixels = np.array([[[0, 0.5, 1]]], np.float32)
    assert recolored(pixels, Variant(WIDE, gamma=0.95)) == pytest.approx(np.array([[[0, 0.5**0.95, 1]]]))
    assert recolored(pixels, Variant(WIDE)) is pixels


def test_each_variant_is_encoded_once_from_its_own_crop(tmp_path: Path) -> None:
    data, cache, vae = written(tmp_path, random_crop=True, variants=5, flip=True), TensorCache(tmp_path / "c"), Blocks()
    wanted = wanted_latents(data, vae, cache)
    assert vae.calls == 0
    store = store_latents(data, vae, cache, SilentSink())
    assert store.encoded == vae.calls == len(set(store.keys.values())) == 10
    assert store.keys == wanted.keys and store.crops == wanted.crops and len(store.crops) == 5
    for number in range(5):
        left, top = store.crops[0, number].offset
        corner = store.load(0, False, number)[0, :, 0, 0] * 255
        assert corner.tolist() == pytest.approx([left + 3.5, top + 3.5, 40], abs=0.01)
        assert torch.allclose(store.load(0, True, number), store.load(0, False, number).flip(-1))
    again = store_latents(data, vae, cache, SilentSink())
    assert again.encoded == 0
    more = data.with_pictures(replace(p, variants=7) for p in data.pictures)
    assert store_latents(more, vae, cache, SilentSink()).encoded == 4


def test_variants_that_look_the_same_are_encoded_once(tmp_path: Path) -> None:
    data, cache, vae = written(tmp_path, color_aug=True, variants=12), TensorCache(tmp_path / "c"), Blocks()
    store = store_latents(data, vae, cache, SilentSink())
    variants = variants_of(data.pictures[0], content_hash(tmp_path / "a.png"))
    colored = [number for number, variant in enumerate(variants) if variant.color]
    assert 0 < len(colored) < 12 and store.encoded == vae.calls == len(colored) + 1 and not store.crops
    plain = store_latents(written(tmp_path), vae, cache, SilentSink())
    assert plain.encoded == 0, "the file's own colours are the same latent without variants"
    for number in range(12):
        same = torch.equal(store.load(0, False, number), plain.load(0, False))
        assert same == (number not in colored)


def test_masks_follow_the_crop(tmp_path: Path) -> None:
    mask = np.zeros((72, 128), np.uint8)
    mask[:, 100:] = 255
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    more = {"random_crop": True, "variants": 6, "flip": True, "mask": tmp_path / "a_mask.png", "outside": 0.0}
    store = store_latents(written(tmp_path, **more), Blocks(), TensorCache(tmp_path / "c"), SilentSink())
    assert len(store.masks) == 12
    seen = 0
    for number in range(6):
        left = store.crops[0, number].offset[0]
        inside = store.mask(0, False, number)
        assert inside is not None and inside.mean() * 64 == pytest.approx(max(0, left + 64 - 100), abs=0.01)
        assert torch.equal(store.mask(0, True, number), inside.flip(-1))  # type: ignore[arg-type]
        seen += inside.max() > 0
    assert 0 < seen < 6, "a crop that misses the mask must not leave the picture out"


def test_a_mask_that_is_black_in_every_crop_leaves_the_picture_out(tmp_path: Path) -> None:
    Image.new("L", (128, 72)).save(tmp_path / "a_mask.png")
    more = {"random_crop": True, "variants": 2, "mask": tmp_path / "a_mask.png", "outside": 0.0}
    with pytest.raises(UserError, match="is black over all of a.png"):
        store_latents(written(tmp_path, **more), Blocks(), TensorCache(tmp_path / "c"), SilentSink())


def test_buckets_give_pictures_their_variants() -> None:
    data = Dataset((Picture(Path("a.png"), (1200, 600), ""),))
    plain = assign_buckets(data, BucketConfig())
    varied = assign_buckets(data, BucketConfig(random_crop=True, color_aug=True, variants=3))
    (before,), (after,) = plain.pictures, varied.pictures
    assert (before.variants, before.random_crop, before.color_aug) == (1, False, False)
    assert (after.variants, after.random_crop, after.color_aug) == (3, True, True)
    assert after.placement == before.placement
    assert "% cut away at random" in bucket_report(varied) and "random" not in bucket_report(plain)
    assert assign_buckets(varied, BucketConfig()) == plain
    with pytest.raises(SettingError, match="random crop is on, but fit is 'pad'.*Set fit to crop"):
        BucketConfig(random_crop=True, fit="pad")
    BucketConfig(color_aug=True, fit="pad")


def test_a_variant_is_drawn_each_time_a_picture_is_shown() -> None:
    varied = Dataset((picture(random_crop=True, variants=4, repeats=100), picture(repeats=50)))
    dealt = batches.epoch_batches(varied, 3, 0, 0)
    assert dealt == batches.epoch_batches(varied, 3, 0, 0)
    shown = Counter((index, variant) for batch in dealt for index, flip, variant in batch.shown)
    assert shown[1, 0] == 50 and set(shown) == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)}
    assert all(shown[0, variant] == pytest.approx(25, abs=12) for variant in range(4))
    plain = varied.with_pictures(replace(p, variants=1, flip=True) for p in varied.pictures)
    mirrored = varied.with_pictures(replace(p, flip=True) for p in varied.pictures)
    for one, other in zip(batches.epoch_batches(plain, 3, 0, 0), batches.epoch_batches(mirrored, 3, 0, 0), strict=True):
        assert one.indices == other.indices and one.flips == other.flips and not any(one.variants)

    def drawn(seed: int, epoch: int) -> list[tuple[bool, int]]:
        alone = mirrored.with_pictures(mirrored.pictures[:1])
        return [view[1:] for batch in batches.epoch_batches(alone, 3, seed, epoch) for view in batch.shown]

    numbers = [[number for _, number in drawn(*where)] for where in ((0, 0), (0, 1), (1, 0))]
    assert len(set(map(tuple, numbers))) == 3, "seed or epoch draws the same variants"
    assert len(set(drawn(0, 0))) == 8, "a variant is always mirrored, or never"
