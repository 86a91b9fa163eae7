"""LoRA files on disk: layouts, hashes, and that nothing is lost or left half written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from lora_workbench.training.disk import safe_name
from lora_workbench.training.errors import SettingError, UserError
from lora_workbench.training.files import export
from lora_workbench.training.lora import DiffusersTarget, LayerNames, LoraModel
from safetensors.torch import load_file, save_file


def make_lora(scale: float = 1.0, in_features: int = 12, metadata: dict[str, str] | None = None) -> LoraModel:
    """One fused layer that diffusers splits in three, one 1x1 convolution, one without diffusers' name."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors, layers = {}, {}

    def add(names: LayerNames, down: torch.Tensor, up: torch.Tensor, alpha: float) -> None:
        layers[names.kohya] = names
        tensors[f"{names.kohya}.lora_down.weight"] = down
        tensors[f"{names.kohya}.lora_up.weight"] = up
        tensors[f"{names.kohya}.alpha"] = torch.tensor(alpha)

    split = tuple(DiffusersTarget(f"transformer.b.0.to_{part}", 6 * i, 6) for i, part in enumerate("qkv"))
    add(LayerNames("diffusion_model.b.0.qkv", "lora_unet_b_0_qkv", split), draw(4, in_features), draw(18, 4), 2.0)
    whole = (DiffusersTarget("unet.proj_in"),)
    conv = LayerNames("diffusion_model.proj_in", "lora_unet_proj_in", whole)
    add(conv, draw(4, 5, 1, 1), draw(7, 4, 1, 1), 4.0)
    add(LayerNames("diffusion_model.odd", "lora_unet_odd"), draw(4, 3), draw(3, 4), 8.0)
    return LoraModel(tensors, layers, metadata)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, read by hand."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__", {})


def delta(tensors: dict[str, torch.Tensor], name: str, scale: float = 1.0) -> torch.Tensor:
    return scale * tensors[f"{name}.lora_B.weight"].flatten(1) @ tensors[f"{name}.lora_A.weight"].flatten(1)


def kohya_delta(lora: LoraModel, name: str) -> torch.Tensor:
    down, up = lora[f"{name}.lora_down.weight"].flatten(1), lora[f"{name}.lora_up.weight"].flatten(1)
    return lora[f"{name}.alpha"].item() / down.shape[0] * up @ down


def test_kohya_keeps_names_shapes_and_values() -> None:
    lora = make_lora()
    tensors = export.to_kohya(lora, torch.float16)
    assert set(tensors) == set(lora)
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.float16 and tensor.shape == lora[key].shape
        assert torch.equal(tensor, lora[key].half())
    assert tensors["lora_unet_b_0_qkv.alpha"].shape == ()


def test_kohya_of_a_foreign_lora_is_left_as_it_is() -> None:
    foreign = LoraModel({"x.hada_w1_a": torch.ones(2, 2), "x.reshape_weight": torch.tensor([3, 4])})
    tensors = export.to_kohya(foreign, torch.bfloat16)
    assert tensors["x.hada_w1_a"].dtype == torch.bfloat16
    assert tensors["x.reshape_weight"].dtype == torch.int64


def test_kohya_makes_copies() -> None:
    lora = make_lora()
    tensors = export.to_kohya(lora, torch.float32)
    tensors["lora_unet_odd.lora_up.weight"].zero_()
    assert lora["lora_unet_odd.lora_up.weight"].abs().sum() > 0


def test_peft_splits_fused_rows_and_folds_the_scale_in() -> None:
    lora = make_lora()
    tensors = export.to_peft(lora, torch.float32)
    whole = kohya_delta(lora, "lora_unet_b_0_qkv")
    parts = [delta(tensors, f"transformer.b.0.to_{part}") for part in "qkv"]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert tensors["transformer.b.0.to_k.lora_A.weight"].shape == (4, 12)
    assert tensors["transformer.b.0.to_k.lora_B.weight"].shape == (6, 4)
    torch.testing.assert_close(
        delta(tensors, "diffusion_model.odd"), kohya_delta(lora, "lora_unet_odd")
    )  # no diffusers name: by its path
    assert not [key for key in tensors if "alpha" in key]


def test_peft_keeps_convolutions_four_dimensional() -> None:
    tensors = export.to_peft(make_lora(), torch.float32)
    assert tensors["unet.proj_in.lora_A.weight"].shape == (4, 5, 1, 1)
    assert tensors["unet.proj_in.lora_B.weight"].shape == (7, 4, 1, 1)


def test_peft_refuses_a_foreign_lora() -> None:
    with pytest.raises(UserError, match="not trained by LoRA Workbench"):
        export.to_peft(LoraModel(dict(make_lora())), torch.float32)


def test_peft_drops_nothing_silently() -> None:
    lora = make_lora()
    lora["lora_unet_odd.dora_scale"] = torch.ones(3, 1)
    with pytest.raises(UserError, match="dora_scale"):
        export.to_peft(lora, torch.float32)


# --- hashes ---------------------------------------------------------------------------------------------


def hashes_by_hand(tensors: dict[str, torch.Tensor], metadata: dict[str, str], folder: Path) -> tuple[str, str]:
    """From the description: a file with only ss_ metadata; its bytes after the header; 64 KiB at 1 MiB."""
    file = folder / "by_hand.safetensors"
    save_file(tensors, file, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    stream = io.BytesIO(file.read_bytes())
    stream.seek(8 + int.from_bytes(stream.read(8), "little"))
    model_hash = hashlib.sha256(stream.read()).hexdigest()
    stream.seek(0x100000)
    return model_hash, hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]


@pytest.mark.parametrize("in_features", [12, 500_000], ids=["smaller than 1 MiB", "larger"])
def test_hashes_are_kohyas(tmp_path: Path, in_features: int) -> None:
    metadata = {"ss_steps": "7", "ss_tag_frequency": '{"1_a": {"x": 1}}', "modelspec.title": "not hashed"}
    tensors = export.to_kohya(make_lora(in_features=in_features), torch.float16)
    expected = hashes_by_hand(tensors, metadata, tmp_path)
    assert export.model_hashes(tensors, metadata) == expected
    assert (expected[1] == "e3b0c442") == (in_features == 12)


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_written_hash_is_that_of_the_bytes_on_disk(tmp_path: Path, layout: str) -> None:
    lora = make_lora(metadata={"ss_steps": "7", "modelspec.title": "t"})
    path = export.write_lora(tmp_path / "a", lora, layout=layout, precision="bf16")
    content, metadata = path.read_bytes(), metadata_of(path)
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    assert len(metadata["sshs_legacy_hash"]) == 8
    assert metadata["ss_steps"] == "7" and metadata["modelspec.title"] == "t"


# --- writing --------------------------------------------------------------------------------------------


def test_file_is_named_and_holds_the_lora(tmp_path: Path) -> None:
    lora = make_lora()
    path = export.write_lora(tmp_path / "new folder" / "v1.5", lora, precision="fp32")
    assert path == tmp_path / "new folder" / "v1.5.safetensors"
    loaded = load_file(path)
    assert set(loaded) == set(lora)
    assert all(torch.equal(loaded[key], lora[key]) for key in lora)
    assert os.listdir(path.parent) == [path.name]


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    first = export.write_lora(tmp_path / "a.safetensors", make_lora(1.0))
    before = first.read_bytes()
    names = [export.write_lora(tmp_path / "a.safetensors", make_lora(0.5)).name for _ in range(2)]
    assert names == ["a-2.safetensors", "a-3.safetensors"]
    assert first.read_bytes() == before


def test_overwrite_replaces(tmp_path: Path) -> None:
    path = export.write_lora(tmp_path / "a", make_lora(1.0), precision="fp32")
    again = export.write_lora(tmp_path / "a", make_lora(0.5), precision="fp32", overwrite=True)
    assert again == path and os.listdir(tmp_path) == ["a.safetensors"]
    key = "lora_unet_odd.lora_up.weight"
    assert torch.equal(load_file(path)[key], make_lora(0.5)[key])


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"disk is full.* It needs \d+\.\d MiB; \d+\.\d MiB are free\."),
        (errno.EACCES, r"write to .*a\.safetensors"),
        (errno.EROFS, r"write to .*a\.safetensors"),
        (errno.EIO, r"a\.safetensors could not be written"),
    ],
)
def test_a_disk_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, said: str
) -> None:
    kept = export.write_lora(tmp_path / "a", make_lora())
    before = kept.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(UserError, match=said) as caught:
        export.write_lora(tmp_path / "a", make_lora(0.5), overwrite=True)
    assert str(tmp_path) in str(caught.value)
    assert os.listdir(tmp_path) == [kept.name] and kept.read_bytes() == before


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "loras").write_text("")
    with pytest.raises(UserError, match="loras"):
        export.write_lora(tmp_path / "loras" / "a", make_lora())


def test_no_half_file_is_ever_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the bytes are on the disk there is no file that any list of LoRAs would show."""
    seen: list[list[str]] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(os.listdir(tmp_path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    export.write_lora(tmp_path / "a", make_lora())
    assert len(seen) == 1 and not [name for name in seen[0] if name.endswith(".safetensors")]


def test_overflow_names_layer_and_way_out(tmp_path: Path) -> None:
    lora = make_lora()
    lora["lora_unet_odd.lora_up.weight"][0, 0] = 70_000.0
    with pytest.raises(UserError, match=r"lora_unet_odd.*bf16 or fp32"):
        export.write_lora(tmp_path / "a", lora, precision="fp16")
    assert os.listdir(tmp_path) == []
    export.write_lora(tmp_path / "a", lora, precision="bf16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_lora_is_refused(tmp_path: Path, value: float) -> None:
    lora = make_lora()
    lora["lora_unet_odd.lora_down.weight"][0, 0] = value
    with pytest.raises(UserError, match="lora_unet_odd.*learning rate"):
        export.write_lora(tmp_path / "a", lora, precision="fp32")
    assert os.listdir(tmp_path) == []


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="fp16, bf16, fp32"):
        export.write_lora(tmp_path / "a", make_lora(), precision="fp8")
    with pytest.raises(SettingError, match="kohya, peft"):
        export.write_lora(tmp_path / "a", make_lora(), layout="pickle")


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = safe_name("猫" * 66)
    export.write_lora(tmp_path / name, make_lora())
    assert export.write_lora(tmp_path / name, make_lora()).name == f"{name}-2.safetensors"
