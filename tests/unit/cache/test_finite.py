"""Nothing that is not finite is cached. An entry of an older version is checked once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_workbench.training.cache import store as module
from lora_workbench.training.cache.captions import store_captions
from lora_workbench.training.cache.latents import store_latents
from lora_workbench.training.cache.store import FORMAT, NotFiniteTensor, TensorCache
from lora_workbench.training.data.dataset import Dataset, Picture, Placement
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import SilentSink
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

GOOD, BAD = torch.arange(3.0), torch.tensor([1.0, float("nan"), 2.0])


def old_entry(cache: TensorCache, key: str, **tensors: torch.Tensor) -> Path:
    """Write an entry as versions without a format number did."""
    path = cache._path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"note": '"said"'})
    return path


def format_of(path: Path) -> str | None:
    with safe_open(path, framework="pt") as file:
        return file.metadata().get("format")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_refused(tmp_path, value, dtype):
    cache = TensorCache(tmp_path)
    with pytest.raises(NotFiniteTensor, match="The tensor bad"):
        cache.put("abcd", {"good": GOOD, "bad": torch.tensor([1.0, value], dtype=dtype)})
    assert "abcd" not in cache and not list(tmp_path.rglob("*.*"))


def test_finite_tensors_of_every_kind_are_kept(tmp_path):
    cache = TensorCache(tmp_path)
    kinds = {"int": torch.ones(2, dtype=torch.int64), "bool": torch.ones(2, dtype=torch.bool), "none": torch.ones(0),
             "eight": torch.ones(2).to(torch.float8_e4m3fn)}  # fmt: skip
    cache.put("abcd", kinds)
    assert "abcd" in cache and format_of(cache._path("abcd")) == FORMAT


@pytest.mark.parametrize("ask", ["in", "get"])
def test_an_old_entry_is_checked_once(tmp_path, ask, monkeypatch):
    cache, checked = TensorCache(tmp_path), []
    real = module.is_finite
    monkeypatch.setattr(module, "is_finite", lambda value: checked.append(1) or real(value))
    path = old_entry(cache, "abcd", x=GOOD)
    for _ in range(2):
        if ask == "in":
            assert "abcd" in cache
        found = cache.get("abcd")
        assert found is not None and torch.equal(found[0]["x"], GOOD) and found[1] == "said"
    assert len(checked) == 1 and format_of(path) == FORMAT
    bad = old_entry(cache, "efgh", x=BAD)
    assert ("efgh" not in cache) if ask == "in" else (cache.get("efgh") is None)
    assert not bad.exists()


def test_an_old_entry_that_cannot_be_rewritten_is_used(tmp_path, monkeypatch):
    cache = TensorCache(tmp_path)
    path = old_entry(cache, "abcd", x=GOOD)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "abcd" in cache and cache.get("abcd") is not None and format_of(path) is None


def test_asking_for_an_entry_reads_its_header_only(tmp_path, monkeypatch):
    cache = TensorCache(tmp_path)
    cache.put("abcd", {"x": torch.randn(1 << 20)})
    monkeypatch.setattr(cache, "get", None)
    started = time.process_time()
    assert all("abcd" in cache for _ in range(1000))
    assert time.process_time() - started < 1  # 0.05 s


def test_a_damaged_entry_is_not_there(tmp_path):
    cache = TensorCache(tmp_path)
    cache.put("abcd", {"x": GOOD})
    path = cache._path("abcd")
    path.write_bytes(path.read_bytes()[:-1])
    assert "abcd" not in cache and not path.exists()


class Heard(SilentSink):
    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, text: str) -> None:
        self.told.append(text)


class Overflowing:
    """A VAE that fails in half precision on bright pictures, and in fp32 on white ones."""

    identity, name, dtype = "vae", "Overflowing", "fp16"

    @staticmethod
    def encode(pixels: np.ndarray) -> dict[str, torch.Tensor]:
        return {"latent": torch.full((1, 4, 8, 8), float("nan") if pixels.mean() > 0.5 else 1.0)}

    @staticmethod
    def encode_in_fp32(pixels: np.ndarray) -> dict[str, torch.Tensor] | None:
        return {"latent": torch.full((1, 4, 8, 8), float("inf") if pixels.mean() > 0.99 else 2.0)}


def pictures(folder: Path, **greys: int) -> Dataset:
    place = Placement((64, 64), (64, 64), (0, 0))
    for name, grey in greys.items():
        Image.new("RGB", (64, 64), (grey,) * 3).save(folder / f"{name}.png")
    return Dataset(tuple(Picture(folder / f"{name}.png", (64, 64), name, placement=place) for name in greys))


def test_a_latent_that_is_not_finite_is_encoded_in_fp32_and_that_is_said_once(tmp_path):
    data, cache, sink = pictures(tmp_path, dark=10, bright=200, brighter=210, white=255), TensorCache(tmp_path), Heard()
    store = store_latents(data, Overflowing(), cache, sink)
    assert [picture.path.name for picture in store.dataset.pictures] == ["dark.png", "bright.png", "brighter.png"]
    assert [float(store.load(index, False).mean()) for index in range(3)] == [1, 2, 2]
    (said,) = sink.told
    assert "bright.png" in said and "fp16" in said and "fp32" in said and "Overflowing" in said
    (skipped,) = store.dataset.skipped
    assert "white.png" in skipped and "Overflowing" in skipped and "Connect another VAE" in skipped
    again = store_latents(data, Overflowing(), cache, sink)
    assert again.encoded == 0 and len(sink.told) == 1


def test_a_dataset_of_which_nothing_can_be_encoded(tmp_path):
    with pytest.raises(UserError, match=r"None of the 1 picture can be encoded.*white\.png.*another VAE"):
        store_latents(pictures(tmp_path, white=255), Overflowing(), TensorCache(tmp_path), SilentSink())


def test_latents_and_masks_of_an_older_version_that_are_not_finite_are_made_again(tmp_path):
    data, cache = pictures(tmp_path, dark=10, dim=20), TensorCache(tmp_path)
    data = data.with_pictures(Picture(**{**vars(p), "mask": p.path, "outside": 0.5}) for p in data.pictures)
    first = store_latents(data, Overflowing(), cache, SilentSink())
    for keys, name, shape in ((first.keys, "latent", (1, 4, 8, 8)), (first.masks, "mask", (8, 8))):
        old_entry(cache, keys[0, False, 0], **{name: torch.full(shape, float("nan"))})
        old_entry(cache, keys[1, False, 0], **{name: torch.full(shape, 0.25)})
    again = store_latents(data, Overflowing(), cache, SilentSink())
    assert again.encoded == 1
    masks = [again.mask(index, False) for index in range(2)]
    assert [float(mask.mean()) for mask in masks if mask is not None] == [1, 0.25]
    assert [float(again.load(index, False).mean()) for index in range(2)] == [1, 0.25]


@pytest.mark.parametrize("packs", [True, False], ids=["on disk", "loose"])
def test_a_caption_whose_encoding_is_not_finite_is_an_error(tmp_path, packs):
    class Text:
        identity = "text"

        @staticmethod
        def encode(caption: str):
            return [[torch.ones(1, 2, 3), {"pooled_output": BAD if caption == "loud" else GOOD}]]

        @staticmethod
        def pack(conditioning):
            return ({"x": conditioning[0][0], "pooled": conditioning[0][1]["pooled_output"]}, None) if packs else None

        unpack = None

    with pytest.raises(UserError, match=r"caption 'loud' is not finite\. .*--fp32-text-enc"):
        store_captions(["calm", "loud"], Text(), TensorCache(tmp_path), SilentSink())
    assert len(list(tmp_path.rglob("*.safetensors"))) == packs
