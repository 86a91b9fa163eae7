"""The shipped base model: put together, loaded and sampled by ComfyUI, and a LoRA that really learns on it."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = "lora_workbench_base.safetensors"

# What the demo's LoRA must reach on the prompts and noise that its settings were chosen on: some room below what two
# seeds of them reached (0.65 and 0.60; docs/defaults.md). One that keeps nothing loses more than half, and more than
# half leak. How much is lost takes many prompts to tell: 96 are too few for five points.
LEAST_LIKENESS, LEAST_OBEYED, MOST_LOST, MOST_LEAKED, SCENES = 0.55, 0.8, 0.05, 0.2, 192


def test_assembles_to_the_same_checkpoint_each_time(tmp_path: Path) -> None:
    from lora_workbench.lab.base_model import assemble

    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert assemble.assemble(first) == assemble.assemble(second) == assemble.card()["sha256"]["checkpoint"]
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "any").touch()
    assert first.stat().st_mode == (tmp_path / "any").stat().st_mode, "whoever may read other files may read it"
    # What is there and whole is kept; what was cut off is made anew.
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


def painted(server: ComfyServer, text: str, seed: int) -> Image.Image:
    """Sample one picture of the base model through the server, with nodes of ComfyUI alone."""
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed,
                "steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "base"}},
    }  # fmt: skip
    entry = server.run(prompt)
    return Image.open(io.BytesIO(server.view(**entry["outputs"]["7"]["images"][0]))).convert("RGB")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red circle on a white background", ("circle", "red", "white")),
        ("green square, mint background", ("square", "green", "mint")),
    ],
)
def test_paints_what_it_is_asked_for(text: str, shown: tuple[str, str, str], server: ComfyServer) -> None:
    from lora_workbench.lab.judge import reader

    found = reader.read(painted(server, text, seed=1))
    assert (found.shape, found.color, found.background) == shown


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


def painted_rows(sheet: Image.Image) -> list[np.ndarray]:
    """The four rows of the sheet below the training pictures, all of one height, without their titles."""
    pixels = np.asarray(sheet.convert("RGB"), dtype=np.float32)
    ground = pixels[0, 0]
    filled = (np.abs(pixels - ground).max(-1) > 8).mean(1) > 0.5  # lines of the sheet that are mostly pictures
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(int), [0]])))
    rows = [pixels[top:bottom] for top, bottom in zip(edges[::2], edges[1::2], strict=True) if bottom - top > 40]
    assert len(rows) == 5, [row.shape for row in rows]
    lowest = min(len(row) for row in rows[1:])
    return [row[:lowest] for row in rows[1:]]


def test_the_demo_learns_its_character(server: ComfyServer, base_checkpoint: Path, comfy_host: Any) -> None:
    """`python lab demo` on the example workflow as it is; its LoRA is then judged as the benchmark judges it."""
    import comfy.sd
    import comfy.utils
    from lora_workbench.lab.base_model.painter import Painter
    from lora_workbench.lab.demo.pictures import KEPT_COUNT, KEPT_SEED
    from lora_workbench.lab.judge.judge import TUNING, Judge
    from lora_workbench.lab.world import known

    command = [sys.executable, str(ROOT / "lab"), "demo", "--base", str(server.base)]
    command += ["--port", str(urlsplit(server.url).port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"step \d+/\d+.*loss 0\.\d+", done.stdout)) > 1, done.stdout
    assert re.search(r"trained in \d+ s with encoding", done.stdout), done.stdout
    with Image.open(re.search(r"picture sheet: (.+)", done.stdout)[1]) as sheet:
        assert sheet.width == 1200
        before, half, after, new = painted_rows(sheet)
    # Each row is something else: the sheet shows what the LoRA does, and what the other prompt does.
    for one, other in ((before, half), (half, after), (before, after), (after, new)):
        assert np.abs(one - other).mean() > 4, "two rows show the same"
    file = Path(re.search(r"LoRA: (.+)", done.stdout)[1])
    assert os.path.commonpath([file, server.base]) == str(server.base)
    assert f"lora_name {file.relative_to(server.base / 'models' / 'loras')}" in done.stdout
    assert "only with the checkpoint lora_workbench_base.safetensors, 128 x 128, 20 steps, CFG 4" in done.stdout

    painter = Painter(base_checkpoint)
    with torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(file), safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(painter.model, None, lora, 1.0, 1.0)
    kept = [caption for _, caption in known.known_pictures(KEPT_COUNT, KEPT_SEED)]
    found = Judge(painter, "zorp", count=16, series=TUNING, scenes=SCENES, kept=kept).judge(model)
    assert found.likeness >= LEAST_LIKENESS, found
    assert min(found.ground, found.worn) >= LEAST_OBEYED, found
    assert max(found.lost, found.spoiled) <= MOST_LOST and found.leaked <= MOST_LEAKED, found
