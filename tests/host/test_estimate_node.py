"""Estimate Training in a running ComfyUI: what it reports, its cancel, and what it refuses."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save
from support.photos import write_photos
from support.prompts import defaults, node
from support.server import ComfyServer, PromptError

SOCKETS = {"model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2], "dataset": ["buckets", 0]}


@pytest.fixture(scope="module", autouse=True)
def pictures(server: ComfyServer) -> None:
    write_photos(server.base / "input" / "estimated" / "2_photo", ["cat", "coffee", "rocket"], longest=128)


def graph(
    server: ComfyServer, dataset: str = "buckets", folder: str = "estimated", **settings: Any
) -> dict[str, Any]:
    """Three photos into Estimate Training."""
    data = {"folder": folder, "trigger": "zorp"}
    inputs = {**defaults(server, "EstimateTraining"), **SOCKETS, "dataset": [dataset, 0], "rank": 2, **settings}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "data": node("LoadDataset", **defaults(server, "LoadDataset") | data),
        "buckets": node("BucketImages", dataset=["data", 0], **defaults(server, "BucketImages") | {"resolution": 64}),
        "estimate": node("EstimateTraining", **inputs),
    }


def panel(entry: dict[str, Any]) -> dict[str, Any]:
    (found,) = entry["outputs"]["estimate"]["lora_workbench_estimate"]
    return found


def written(server: ComfyServer) -> list[Path]:
    return sorted(path for path in (server.base / "output").rglob("*") if path.is_file())


def test_has_the_inputs_of_the_trainer(server: ComfyServer) -> None:
    """One node can be replaced by the other."""
    mine, theirs = (
        server.object_info(f"LoRAWorkbench_{kind}")[f"LoRAWorkbench_{kind}"]["input"]
        for kind in ("EstimateTraining", "LoRATrainer")
    )
    assert list(mine["required"])[:5] == [*SOCKETS, "measure"]
    del mine["required"]["measure"]
    for name in SOCKETS:  # their tooltips differ
        assert mine["required"].pop(name)[0] == theirs["required"].pop(name)[0]
    del theirs["optional"]["sample_prompts"]  # no estimate paints
    assert mine["required"] == theirs["required"] and mine["optional"] == theirs["optional"]


def test_its_numbers_are_those_of_the_trainer_after_it(server: ComfyServer) -> None:
    before = written(server)
    prompt = graph(server, epochs=1, batch_size=2)
    entry = server.run(prompt, timeout=120)
    assert written(server) == before, "nothing is written"
    numbers = dict(panel(entry)["numbers"])
    prompt["train"] = node(
        "LoRATrainer", **defaults(server, "LoRATrainer") | SOCKETS
        | {"name": "estimated", "rank": 2, "epochs": 1, "batch_size": 2},
    )  # fmt: skip
    again = prompt.pop("estimate")
    (told,) = server.run(prompt, timeout=240)["outputs"]["train"]["lora_workbench_run"]
    assert numbers["steps"] == str(told["steps"]) and numbers["epochs"] == str(told["epochs"])
    file = server.base / "output" / told["file"]
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["ss_steps"] == numbers["steps"]
    after = dict(panel(server.run({**prompt, "estimate": again}, timeout=120))["numbers"])
    to_encode = "latents to encode", "captions to encode"
    assert [numbers[name] for name in to_encode] == ["3", "3"]
    assert [after[name] for name in to_encode] == ["0 of 3", "0 of 3"], "the same inputs are estimated again"
    assert numbers["LoRA in the run's folder, fp32"] == f"{len(save(load_file(file))) / 2**20:.1f} MB"


def test_the_report_reaches_other_nodes(server: ComfyServer) -> None:
    prompt = graph(server, epochs=100)
    prompt["show"] = node("PreviewAny", source=["estimate", 0])
    outputs = server.run(prompt, timeout=120)["outputs"]
    report = json.loads(json.dumps(outputs["show"]["text"]))[0]
    assert "steps per epoch: 6\n" in report and "steps: 600\n" in report and "this device (cpu): " in report
    said = [event["data"] for event in server.events if event["type"] == "progress_text"]
    assert [data["text"] for data in said if data["node"] == "estimate"][-1].startswith("600 steps, about ")


def test_measures_and_can_be_cancelled(server: ComfyServer) -> None:
    before = written(server)
    numbers = dict(panel(server.run(graph(server, epochs=50, measure=True), timeout=240))["numbers"])
    assert float(numbers["time of a step"].removesuffix(" s")) > 0 and numbers["time of all steps"]
    long = graph(server, folder="photos", measure=True, gradient_accumulation=64)  # 32 batches a step
    mark, number = len(server.events), server.queue(long)
    texts: list[str] = []
    until = time.monotonic() + 120
    while not any(text.startswith("Computes in ") for text in texts) and time.monotonic() < until:
        time.sleep(0.02)
        said = [event["data"] for event in server.events[mark:] if event["type"] == "progress_text"]
        texts = [data["text"] for data in said if data["node"] == "estimate"]
    server.interrupt()
    entry = server.wait(number, timeout=120)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
    assert "estimate" not in entry["outputs"]
    assert written(server) == before
    assert panel(server.run(graph(server, epochs=52), timeout=120)), "the server goes on"


def test_refuses_what_the_trainer_refuses(server: ComfyServer) -> None:
    with pytest.raises(PromptError, match="The dataset has no buckets yet"):
        server.run(graph(server, dataset="data"), timeout=120)
    with pytest.raises(PromptError, match="Prodigy finds its own rate"):
        server.run(graph(server, optimizer="Prodigy"), timeout=120)
    with pytest.raises(PromptError, match="name"):
        server.run(graph(server, name="a/b"), timeout=120)
