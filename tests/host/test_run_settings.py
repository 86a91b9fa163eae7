"""What the trainer and Save LoRA say and accept in a running ComfyUI: steps, names, the base model, old prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from support.prompts import defaults, node
from support.server import ComfyServer, PromptError

CHECKPOINT = "tiny_sd15.safetensors"
ADDED = ("train_without_captions", "warn_about_steps", "memory", "if_run_before", "tensorboard")


def graph(server: ComfyServer, name: str, trigger: str = "zorp", **settings: Any) -> dict[str, Any]:
    """One folder at two resolutions, a training of three steps, and a file."""
    trainer = defaults(server, "LoRATrainer") | {"name": name, "rank": 2, "steps": 3, **settings}
    buckets = defaults(server, "BucketImages")
    data = {"folder": "photos", "trigger": trigger, "background": "#fdfefe"}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "data": node("LoadDataset", **defaults(server, "LoadDataset") | data),
        "small": node("BucketImages", dataset=["data", 0], **buckets | {"resolution": 64}),
        "large": node("BucketImages", dataset=["data", 0], **buckets | {"resolution": 128}),
        "both": node("ConcatDatasets", first=["small", 0], second=["large", 0], first_weight=1.0, second_weight=1.0),
        "train": node("LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["both", 0],
                      **trainer),
        "keep": node("SaveLoRA", lora=["train", 0], **defaults(server, "SaveLoRA")),
    }  # fmt: skip


def texts(server: ComfyServer, mark: int, number: str) -> list[str]:
    said = [event["data"] for event in server.events[mark:] if event["type"] == "progress_text"]
    return [data["text"] for data in said if data["node"] == number]


def saved(entry: dict[str, Any]) -> tuple[Path, dict[str, str]]:
    path = Path(entry["outputs"]["keep"]["text"][0])
    with safe_open(path, framework="np") as file:
        return path, file.metadata()


def summary(server: ComfyServer, name: str) -> dict[str, Any]:
    return json.loads((server.base / "output" / "lora_workbench" / name / "summary.json").read_text())


@pytest.fixture(scope="module")
def run(server: ComfyServer) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A run with a seed of its own and a warm-up that is too long."""
    prompt, mark = graph(server, "told", seed=11, warmup_steps=9), len(server.events)
    return prompt, server.run(prompt, timeout=240), mark


def test_the_warnings_stay_in_the_node_while_it_trains(server, run):
    """kohya_ss #735."""
    said = texts(server, run[2], "train")
    assert any(text.startswith("Trains 3 steps: 1 epoch of 32 pictures") for text in said), said
    steps = [text for text in said if text.startswith("step ")]
    assert steps and all("3 steps are few" in text and "warmup steps is 9" in text for text in steps)
    assert said[-1].startswith("finished: 3 steps") and said[-1].count("3 steps are few") == 1
    assert "told, seed 11" in said[-1]
    assert len(summary(server, "told")["hints"]) == 2 and summary(server, "told")["seed"] == 11


def test_save_lora_takes_the_runs_name_and_says_where_the_lora_is_from(server, run):
    path, metadata = saved(run[1])
    assert path.name == "told.safetensors"
    assert run[1]["outputs"]["keep"]["text"][1] == "run told, seed 11"
    assert texts(server, run[2], "keep") == [f"{path}\nrun told, seed 11"]
    assert (metadata["ss_output_name"], metadata["ss_seed"]) == ("told", "11")


def test_the_file_names_the_base_model_and_both_resolutions(server, run):
    """sd-scripts #557, musubi-tuner #882."""
    _, metadata = saved(run[1])
    data = (server.base / "models" / "checkpoints" / CHECKPOINT).read_bytes()
    assert metadata["ss_sd_model_name"] == CHECKPOINT
    assert metadata["ss_sd_model_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert metadata["ss_resolution"] == "(64, 64), (128, 128)"
    parts = json.loads(metadata["ss_datasets"])
    assert [(part["resolution"], part["num_train_images"]) for part in parts] == [([64, 64], 16), ([128, 128], 16)]
    assert list(json.loads(metadata["ss_dataset_dirs"])) == ["2_photo", "2_photo (2)"]


def test_nothing_changed_trains_nothing_again(server, run):
    """Also where the same graph comes with another layout, or from a subgraph, whose ids have colons."""
    prompt, _, _ = run
    server.run(prompt, timeout=120)
    assert not (server.base / "output" / "lora_workbench" / "told-2").exists()
    inside = json.loads(json.dumps(prompt).replace('"load"', '"9:load"'))
    server.run(inside, timeout=120)
    assert not (server.base / "output" / "lora_workbench" / "told-2").exists()


def test_a_prompt_of_the_first_version_runs(server):
    prompt = graph(server, "before")
    for name in ADDED:
        del prompt["train"]["inputs"][name]
    prompt["keep"]["inputs"]["name"] = "my_lora"
    path, metadata = saved(server.run(prompt, timeout=240))
    assert path.name == "my_lora.safetensors" and metadata["ss_output_name"] == "before"


def test_a_folder_without_words_is_refused_unless_it_is_meant(server):
    words = "Write a trigger in Load Dataset or caption the pictures"
    bare = server.base / "input" / "bare"
    if not bare.exists():
        from PIL import Image

        bare.mkdir()
        Image.linear_gradient("L").convert("RGB").save(bare / "a.png")
    prompt = graph(server, "silent", trigger="")
    prompt["data"]["inputs"]["folder"] = "bare"
    with pytest.raises(PromptError, match=words):
        server.run(prompt, timeout=120)
    assert not (server.base / "output" / "lora_workbench" / "silent").exists()
    prompt["train"]["inputs"]["train_without_captions"] = True
    server.run(prompt, timeout=240)
    assert summary(server, "silent")["outcome"] == "finished"
