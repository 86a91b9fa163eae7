"""The option nodes in a running ComfyUI: a text encoder is trained, and every way to use the LoRA paints the same."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from support.prompts import defaults, node
from support.server import ComfyServer, PromptError

CHECKPOINT = "tiny_sd15.safetensors"


def training(server: ComfyServer, name: str, options: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Photos → LoRA with its text encoder → file."""
    trainer = defaults(server, "LoRATrainer") | {"name": name, "rank": 4, "steps": 3, "learning_rate": 1e-2, **settings}
    data = defaults(server, "LoadDataset") | {"folder": "photos", "trigger": "zorp", "background": "#fefdfe"}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "data": node("LoadDataset", **data),
        "buckets": node("BucketImages", dataset=["data", 0], **defaults(server, "BucketImages") | {"resolution": 128}),
        "options": node("TextEncoderOptions", **defaults(server, "TextEncoderOptions") | options),
        "train": node(
            "LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["buckets", 0],
            text_encoder_options=["options", 0], **trainer,
        ),
        "keep": node("SaveLoRA", lora=["train", 0], name=name, precision="fp32", format="kohya", overwrite=False),
    }  # fmt: skip


def painted(source: str, name: str) -> dict[str, Any]:
    """A picture of the model and the text encoder that a node gives."""
    return {
        f"text_{name}": node("CLIPTextEncode", clip=[source, 1], text="zorp, a photo"),
        f"empty_{name}": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        f"sample_{name}": node(
            "KSampler", model=[source, 0], positive=[f"text_{name}", 0], negative=[f"text_{name}", 0],
            latent_image=[f"empty_{name}", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal",
            denoise=1.0,
        ),
        f"decode_{name}": node("VAEDecode", samples=[f"sample_{name}", 0], vae=["load", 2]),
        f"save_{name}": node("SaveImage", images=[f"decode_{name}", 0], filename_prefix=name),
    }  # fmt: skip


def picture(server: ComfyServer, entry: dict[str, Any], name: str) -> np.ndarray:
    (file,) = entry["outputs"][f"save_{name}"]["images"]
    data = server.view(file["filename"], file["subfolder"], file["type"])
    return np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def trained(server: ComfyServer) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt that trains, applies the LoRA in two strengths of the text encoder, and saves it."""
    prompt = training(server, "with_text", {"clip_l": True, "clip_l_rate": 1e-2})
    for name, strength in (("whole", 1.0), ("no_text", 0.0)):
        prompt[name] = node(
            "ApplyLoRA", model=["load", 0], clip=["load", 1], lora=["train", 0], strength_model=1.0,
            strength_clip=strength,
        )  # fmt: skip
        prompt |= painted(name, f"{name}_picture")
    return prompt, server.run(prompt, timeout=300)


def test_load_lora_paints_the_same_as_apply_lora(server, trained):
    _, entry = trained
    prompt = {
        "load": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "file": node(
            "LoraLoader", model=["load", 0], clip=["load", 1], lora_name="with_text.safetensors", strength_model=1.0,
            strength_clip=1.0,
        ),
        **painted("file", "file_picture"),
    }  # fmt: skip
    whole = picture(server, entry, "whole_picture")
    assert abs(whole - picture(server, server.run(prompt, timeout=120), "file_picture")).max() <= 1
    assert abs(whole - picture(server, entry, "no_text_picture")).max() > 1, "the text encoder has learned nothing"


def test_the_file_says_what_was_trained(server, trained):
    _, entry = trained
    with safe_open(Path(entry["outputs"]["keep"]["text"][0]), framework="np") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert sum(key.startswith("lora_te_text_model_encoder_layers_") for key in keys) == 12 * 6 * 3
    assert float(metadata["ss_text_encoder_lr"]) == 1e-2 and float(metadata["ss_unet_lr"]) == 1e-2
    folder = server.base / "output" / "lora_workbench" / "with_text"
    assert json.loads((folder / "config.json").read_text())["clip_l"] is True


def test_apply_lora_says_when_no_text_encoder_was_trained(server):
    plain = training(server, "no_text_encoder", {})
    del plain["train"]["inputs"]["text_encoder_options"], plain["options"]
    plain["apply"] = node(
        "ApplyLoRA", model=["load", 0], clip=["load", 1], lora=["train", 0], strength_model=1.0, strength_clip=1.0
    )
    plain |= painted("apply", "plain_picture")
    mark = len(server.events)
    server.run(plain, timeout=240)
    said = [event["data"]["text"] for event in server.events[mark:] if event["type"] == "progress_text"]
    assert any(text.startswith("strength_clip has no effect: no layer of this LoRA") for text in said)


def test_an_encoder_that_the_clip_lacks_is_refused(server):
    with pytest.raises(PromptError, match="clip g is on in Text Encoder Options, but this CLIP has clip_l"):
        server.run(training(server, "refused", {"clip_g": True}), timeout=120)


def test_samples_of_a_run_and_its_checkpoints(server):
    """The files carry the prompt and the workflow, Compare Checkpoints hands one on, and bad prompts are refused."""
    prompt = training(server, "sampled", {}, save_every_steps=1, steps=2)
    del prompt["train"]["inputs"]["text_encoder_options"], prompt["options"], prompt["keep"]
    settings = {"prompts": "zorp --d 7\n# not this\na hat", "width": 64, "height": 64, "steps": 1, "cfg": 1.0}
    prompt["prompts"] = node("SamplePrompts", **defaults(server, "SamplePrompts") | settings)
    prompt["train"]["inputs"]["sample_prompts"] = ["prompts", 0]
    prompt["compare"] = node(
        "CompareCheckpoints", model=["load", 0], clip=["load", 1], vae=["load", 2], run=["train", 2],
        sample_prompts=["prompts", 0], **defaults(server, "CompareCheckpoints") | {"chosen": "step 1"},
    )  # fmt: skip
    prompt["keep"] = node(
        "SaveLoRA", lora=["compare", 1], name="first", precision="fp32", format="kohya", overwrite=True
    )
    workflow = {"id": "one", "nodes": []}
    entry = server.wait(server.queue(prompt, extra_data={"extra_pnginfo": {"workflow": workflow}}), timeout=300)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    outputs = entry["outputs"]
    folder = server.base / "output" / "lora_workbench" / outputs["train"]["lora_workbench_run"][0]["name"]
    names = [f"step{step:08d}-{number}.png" for step in (0, 2) for number in (1, 2)]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == names
    carried = Image.open(folder / "samples" / names[0]).text
    queued = {name: part["inputs"] for name, part in json.loads(carried["prompt"]).items()}
    assert queued == {name: part["inputs"] for name, part in prompt.items()}
    assert json.loads(carried["workflow"]) == workflow
    assert carried["parameters"].startswith("zorp\nSteps: 1, Sampler: euler,")
    (sheet,) = outputs["compare"]["images"]
    with Image.open(BytesIO(server.view(sheet["filename"], sheet["subfolder"], sheet["type"]))) as image:
        assert image.height > 3 * 64
    with (
        safe_open(folder / "sampled-step00000001.safetensors", framework="np") as one,
        safe_open(Path(outputs["keep"]["text"][0]), framework="np") as other,
    ):
        assert all((one.get_tensor(key) == other.get_tensor(key)).all() for key in one.keys())  # noqa: SIM118
    prompt["prompts"]["inputs"]["prompts"] = "zorp --x 3"
    with pytest.raises(PromptError, match="'zorp --x 3' has the unknown option --x"):
        server.run(prompt, timeout=120)
