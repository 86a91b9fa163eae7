"""The shipped base model: assembled, then loaded and sampled by ComfyUI's own code in this process."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]


def test_assembles_to_the_same_checkpoint_each_time(tmp_path: Path) -> None:
    from lora_workbench.lab.base_model import assemble

    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert assemble.assemble(first) == assemble.assemble(second) == assemble.card()["sha256"]["checkpoint"]
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "any").touch()
    assert first.stat().st_mode == (tmp_path / "any").stat().st_mode, "whoever may read other files may read it"
    # A whole file is kept; a truncated one is made again.
    before = first.stat().st_mtime_ns
    assemble.assemble(first)
    assert first.stat().st_mtime_ns == before
    with first.open("r+b") as file:
        file.truncate(10_000_000)
    assemble.assemble(first)
    assert first.stat().st_size == second.stat().st_size


def test_what_is_shipped_is_small() -> None:
    from lora_workbench.lab.base_model import assemble

    assert sum(file.stat().st_size for file in (assemble.VAE, assemble.DENOISER)) <= 40e6


@pytest.mark.long
@pytest.mark.parametrize("harm", ["missing", "damaged"])
@pytest.mark.parametrize("name", ["vae.safetensors", "denoiser.safetensors", "card.json"])
def test_the_demo_says_what_is_wrong_with_the_base_model(name: str, harm: str, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    for room in ("lab", "training"):
        shutil.copytree(ROOT / room, pack / room, ignore=shutil.ignore_patterns("__pycache__"))
    file = pack / "lab" / "base_model" / name
    if harm == "missing":
        file.unlink()
    else:
        blob = bytearray(file.read_bytes())
        blob[-500] ^= 0xFF
        file.write_bytes(blob)
    command = [sys.executable, str(pack / "lab"), "prepare", "--base", str(tmp_path / "base")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "is not ComfyUI's folder" in done.stderr
    assert not (tmp_path / "base").exists()
    (tmp_path / "base" / "models").mkdir(parents=True)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"git checkout lab/base_model/{name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "base").rglob("*.safetensors"))


@pytest.mark.long
def test_the_quality_is_measured_by_its_script(comfy_host: Any, tmp_path: Path) -> None:
    """In a process of its own, as a person runs it; nothing is written."""
    from lora_workbench.lab.judge import quality

    command = [sys.executable, str(ROOT / "lab"), "evaluate", "--count", "2"]
    there = {**os.environ, "COMFYUI_PATH": str(comfy_host.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=there)
    assert done.returncode == 0, done.stderr
    for name, *_ in quality.ROWS:
        assert re.search(rf"^{name}: .*'shape'.* s a picture\)$", done.stdout, re.M), done.stdout
    for elsewhere, told in (("", "is not set"), (str(tmp_path), f"{str(tmp_path)!r}, which is not a ComfyUI")):
        done = subprocess.run(command, capture_output=True, text=True, env={**there, "COMFYUI_PATH": elsewhere})
        assert done.returncode == 1 and done.stderr.startswith("COMFYUI_PATH is"), done.stderr
        assert told in done.stderr and "Traceback" not in done.stderr


def complaints(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Load a checkpoint as CheckpointLoaderSimple does; return what the host says of keys."""
    import comfy.sd

    caplog.clear()
    with caplog.at_level(logging.DEBUG), torch.inference_mode():
        model, _, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
    assert type(model.model.model_config).__name__ == "SD3"
    assert vae.latent_channels == 16
    said = re.compile(r"(missing|unexpected|left ?over)[^a-z]*[a-z]", re.IGNORECASE)
    return [message for message in caplog.messages if "torchaudio" not in message and said.search(message)]


def test_the_host_loads_it_whole(
    base_checkpoint: Path, comfy_host: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    assert complaints(base_checkpoint, caplog) == []
    # It would say so, of each part.
    tensors, changed = load_file(base_checkpoint), tmp_path / "changed.safetensors"
    for missing in (
        "model.diffusion_model.final_layer.linear.bias",
        "first_stage_model.taesd_decoder.1.bias",
        "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias",
    ):
        save_file({name: tensor for name, tensor in tensors.items() if name != missing}, changed)
        assert missing in tensors and complaints(changed, caplog), missing
    for more in ("model.diffusion_model.more", "first_stage_model.more", "text_encoders.clip_l.transformer.more"):
        save_file({**tensors, more: torch.zeros(1)}, changed)
        assert complaints(changed, caplog), more


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False])
def test_paints_pairs_that_training_showed_and_others(known: bool, base_checkpoint: Path, comfy_host: Any) -> None:
    """Two of each shape or all eight held out; lab/base_model/README.md tells how many of a hundred are read right."""
    from lora_workbench.lab.base_model.painter import Painter
    from lora_workbench.lab.judge import reader
    from lora_workbench.lab.world import world

    pairs = sorted(world.HELD_OUT)
    if known:
        colors = sorted(world.COLORS)
        every = [(shape, colors[(3 * number + more) % len(colors)]) for number, shape in enumerate(world.SHAPES)
                 for more in (0, 4)]  # fmt: skip
        pairs = [pair for pair in every if pair not in world.HELD_OUT]
        assert len(pairs) >= 12
    prompts = [f"a {color} {shape} on a lavender background" for shape, color in pairs]
    found = [reader.read(picture) for picture in Painter(base_checkpoint).paint(prompts, range(len(pairs)))]
    right = [(one.shape, one.color, one.background) for one in found]
    wanted = [(shape, color, "lavender") for shape, color in pairs]
    assert sum(one == other for one, other in zip(right, wanted, strict=True)) >= 0.85 * len(pairs), right
