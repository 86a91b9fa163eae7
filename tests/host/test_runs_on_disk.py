"""Runs in a running ComfyUI: found again, browsed, loaded from; several of one name; what breaks on disk."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from support.prompts import defaults, node
from support.server import ComfyServer, PromptError

CHECKPOINT = "tiny_sd15.safetensors"


def graph(server: ComfyServer, name: str, **settings: Any) -> dict[str, Any]:
    """A training of two steps on pictures of a colour of their own, and a file."""
    trainer = defaults(server, "LoRATrainer") | {"name": name, "rank": 2, "steps": 2, "if_run_before": "use its LoRA"}
    data = defaults(server, "LoadDataset") | {"folder": "photos", "trigger": "zorp", "background": "#fcfdfe"}
    buckets = defaults(server, "BucketImages") | {"resolution": 64}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "data": node("LoadDataset", **data),
        "buckets": node("BucketImages", dataset=["data", 0], **buckets),
        "train": node("LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["buckets", 0],
                      **trainer | settings),
        "keep": node("SaveLoRA", lora=["train", 0], **defaults(server, "SaveLoRA") | {"precision": "fp32"}),
    }  # fmt: skip


def runs_root(server: ComfyServer) -> Path:
    return server.base / "output" / "lora_workbench"


def told(entry: dict[str, Any], number: str = "train") -> dict[str, Any]:
    return entry["outputs"][number]["lora_workbench_run"][0]


def run(server: ComfyServer, prompt: dict[str, Any], workflow: str = "") -> dict[str, Any]:
    """Run a prompt as the page of a workflow does; a node that raises fails the test."""
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}} if workflow else {}
    entry = server.wait(server.queue(prompt, extra_data=extra), timeout=240)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    return entry


def forget(server: ComfyServer) -> None:
    """Drop what ComfyUI holds of the last prompt, as after a restart or a long day."""
    server.request("/free", {"unload_models": True, "free_memory": True})
    server.run({"other": node("PreviewAny", source=str(uuid.uuid4()))})


@pytest.fixture(scope="module")
def first(server: ComfyServer) -> dict[str, Any]:
    """What a finished run with a checkpoint at each step says of itself."""
    return told(run(server, graph(server, "found", save_every_steps=1), "workflow-1"))


def test_last_weeks_picture_uses_last_weeks_lora(server, first):
    """The graph of a saved picture is queued again: under another name, in another workflow, by other node ids."""
    forget(server)
    prompt = graph(server, "of the picture", save_every_steps=1)
    prompt = {f"1{number}": {**node, "inputs": {
        name: [f"1{value[0]}", value[1]] if isinstance(value, list) else value for name, value in node["inputs"].items()
    }} for number, node in prompt.items()}  # fmt: skip
    mark = len(server.events)
    entry = run(server, prompt, "workflow-2")
    assert told(entry, "1train")["id"] == first["id"] and told(entry, "1train")["name"] == "found"
    assert not (runs_root(server) / "of the picture").exists()
    events = server.events[mark:]
    (text,) = entry["outputs"]["1train"]["lora_workbench_text"]
    assert text.startswith("Uses the LoRA of the run lora_workbench/found, which had the same inputs.")
    assert not [e for e in events if e["type"] == "progress_text" and "encoding" in e["data"]["text"]]
    (event,) = [e["data"] for e in events if e["type"] == "lora_workbench.run"]
    assert event["lines"] == [{"kind": "reused", "run": first["id"]}]
    assert (event["run"], event["node"], event["workflow"]) == (first["id"], "1train", "workflow-2")
    # Save LoRA without a name takes the new one; the weights are the old ones.
    (path, _) = entry["outputs"]["1keep"]["text"]
    assert Path(path).name == "of the picture.safetensors"
    old, new = load_file(runs_root(server) / "found" / "found.safetensors"), load_file(path)
    assert old.keys() == new.keys() and all((old[key] == new[key]).all() for key in old)


def test_the_panel_finds_the_run_that_was_used(server, first):
    """After a reload, also where a newer run of the same node is on disk."""
    workflow = str(uuid.uuid4())
    other = told(run(server, graph(server, "later", seed=3), workflow))
    forget(server)
    run(server, graph(server, "found", save_every_steps=1), workflow)

    def shown(where: str) -> list[tuple[str, str]]:
        return [(one["id"], one["node"]) for one in server.get(f"/lora_workbench/runs?workflow={where}")]

    assert shown(workflow) == [(first["id"], "train")]
    assert shown("workflow-1") == [(first["id"], "train")]
    assert other["id"] in [one["id"] for one in server.get("/lora_workbench/runs")]
    assert shown("elsewhere") == []


def test_a_setting_trains_again(server, first):
    forget(server)
    again = told(run(server, graph(server, "found", save_every_steps=1, if_run_before="train again")))
    assert again["id"] != first["id"] and again["name"] == "found-2"


def browsing(server: ComfyServer, at: str, name: str = "browsed") -> dict[str, Any]:
    """A past run → one of its checkpoints → a sample and a PEFT file."""
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "browse": node("RunBrowser", run="found"),
        "lora": node("LoadCheckpoint", run=["browse", 0], at=at),
        "apply": node("ApplyLoRA", model=["load", 0], clip=["load", 1], lora=["lora", 0], strength_model=1.0,
                      strength_clip=1.0),
        "text": node("CLIPTextEncode", clip=["apply", 1], text="zorp"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node("KSampler", model=["apply", 0], positive=["text", 0], negative=["text", 0],
                       latent_image=["empty", 0], seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal",
                       denoise=1.0),
        "see": node("PreviewAny", source=["sample", 0]),
        "keep": node("SaveLoRA", lora=["lora", 0], name=name, precision="fp32", format="PEFT", overwrite=True),
    }  # fmt: skip


def test_a_checkpoint_of_a_past_run_is_applied_and_saved(server, first):
    forget(server)
    mark = len(server.events)
    entry = run(server, browsing(server, "step 1"))
    said = {e["data"]["node"]: e["data"]["text"] for e in server.events[mark:] if e["type"] == "progress_text"}
    assert said["browse"].startswith("found: finished after 2 steps") and said["lora"].startswith("step 1 · epoch 0")
    saved = load_file(entry["outputs"]["keep"]["text"][0])
    trained = load_file(runs_root(server) / "found" / "found-step00000001.safetensors")
    assert {key.rsplit(".", 2)[-2] for key in saved} == {"lora_A", "lora_B"} and len(saved) == len(trained) * 2 // 3
    last = load_file(run(server, browsing(server, "last"))["outputs"]["keep"]["text"][0])
    assert last.keys() == saved.keys() and any((last[key] != saved[key]).any() for key in last)


@pytest.mark.parametrize(
    ("run_name", "at", "said"),
    [
        ("found", "step 7", "no checkpoint at step 7. Choose one of these: step 1 · epoch 0, step 2 · epoch"),
        ("found", "best", "'best' names no checkpoint"),
        ("never was", "last", "There is no run 'never was'"),
        ("../lora_workbench/found", "last", "There is no run"),
    ],
)
def test_what_is_not_there_is_refused(run_name, at, said, server, first):
    prompt = browsing(server, at)
    prompt["browse"]["inputs"]["run"] = run_name
    with pytest.raises(PromptError, match=said):
        server.run(prompt)


def test_two_trainers_and_two_prompts_of_one_name(server, first):
    """Each has a folder of its own, even with the same inputs."""
    prompt = graph(server, "twins", if_run_before="train again", seed=1)
    twin = {**prompt["train"], "inputs": {**prompt["train"]["inputs"], "seed": 2}}
    prompt["train2"] = twin
    del prompt["keep"]
    second = json.loads(json.dumps(prompt))
    second["train"]["inputs"]["seed"] = 3
    second["train2"]["inputs"]["seed"] = 4
    ids = [server.queue(prompt), server.queue(second)]
    entries = [server.wait(one, timeout=240) for one in ids]
    found = [told(entry, number) for entry in entries for number in ("train", "train2")]
    assert len({one["id"] for one in found}) == 4
    assert sorted(one["name"] for one in found) == ["twins", "twins-2", "twins-3", "twins-4"]
    for one in found:
        assert (runs_root(server) / one["name"] / f"{one['name']}.safetensors").is_file()
        assert json.loads((runs_root(server) / one["name"] / "run.json").read_text())["id"] == one["id"]


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def test_a_run_whose_folder_is_deleted_is_still_told_to_the_page(server, first):
    """And the page that started it is gone: the run does not need it."""
    workflow = str(uuid.uuid4())
    prompt = graph(server, "lost", steps=100_000, seed=9)
    del prompt["keep"]
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
    body = {"prompt": prompt, "client_id": "a page that is closed", "extra_data": extra}
    prompt_id = json.loads(server.request("/prompt", body))["prompt_id"]

    def listed() -> Any:
        return server.get(f"/lora_workbench/runs?workflow={workflow}")

    (brief,) = until(listed, "the run does not begin")
    until(lambda: server.get(f"/lora_workbench/runs/{brief['id']}")["last"], "no step is done")
    shutil.rmtree(runs_root(server) / "lost")
    now = server.get(f"/lora_workbench/runs/{brief['id']}")["last"]["step"]

    def further() -> Any:
        got = server.get(f"/lora_workbench/runs/{brief['id']}")
        return got["last"]["step"] > now and got

    one = until(further, "the run does not go on")
    assert one["state"] == "running" and one["curve"]["step"]
    assert [(b["id"], b["node"], b["state"]) for b in listed()] == [(brief["id"], "train", "running")]
    server.request(f"/lora_workbench/runs/{brief['id']}/stop", {})
    entry = until(lambda: server.get(f"/history/{prompt_id}").get(prompt_id), "the run does not end")
    assert told(entry)["outcome"] == "stopped" and told(entry)["steps"] > now
    assert server.get(f"/lora_workbench/runs/{brief['id']}")["last"]["step"] == told(entry)["steps"]


def test_what_is_broken_on_disk_does_not_break_the_lists(server, first):
    root = runs_root(server)
    broken = {
        "broken": '{"id": ', "list": "[]", "no text": '{"id": ["x"]}',
        "odd": '{"id": "x", "uses": [1, {"workflow": "w", "node": [], "prompt": "", "at": 1}], "started_at": "may", '
        '"workflow": "w", "node": {}, "loss": NaN, "outcome": 3}',
    }  # fmt: skip
    for name, text in broken.items():
        (root / name).mkdir()
        (root / name / "run.json").write_text(text)
    shutil.copytree(root / "found", root / "found copied")
    (root / "of version 0.1").mkdir()
    (root / "of version 0.1" / "summary.json").write_text('{"name": "of version 0.1", "steps": 3}')
    try:
        assert_lists_work(server, first)
    finally:  # other test files list the runs too
        for name in (*broken, "of version 0.1", "found copied"):
            shutil.rmtree(root / name)


def assert_lists_work(server: ComfyServer, first: dict[str, Any]) -> None:
    text = server.request("/lora_workbench/runs").decode()
    assert "NaN" not in text, "a page cannot read it"
    listed = json.loads(text)
    assert [one["folder"] for one in listed if one["id"] == first["id"]] == [
        "lora_workbench/found", "lora_workbench/found copied"
    ]  # fmt: skip
    assert [(one["state"], one["loss"]) for one in listed if one["id"] == "x"] == [("broken off", None)]
    assert [(one["id"], one["steps"]) for one in listed if one["name"] == "of version 0.1"] == [("", 3)]
    assert len(server.get("/lora_workbench/runs?workflow=w")) == 1
    info = server.object_info("LoRAWorkbench_RunBrowser")["LoRAWorkbench_RunBrowser"]["input"]["required"]["run"]
    options = info[0] if isinstance(info[0], list) else info[1]["options"]
    assert options == [one["folder"].removeprefix("lora_workbench/") for one in listed]
    for name in ("of version 0.1", "odd"):
        prompt = {"browse": node("RunBrowser", run=name), "see": node("PreviewAny", source=["browse", 0])}
        (text,) = server.run(prompt)["outputs"]["see"]["text"]
        assert text.startswith(f"{name}: ")
