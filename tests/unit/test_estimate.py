"""The parts of an estimate that need no host: sizes of files, caches that write nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from lora_workbench.training.cache.store import NotFiniteTensor, Overlay, TensorCache, header_of
from lora_workbench.training.disk import safetensors_bytes


@pytest.mark.parametrize("count", [0, 1, 11])
@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
@pytest.mark.parametrize("metadata", [None, {}, {"note": 'a "quote", é, a\nline, \\'}], ids=["none", "empty", "text"])
def test_the_size_of_a_file_is_known_without_it(count, name, dtype, metadata):
    shapes = {f"layer_{number}.{part}": shape for number in range(count) for part, shape in (
        ("up", (7, 3)), ("down", (3, 5, 1, 1)), ("alpha", ()))}  # fmt: skip
    tensors = {key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}
    assert safetensors_bytes(shapes, name, metadata) == len(safetensors.torch.save(tensors, metadata))


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_overlay_reads_the_disk_and_writes_nothing(tmp_path):
    disk = TensorCache(tmp_path)
    disk.put("aa", {"latent": torch.ones(2)}, "kept")
    over = Overlay(disk)
    over.put("bb", {"latent": torch.zeros(3, dtype=torch.float16)}, {"n": 1})
    assert "aa" in over and "bb" in over and "cc" not in over and "bb" not in disk
    assert over.get("aa")[1] == "kept" and over.get("bb")[1] == {"n": 1} and over.get("cc") is None
    assert len(entries(tmp_path)) == 1
    with pytest.raises(NotFiniteTensor):
        over.put("cc", {"latent": torch.tensor([float("nan")])})
    assert "cc" not in over


def test_an_entry_has_the_size_that_was_told(tmp_path):
    disk = TensorCache(tmp_path)
    over = Overlay(disk)
    tensors, note = {"cross_attn": torch.ones(1, 5, 3), "option.pooled_output": torch.ones(1, 3)}, {"hooks": None}
    over.put("aa", tensors, note)
    told = over.size("aa")
    disk.put("aa", tensors, note)
    (file,) = entries(tmp_path)
    assert told == disk.size("aa") == file.stat().st_size and disk.size("bb") == 0
    disk.put("cc", {"latent": torch.ones(1, 4, 8, 8)})
    assert disk.size("cc") == safetensors_bytes({"latent": (1, 4, 8, 8)}, "F32", header_of())


def test_the_stamp_of_a_cache_changes_with_its_entries(tmp_path):
    disk = TensorCache(tmp_path / "cache")
    stamps = [disk.stamp()]
    for key in ("aa1", "aa2", "bb"):
        disk.put(key, {"latent": torch.ones(2)})
        stamps.append(disk.stamp())
        assert disk.stamp() == stamps[-1]
    assert len(set(stamps)) == 4
