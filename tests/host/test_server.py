"""The nodes in a running ComfyUI, over HTTP: train, sample and save in one prompt, cancel, bad input."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from support.prompts import IDS, defaults, node
from support.server import PromptError, PromptInterrupted

CHECKPOINT = "tiny_sd15.safetensors"


def spine(server, name: str, folder: str = "photos", **settings: Any) -> dict[str, Any]:
    """Photos → dataset → buckets → LoRA → two samples (strength 0 and 1) → file, as one prompt."""
    buckets = defaults(server, "BucketImages") | {"resolution": 128, "step": 32}
    trainer = defaults(server, "LoRATrainer") | {"name": name, "rank": 4, "steps": 3, "learning_rate": 1e-2, **settings}
    buckets |= trainer.pop("buckets", {})
    # A colour of its own keeps these pictures apart from those that other test files left in the server's cache.
    data = {"folder": folder, "trigger": "zorp", "background": "#fefefe"}
    prompt = {
        "load": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "data": node("LoadDataset", **defaults(server, "LoadDataset") | data),
        "buckets": node("BucketImages", dataset=["data", 0], **buckets),
        "train": node(
            "LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["buckets", 0], **trainer
        ),
        "text": node("CLIPTextEncode", clip=["load", 1], text="zorp, a photo"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sheet": node("SaveImage", images=["buckets", 1], filename_prefix=f"{name}_sheet"),
        "keep": node("SaveLoRA", lora=["train", 0], name=name, precision="fp32", format="kohya", overwrite=False),
    }
    for strength in (0, 1):
        prompt |= {
            f"apply{strength}": node(
                "ApplyLoRA", model=["load", 0], clip=["load", 1], lora=["train", 0],
                strength_model=float(strength), strength_clip=float(strength),
            ),
            f"sample{strength}": node(
                "KSampler", model=[f"apply{strength}", 0], positive=["text", 0], negative=["text", 0],
                latent_image=["empty", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal",
                denoise=1.0,
            ),
            f"decode{strength}": node("VAEDecode", samples=[f"sample{strength}", 0], vae=["load", 2]),
            f"save{strength}": node("SaveImage", images=[f"decode{strength}", 0], filename_prefix=f"{name}_{strength}"),
        }  # fmt: skip
    return prompt


def picture(server, entry, saver: str) -> np.ndarray:
    (file,) = entry["outputs"][saver]["images"]
    data = server.view(file["filename"], file["subfolder"], file["type"])
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def run_folder(server, name: str) -> Path:
    return Path(server.base) / "output" / "lora_workbench" / name


def summary(server, name: str) -> dict[str, Any]:
    return json.loads((run_folder(server, name) / "summary.json").read_text())


@pytest.fixture(scope="module")
def spine_run(server):
    """One prompt that trains, samples twice and saves; the tests look at what it left."""
    mark = len(server.events)
    entry = server.run(spine(server, "spine", save_every_steps=2), timeout=240)
    return entry, server.events[mark:]


def test_the_pack_is_loaded(server):
    assert "IMPORT FAILED" not in "\n".join(line for line in server.log.splitlines() if "lora-workbench" in line)
    info = server.object_info()
    for kind in IDS:
        assert info[f"LoRAWorkbench_{kind}"]["category"] == "LoRA Workbench"


def test_trains_samples_and_saves_in_one_prompt(server, spine_run):
    entry, _ = spine_run
    before, after = picture(server, entry, "save0"), picture(server, entry, "save1")
    assert before.shape == after.shape == (128, 128, 3)
    assert (before != after).any(), "the LoRA has no effect"
    sheet = picture(server, entry, "sheet")
    assert sheet.shape[1] == 1200 and sheet.std() > 10
    told = summary(server, "spine")
    assert told["outcome"] == "finished" and told["steps"] == 3 and len(told["losses"]) == 3
    assert all(0 < loss < 100 for loss in told["losses"])
    assert sorted(path.name for path in run_folder(server, "spine").iterdir()) == [
        "config.json", "layers.json", "log.jsonl", "losses.csv", "report.html", "run.json",
        "spine-step00000002.safetensors",
        "spine.safetensors", "summary.json",
    ]  # fmt: skip


def test_the_file_is_true_to_the_run(server, spine_run):
    path = Path(server.base) / "models" / "loras" / "spine.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight" in tensors
    assert {key.rsplit(".", 2)[-2] for key in tensors if key.endswith("weight")} == {"lora_down", "lora_up"}
    assert metadata["ss_network_dim"] == "4" and metadata["ss_steps"] == "3"
    assert metadata["modelspec.trigger_phrase"] == "zorp"
    frequency = json.loads(metadata["ss_tag_frequency"])
    assert all("zorp" in tags for tags in frequency.values())
    assert json.loads(metadata["ss_bucket_info"])["buckets"]


def test_progress_reaches_the_node(server, spine_run):
    _, events = spine_run
    texts = [e["data"]["text"] for e in events if e["type"] == "progress_text" and e["data"]["node"] == "train"]
    assert any(text.startswith("step 3/3 · epoch 1/") and "loss" in text and "left" in text for text in texts), texts
    bars = [e for e in events if e["type"] in ("progress", "progress_state")]
    assert any("train" in json.dumps(bar["data"]) for bar in bars)
    assert any("picture" in e["data"]["text"] for e in events if e["type"] == "progress_text")


def test_the_file_samples_the_same_picture_as_apply_lora(server, spine_run):
    entry, _ = spine_run
    prompt = spine(server, "unused")
    for part in ("data", "buckets", "train", "sheet", "keep", "apply0", "sample0", "decode0", "save0"):
        del prompt[part]
    prompt["apply1"] = node(
        "LoraLoader", model=["load", 0], clip=["load", 1], lora_name="spine.safetensors", strength_model=1.0,
        strength_clip=1.0,
    )  # fmt: skip
    loaded = server.run(prompt, timeout=60)
    assert (picture(server, entry, "save1") == picture(server, loaded, "save1")).all()


def test_a_second_run_encodes_nothing_and_repeats_bit_for_bit(server, spine_run):
    prompt = {k: v for k, v in spine(server, "again").items() if k in ("load", "data", "buckets", "train", "keep")}
    server.run(prompt, timeout=120)
    told = summary(server, "again")
    assert (told["encoded_latents"], told["encoded_captions"]) == (0, 0)
    assert summary(server, "spine")["encoded_latents"] == 8
    loras = Path(server.base) / "models" / "loras"
    first, second = load_file(loras / "spine.safetensors"), load_file(loras / "again.safetensors")
    assert first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)
    # Other settings, same pictures: still nothing to encode.
    prompt["train"]["inputs"] |= {"rank": 8, "seed": 5, "name": "other"}
    prompt["keep"]["inputs"]["name"] = "other"
    server.run(prompt, timeout=120)
    assert summary(server, "other")["encoded_latents"] == 0


def test_a_change_on_disk_runs_the_node_again_and_nothing_else_does(server, spine_run):
    data = {k: v for k, v in spine(server, "spine").items() if k in ("data", "buckets", "sheet")}
    folder = Path(server.base) / "input" / "photos"

    def executed() -> set[str]:
        mark = len(server.events)
        server.run(data, timeout=60)
        return {e["data"]["node"] for e in server.events[mark:] if e["type"] == "executing" and e["data"].get("node")}

    executed()
    assert executed() == set()
    caption = next(folder.rglob("*.txt"))
    text = caption.read_text(encoding="utf-8")
    caption.write_text(text + ", changed", encoding="utf-8")
    try:
        assert "data" in executed()
    finally:
        caption.write_text(text, encoding="utf-8")


def steps_shown(server, mark: int) -> int:
    """The step that the trainer's text last told."""
    texts = [e["data"]["text"] for e in server.events[mark:] if e["type"] == "progress_text"]
    return max(int(text.split()[1].partition("/")[0]) for text in texts if text.startswith("step "))


@pytest.mark.long
def test_queueing_again_after_a_cancel_trains_again(server):
    """The half-trained LoRA is shown once; it does not pass for the trained one."""
    prompt = {k: v for k, v in spine(server, "twice", steps=40).items() if k in ("load", "data", "buckets", "train")}
    prompt["keep"] = node("SaveLoRA", lora=["train", 0], name="twice", precision="fp16", format="kohya", overwrite=True)
    mark = len(server.events)
    prompt_id = server.queue(prompt)
    deadline = time.monotonic() + 120
    while not any(e["type"] == "progress_text" and e["data"]["text"].startswith("step ") for e in server.events[mark:]):
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.02)
    server.interrupt()
    server.wait(prompt_id, timeout=90)
    assert summary(server, "twice")["outcome"] == "cancelled"
    server.run(prompt, timeout=120)
    told = summary(server, "twice-2")
    assert (told["outcome"], told["steps"]) == ("finished", 40)
    server.run(prompt, timeout=120)
    assert not run_folder(server, "twice-3").exists(), "a finished training was done again"


def test_names_can_come_from_other_nodes(server):
    parts = ("load", "data", "buckets", "train", "keep")
    prompt = {k: v for k, v in spine(server, "unused", steps=1).items() if k in parts}
    prompt["name"] = node("PrimitiveString", value="linked")
    for part in ("train", "keep"):
        prompt[part]["inputs"]["name"] = ["name", 0]
    server.run(prompt, timeout=120)
    assert (Path(server.base) / "models" / "loras" / "linked.safetensors").exists()
    prompt["name"]["inputs"]["value"] = "a/b"
    assert "slash" in trouble(server, prompt)


@pytest.mark.parametrize("keep", [True, False])
def test_cancel(server, keep):
    """ComfyUI's own button: the graph goes on with what was trained, or the queue stops; saved either way."""
    name = f"cancelled_{keep}"
    choices = ["keep and go on", "stop the queue"]
    prompt = spine(server, name, steps=100_000, on_cancel=choices[0 if keep else 1])
    mark = len(server.events)
    prompt_id = server.queue(prompt)
    deadline = time.monotonic() + 120
    while not any(
        e["type"] == "progress_text" and e["data"]["text"].startswith("step ") for e in server.events[mark:]
    ):
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.1)
    server.interrupt()
    shown = steps_shown(server, mark)
    entry = server.wait(prompt_id, timeout=90)
    told = summary(server, name)
    # The button is answered within one micro-step; the text a node shows is up to a fifth of a second old.
    assert told["outcome"] == "cancelled" and 0 < told["steps"] <= shown + 10
    assert (run_folder(server, name) / f"{name}.safetensors").exists()
    if keep:
        assert (picture(server, entry, "save0") != picture(server, entry, "save1")).any()
    else:
        assert "save1" not in entry["outputs"]


def test_images_of_any_node_can_be_trained(server):
    files = sorted((Path(server.base) / "input" / "photos").rglob("*.jpg"))
    shown = files[0].relative_to(Path(server.base) / "input").as_posix()
    prompt = {k: v for k, v in spine(server, "from_images").items() if k in ("load", "buckets", "train", "keep")}
    prompt |= {
        "image": node("LoadImage", image=shown),
        "data": node("ImagesToDataset", images=["image", 0], captions="a photo", repeats=3, trigger="zorp", name="us"),
    }
    server.run(prompt, timeout=120)
    assert summary(server, "from_images")["images"] == 3


def trouble(server, prompt: dict[str, Any]) -> str:
    with pytest.raises(PromptError) as raised:
        server.run(prompt, timeout=120)
    assert not isinstance(raised.value, PromptInterrupted)
    return str(raised.value)


def upload(server, folder: str, **files: bytes) -> None:
    place = Path(server.base) / "input" / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name.replace("__", ".")).write_bytes(data)


def jpeg(width: int = 160, height: int = 120) -> bytes:
    out = BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def test_bad_folders(server):
    assert "The folder 'never_was' does not exist" in trouble(server, spine(server, "bad", folder="never_was"))
    upload(server, "empty", readme__md=b"x")
    assert "png" in trouble(server, spine(server, "bad", folder="empty"))
    assert "outside ComfyUI's input folder" in trouble(server, spine(server, "bad", folder="../models"))
    upload(server, "torn_text", a__jpg=jpeg(), a__txt="猫が好き".encode()[:-1])
    assert "UTF-8" in trouble(server, spine(server, "bad", folder="torn_text"))
    assert not run_folder(server, "bad").exists()


def test_unreadable_pictures_are_named_and_skipped(server):
    upload(server, "torn", good__jpg=jpeg(), torn__jpg=jpeg()[:2000], junk__png=b"not a picture")
    parts = ("load", "data", "buckets", "train")
    prompt = {k: v for k, v in spine(server, "torn", folder="torn").items() if k in parts}
    prompt["keep"] = node(
        "SaveLoRA", lora=["train", 0], name="torn", precision="fp16", format="PEFT", overwrite=True
    )
    server.run(prompt, timeout=120)
    assert summary(server, "torn")["images"] == 3  # three steps of the one good picture
    assert "torn.jpg" in server.log and "junk.png" in server.log
    skipped = " ".join(summary(server, "torn")["skipped"])
    assert "torn.jpg" in skipped and "junk.png" in skipped
    upload(server, "all_torn", torn__jpg=jpeg()[:2000])
    assert "torn.jpg" in trouble(server, spine(server, "bad", folder="all_torn"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "a/b"}, "slash"),
        ({"name": "what?"}, "'?'"),
        ({"buckets": {"resolution": 100, "step": 32}}, "multiple of"),
        ({"buckets": {"upscale": False, "resolution": 4096, "min_side": 2048}}, "Turn upscale on"),
        ({"optimizer": "Prodigy", "learning_rate": 1e-4}, "Set it to 1"),
    ],
    ids=str,
)
def test_bad_settings(server, settings, words):
    prompt = spine(server, **{"name": "bad", **settings})
    del prompt["sheet"], prompt["keep"]  # they have no part in it: the host would run them all the same
    assert words in trouble(server, prompt)
    assert not run_folder(server, "bad").exists()


def test_rank_0_is_refused(server):
    prompt = spine(server, "bad", rank=0)
    del prompt["sheet"]
    assert "rank" in trouble(server, prompt)


def test_what_an_ended_process_left_unfinished_is_swept_at_start(server):
    """The fixture put such a file into each folder before the server started."""
    until = time.monotonic() + 30
    left = [server.base]
    while left and time.monotonic() < until:
        left = list(server.base.rglob(".lora_workbench-*-7f00-0.part"))
    assert left == []
