"""The shipped base model in a server: it paints, and the demo's LoRA really learns on it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = "lora_workbench_base.safetensors"

# What the demo's LoRA must reach on the prompts and noise that its settings were chosen on: some room below what two
# seeds of them reached (0.65 and 0.60; docs/defaults.md). One that keeps nothing loses more than half, and more than
# half leak. How much is lost takes many prompts to tell: 96 are too few for five points.
LEAST_LIKENESS, LEAST_OBEYED, MOST_LOST, MOST_LEAKED, SCENES = 0.55, 0.8, 0.05, 0.2, 192


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


@pytest.fixture(scope="module")
def demo(server: ComfyServer) -> str:
    """What `python lab demo` says on the example workflow as it is."""
    command = [sys.executable, str(ROOT / "lab"), "demo", "--base", str(server.base)]
    command += ["--port", str(urlsplit(server.url).port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lora_of(demo: str) -> Path:
    """The file that the demo has saved."""
    return Path(re.search(r"LoRA: (.+)", demo)[1])


@pytest.mark.long
def test_the_demo_trains_and_draws_its_sheet(demo: str, server: ComfyServer) -> None:
    assert len(re.findall(r"step \d+/\d+.*loss 0\.\d+", demo)) > 1, demo
    assert re.search(r"trained in \d+ s with encoding", demo), demo
    with Image.open(re.search(r"picture sheet: (.+)", demo)[1]) as sheet:
        assert sheet.width == 1200
        before, half, after, new = painted_rows(sheet)
    # Each row is something else: the sheet shows what the LoRA does, and what the other prompt does.
    for one, other in ((before, half), (half, after), (before, after), (after, new)):
        assert np.abs(one - other).mean() > 4, "two rows show the same"
    file = lora_of(demo)
    assert os.path.commonpath([file, server.base]) == str(server.base)
    assert f"lora_name {file.relative_to(server.base / 'models' / 'loras')}" in demo
    assert "only with the checkpoint lora_workbench_base.safetensors, 128 x 128, 20 steps, CFG 4" in demo


@pytest.mark.long
def test_the_demo_learns_its_character(demo: str, base_checkpoint: Path, comfy_host: Any) -> None:
    """Its LoRA, judged as the benchmark judges it."""
    import comfy.sd
    import comfy.utils
    from lora_workbench.lab.base_model.painter import Painter
    from lora_workbench.lab.demo.pictures import KEPT_COUNT, KEPT_SEED
    from lora_workbench.lab.judge.judge import TUNING, Judge
    from lora_workbench.lab.world import known

    painter = Painter(base_checkpoint)
    with torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(lora_of(demo)), safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(painter.model, None, lora, 1.0, 1.0)
    kept = [caption for _, caption in known.known_pictures(KEPT_COUNT, KEPT_SEED)]
    found = Judge(painter, "zorp", count=16, series=TUNING, scenes=SCENES, kept=kept).judge(model)
    assert found.likeness >= LEAST_LIKENESS, found
    assert min(found.ground, found.worn) >= LEAST_OBEYED, found
    assert max(found.lost, found.spoiled) <= MOST_LOST and found.leaked <= MOST_LEAKED, found
