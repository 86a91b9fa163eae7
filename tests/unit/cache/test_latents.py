"""Latents and captions are encoded once, cached by content, and found again after a move."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_workbench.training.cache.captions import store_captions
from lora_workbench.training.cache.latents import cache_folders, store_latents
from lora_workbench.training.cache.store import TensorCache
from lora_workbench.training.data.dataset import Dataset, Picture, Placement
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import Cancelled, SilentSink
from lora_workbench.training.objective import padding_mask
from PIL import Image
from safetensors import SafetensorError

PLACE = Placement((64, 64), (96, 64), (16, 0))


class CountingEncoder:
    """Stands in for the VAE: returns the mean of 8 × 8 blocks and counts its calls."""

    name, dtype = "Blocks", "fp32"

    def __init__(self, identity: str = "vae") -> None:
        self.identity, self.calls = identity, 0

    def encode(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        self.calls += 1
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.float32
        return {"latent": torch.from_numpy(pixels.reshape(8, 8, 8, 8, 3).mean((1, 3))).permute(2, 0, 1)[None]}

    def encode_in_fp32(self, pixels: np.ndarray) -> dict[str, torch.Tensor] | None:
        return None


class CancelledSink(SilentSink):
    def cancelled(self) -> bool:
        return True


def dataset(folder: Path, names: tuple[str, ...] = ("a.png", "b.png"), **more) -> Dataset:
    pictures = []
    for number, name in enumerate(names):
        ramp = np.arange(120 * 80 * 3, dtype=np.uint32).reshape(80, 120, 3) * (number + 1) % 256
        Image.fromarray(ramp.astype(np.uint8)).save(folder / name)
        pictures.append(Picture(folder / name, (120, 80), f"caption {number}", placement=PLACE))
    return Dataset(tuple(pictures), **more)


def test_a_second_run_encodes_nothing(tmp_path):
    vae, cache = CountingEncoder(), TensorCache(tmp_path / "cache")
    data = dataset(tmp_path)
    first = store_latents(data, vae, cache, SilentSink())
    again = store_latents(data, vae, cache, SilentSink())
    assert (first.encoded, again.encoded, vae.calls) == (2, 0, 2)
    assert torch.equal(first.load(1, False), again.load(1, False)) and first.load(0, False).shape == (1, 3, 8, 8)
    assert [p.suffix for p in cache.folder.rglob("*") if p.is_file()] == [".safetensors"] * 2


def test_a_moved_file_is_found_again_and_an_edited_one_is_not(tmp_path):
    vae, cache = CountingEncoder(), TensorCache(tmp_path / "cache")
    data = dataset(tmp_path)
    store_latents(data, vae, cache, SilentSink())
    os.rename(tmp_path / "a.png", tmp_path / "moved.png")
    moved = data.with_pictures((Picture(tmp_path / "moved.png", (120, 80), "x", placement=PLACE), data.pictures[1]))
    assert store_latents(moved, vae, cache, SilentSink()).encoded == 0
    Image.new("RGB", (120, 80), (1, 2, 3)).save(tmp_path / "b.png")
    assert store_latents(moved, vae, cache, SilentSink()).encoded == 1


@pytest.mark.parametrize("change", ["crop", "background", "vae", "flip"])
def test_crop_background_vae_and_flip_are_part_of_the_key(tmp_path, change):
    cache, data = TensorCache(tmp_path / "cache"), dataset(tmp_path)
    store_latents(data, CountingEncoder(), cache, SilentSink())
    vae = CountingEncoder("another" if change == "vae" else "vae")
    other = {
        "crop": lambda: dataset(tmp_path).with_pictures(
            Picture(p.path, p.size, p.caption, placement=Placement((64, 64), (96, 64), (0, 0))) for p in data.pictures
        ),
        "background": lambda: dataset(tmp_path, background=(0, 0, 0)),
        "vae": lambda: data,
        "flip": lambda: data.with_pictures(replace(p, flip=True) for p in data.pictures),
    }[change]()
    store = store_latents(other, vae, cache, SilentSink())
    assert store.encoded == 2
    if change == "flip":
        assert torch.allclose(store.load(0, True), store.load(0, False).flip(-1))


def test_a_truncated_file_is_skipped_and_a_dataset_of_them_is_an_error(tmp_path):
    data = dataset(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:300])
    store = store_latents(data, CountingEncoder(), TensorCache(tmp_path / "cache"), SilentSink())
    assert [p.path.name for p in store.dataset.pictures] == ["a.png"] and "b.png" in store.dataset.skipped[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="None of the 2 pictures can be encoded"):
        store_latents(data, CountingEncoder(), TensorCache(tmp_path / "other"), SilentSink())


def test_cancel_between_pictures(tmp_path):
    vae = CountingEncoder()
    with pytest.raises(Cancelled):
        store_latents(dataset(tmp_path), vae, TensorCache(tmp_path / "cache"), CancelledSink())
    assert vae.calls == 0


def test_captions_are_encoded_once_each(tmp_path):
    class Text:
        identity = "clip"
        seen: list[str] = []

        def encode(self, caption: str):
            self.seen.append(caption)
            return [[torch.full((1, 2, 3), float(len(caption))), {"pooled_output": torch.ones(1, 3), "n": 1}]]

        @staticmethod
        def pack(conditioning):
            return {"cross_attn": conditioning[0][0]}, {"n": 1}

        @staticmethod
        def unpack(tensors, plain):
            return [[tensors["cross_attn"], plain]]

    text, (_, cache) = Text(), cache_folders(tmp_path)
    for expected in (["one", "three"], ["one", "three"]):
        store = store_captions(["one", "three", "one"], text, cache, SilentSink())
        assert text.seen == expected
    assert store.encoded == 0 and store.load("three")[0][0].mean() == 5 and store.load("one")[0][1]["n"] == 1


def test_a_damaged_cache_file_counts_as_missing(tmp_path):
    cache = TensorCache(tmp_path)
    cache.put("abcd", {"x": torch.ones(3)}, {"note": 1})
    found = cache.get("abcd")
    assert found is not None and torch.equal(found[0]["x"], torch.ones(3)) and found[1] == {"note": 1}
    cache._path("abcd").write_bytes(b"torn")
    assert cache.get("abcd") is None and cache.get("none") is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to write"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk is full"),
    ],
    ids=str,
)
def test_a_cache_that_cannot_be_written_says_why_and_leaves_nothing(tmp_path, monkeypatch, error, words):
    from lora_workbench.training.cache import store as module

    def refuse(_tensors, file, _metadata):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, "save_file", refuse)
    with pytest.raises(UserError, match=words):
        TensorCache(tmp_path).put("abcd", {"x": torch.ones(1)})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_latent_is_encoded_again(tmp_path):
    """As after a power failure: the run that finds it while training stops, and the next run encodes it again."""
    cache, _ = cache_folders(tmp_path / "cache")
    pictures = dataset(tmp_path)
    store = store_latents(pictures, CountingEncoder(), cache, SilentSink())
    path = cache._path(store.keys[0, False, 0])
    path.write_bytes(b"")
    with pytest.raises(UserError, match="Queue again"):
        store.load(0, False)
    again = store_latents(pictures, CountingEncoder(), cache, SilentSink())
    assert again.encoded == 1
    again.load(0, False)


def test_captions_with_an_embedding_file_are_not_cached(tmp_path):
    class Text:
        identity = "text"

        @staticmethod
        def encode(caption: str):
            return [[torch.zeros(1, 2, 3), {}]]

        @staticmethod
        def pack(conditioning):
            return {"x": conditioning[0][0]}, None

        unpack = None

    _, cache = cache_folders(tmp_path)
    counts = [
        store_captions(["a", "embedding:zorp"], Text(), cache, SilentSink())
        for _ in range(2)
    ]
    assert [store.encoded for store in counts] == [2, 1]
    assert counts[1].load("embedding:zorp")[0][0].shape == (1, 2, 3)


def test_padding_carries_no_loss():
    latent = torch.zeros(1, 4, 8, 8)
    assert padding_mask(PLACE, latent) is None
    padded = Placement((64, 64), (64, 32), (0, 16), "pad")
    mask = padding_mask(padded, latent)
    assert mask is not None and mask.shape == (1, 1, 8, 8)
    assert mask[0, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert padding_mask(padded, torch.zeros(1, 16, 1, 8, 8)).shape == (1, 1, 1, 8, 8)  # type: ignore[union-attr]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
@pytest.mark.parametrize("kind", ["folder", "FIFO"])
def test_a_picture_that_is_no_file_any_more_is_left_out(kind, tmp_path):
    """It was a picture when the folder was scanned."""
    data = dataset(tmp_path)
    (tmp_path / "a.png").unlink()
    if kind == "folder":
        (tmp_path / "a.png").mkdir()
    else:
        os.mkfifo(tmp_path / "a.png")
    store = store_latents(data, CountingEncoder(), TensorCache(tmp_path / "cache"), SilentSink())
    assert [picture.path.name for picture in store.dataset.pictures] == ["b.png"]
    assert len(store.dataset.skipped) == 1 and "a.png cannot be read" in store.dataset.skipped[0]
