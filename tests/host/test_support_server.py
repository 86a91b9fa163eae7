"""The server that the other host tests stand on."""

from __future__ import annotations

import io
import time

import pytest
from PIL import Image
from support.server import PromptError


def graph(seed: int = 0, steps: int = 2, sampler: str = "euler") -> dict:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a cat"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": seed,
            "steps": steps, "cfg": 1.0, "sampler_name": sampler, "scheduler": "normal", "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "support"}},
    }


def test_server_runs_a_graph(server):
    info = server.object_info()
    assert "tiny_sd15.safetensors" in info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    entry = server.run(graph())
    [image] = entry["outputs"]["6"]["images"]
    assert Image.open(io.BytesIO(server.view(**image))).size == (64, 64)
    assert {"executing", "progress", "executed", "execution_success"} <= {event["type"] for event in server.events}


def test_server_says_what_validation_refused(server):
    with pytest.raises(PromptError, match="KSampler.*node 4.*sampler_name"):
        server.run(graph(sampler="nonesuch"))


def test_server_says_what_a_node_raised(server):
    broken = graph()
    broken["1"]["inputs"]["ckpt_name"] = "broken.safetensors"
    (server.base / "models" / "checkpoints" / "broken.safetensors").write_bytes(b"not a model")
    with pytest.raises(PromptError, match="CheckpointLoaderSimple"):
        server.run(broken)


def test_server_interrupts(server):
    prompt_id = server.queue(graph(seed=1, steps=10000))
    seen = len(server.events)
    while not any(event["type"] == "progress" for event in server.events[seen:]):
        time.sleep(0.05)
    server.interrupt()
    entry = server.wait(prompt_id, timeout=30)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
