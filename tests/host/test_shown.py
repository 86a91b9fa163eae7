"""What the nodes showed, kept by the server; the summary in its history; errors and sentences on the screen."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.photos import write_photos
from support.prompts import defaults, node
from support.server import ComfyServer, PromptError


@pytest.fixture
def shown(comfy_host: Any) -> Any:
    from lora_workbench.training.host import shown

    return shown


def test_only_the_nodes_that_ran_last_are_kept(shown: Any) -> None:
    kept = shown.Shown(most=2)
    kept.keep("w", "1", "p", "Kind", {"a": [1]})
    kept.keep("w", "2", "p", "Kind", {"a": [2]})
    kept.keep("w", "1", "p", "Kind", {"a": [3]})
    kept.keep("other", "1", "p", "Kind", {"a": [4]})
    assert kept.of("w") == {"1": {"kind": "Kind", "output": {"a": [3]}}}
    kept.keep("w", "1", "q", "Kind", {})
    assert kept.of("w") == {} and list(kept.of("other")) == ["1"]
    kept.keep("", "1", "p", "Kind", {"a": [5]})
    assert kept.of("") == {}


def ended(workflow: str, **outputs: Any) -> dict[str, Any]:
    """An entry of ComfyUI's history, in which every node of the outputs is one of ours but `z`."""
    nodes = {name: {"class_type": "Stranger" if name == "z" else "LoRAWorkbench_X"} for name in outputs}
    return {"prompt": (1, "id", nodes, {"extra_pnginfo": {"workflow": {"id": workflow}}}, []), "outputs": outputs}


def test_the_newest_output_wins_wherever_it_is(shown: Any) -> None:
    """Results from ComfyUI's cache are in its history alone, running prompts and cleared ones in ours alone."""
    kept = shown.Shown()
    for name, prompt, output in (
        ("a", "running", {"n": [1]}), ("b", "running", {}), ("c", "old", {"n": [2]}), ("d", "old", {"n": [3]}),
        ("e", "cleared", {"n": [4]}), ("f", "cleared", {"n": [5]}),
    ):  # fmt: skip
        kept.keep("w", name, prompt, "LoRAWorkbench_X", output)
    prompts = [
        ("running", {}),
        ("new", ended("w", b={"n": [6]}, c={"n": [7]}, z={"n": [8]})),
        ("other", ended("w2", d={"n": [9]})),
        ("old", ended("w", c={"n": [2]}, d={"n": [3]}, e={"n": [10]})),
    ]
    found = {name: told["output"]["n"][0] for name, told in kept.of("w", prompts).items()}
    assert found == {"a": 1, "c": 7, "d": 3, "e": 10, "f": 5}


@pytest.mark.parametrize(
    ("pnginfo", "found"),
    [
        (None, ""),
        ({}, ""),
        ({"workflow": None}, ""),
        ({"workflow": {"id": "a"}}, "a"),
        ({"workflow": {"id": "a", "extra": None}}, "a"),
        ({"workflow": {"id": "a", "extra": {"lora_workbench": "b"}}}, "a"),
        ({"workflow": {"id": str(uuid.UUID(int=0)), "extra": {"lora_workbench": "b"}}}, "b"),
        ({"workflow": {"id": str(uuid.UUID(int=0))}}, ""),
    ],
)
def test_the_workflow_of_a_prompt(shown: Any, pnginfo: Any, found: str) -> None:
    assert shown.workflow_id(pnginfo) == found


def test_a_picture_that_is_gone_is_left_out(shown: Any) -> None:
    import folder_paths

    file = Path(folder_paths.get_temp_directory()) / "sheets" / "there.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    pictures = [{"filename": name, "subfolder": "sheets", "type": "temp"} for name in ("there.png", "gone.png")]
    kept = shown.Shown()
    kept.keep("w", "1", "p", "Kind", {"images": pictures, "x": [1]})
    assert kept.of("w")["1"]["output"] == {"images": pictures[:1], "x": [1]}


SAID = "8 pictures, 16 per epoch, 8 different captions.\nRepeats: 2_photo × 2."


def pictures(server: ComfyServer, folder: str) -> dict[str, Any]:
    """A prompt that examines pictures of its own, with the node `data` below it."""
    write_photos(server.base / "input" / folder / "2_photo", longest=128)
    data = defaults(server, "LoadDataset") | {"folder": folder}
    return {
        "data": node("LoadDataset", **data),
        "report": node("DatasetReport", dataset=["data", 0], leave_out_the_worst=False),
    }


def queue(server: ComfyServer, prompt: dict[str, Any], workflow: str) -> dict[str, Any]:
    """Run a prompt as the page of a workflow does."""
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
    return server.wait(server.queue(prompt, extra_data=extra))


def test_a_page_asks_what_its_nodes_show(server: ComfyServer) -> None:
    workflow = str(uuid.uuid4())
    prompt = pictures(server, "shown")
    entry = queue(server, prompt, workflow)
    kept = server.get(f"/lora_workbench/shown/{workflow}")
    assert kept["data"]["kind"] == "LoRAWorkbench_LoadDataset"
    assert kept["data"]["output"]["lora_workbench_text"] == [SAID]
    assert kept["report"]["output"] == entry["outputs"]["report"], "what the page was sent when the node ran"
    assert server.view(**kept["report"]["output"]["images"][0])
    assert server.get(f"/lora_workbench/shown/{uuid.uuid4()}") == {}


def test_a_failed_node_shows_why_and_not_its_last_success(server: ComfyServer) -> None:
    workflow = str(uuid.uuid4())
    prompt = pictures(server, "shown_then_failed")
    queue(server, prompt, workflow)
    for file in (server.base / "input" / "shown_then_failed").rglob("*.*"):
        file.unlink()
    entry = queue(server, prompt, workflow)
    (error,) = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    (text,) = server.get(f"/lora_workbench/shown/{workflow}")["data"]["output"]["lora_workbench_text"]
    message = error["exception_message"].strip()
    assert text == message.replace(f"{server.base / 'input'}{os.sep}", "") and "shown_then_failed" in text
    said = [event["data"] for event in server.events if event["type"] == "progress_text"]
    assert {"node": "data", "text": message} in said


def test_a_node_that_another_error_ends_shows_nothing(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.nodes import base, load_dataset

    kept = shown.Shown()
    monkeypatch.setattr(base, "shown", lambda: kept)
    monkeypatch.setattr(base, "executing_node", lambda: "7")
    monkeypatch.setattr(base, "workflow_id", lambda pnginfo: "w")
    kept.keep("w", "7", "p", "LoRAWorkbench_LoadDataset", {"a": [1]})
    monkeypatch.setattr(load_dataset, "settings_from", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_dataset.LoadDataset.execute(folder="x")
    assert kept.of("w") == {}


def test_a_result_from_the_cache_is_shown_in_another_workflow_too(server: ComfyServer) -> None:
    prompt = pictures(server, "shown_twice")
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    queue(server, prompt, first)
    queue(server, prompt, second)
    reports = [server.get(f"/lora_workbench/shown/{workflow}")["report"] for workflow in (first, second)]
    assert reports[0] == reports[1]


def test_a_prompt_without_a_workflow_has_its_texts_in_the_history_alone(server: ComfyServer) -> None:
    entry = server.run(pictures(server, "shown_api"))
    assert entry["outputs"]["data"]["lora_workbench_text"] == [SAID]


def test_the_history_tells_no_path_of_the_machine(server: ComfyServer) -> None:
    prompt = pictures(server, "shown_broken")
    (server.base / "input" / "shown_broken" / "2_photo" / "broken.png").write_bytes(b"no picture")
    entry = server.run(prompt)
    (text,) = entry["outputs"]["data"]["lora_workbench_text"]
    assert "Left out: shown_broken/2_photo/broken.png is damaged" in text
    assert str(server.base) not in json.dumps(entry["outputs"])


@pytest.fixture(scope="module")
def trained(server: ComfyServer) -> dict[str, Any]:
    """The history of a prompt that ends with LoRA Trainer, and of Preview Any behind it."""
    return server.run(training(server, "history"))


def training(server: ComfyServer, name: str, **settings: Any) -> dict[str, Any]:
    """A prompt in which LoRA Trainer is last."""
    data = defaults(server, "LoadDataset") | {"folder": "photos", "background": "#fdfdfd"}
    buckets = defaults(server, "BucketImages") | {"resolution": 128, "step": 32}
    trainer = defaults(server, "LoRATrainer") | {"name": name, "rank": 2, "steps": 3, "seed": 7, **settings}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "data": node("LoadDataset", **data),
        "buckets": node("BucketImages", dataset=["data", 0], **buckets),
        "train": node(
            "LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["buckets", 0], **trainer
        ),
    }


def test_the_trainer_can_be_queued_alone_and_the_history_holds_its_summary(
    server: ComfyServer, trained: dict[str, Any]
) -> None:
    (told,) = trained["outputs"]["train"]["lora_workbench_run"]
    summary = json.loads((server.base / "output" / "lora_workbench" / "history" / "summary.json").read_text())
    losses = summary["losses"]
    assert (told["outcome"], told["steps"], told["seed"], told["name"]) == ("finished", 3, 7, "history")
    assert (told["first_loss"], told["last_loss"], told["least_loss"]) == (losses[0], losses[-1], min(losses))
    assert (told["folder"], told["file"]) == ("lora_workbench/history", "lora_workbench/history/history.safetensors")
    assert (server.base / "output" / told["file"]).is_file()
    text = json.dumps(trained["outputs"])
    assert len(text) < 5000 and str(server.base) not in text


def test_an_unchanged_trainer_is_not_run_again(server: ComfyServer, trained: dict[str, Any]) -> None:
    server.run(training(server, "history"))
    assert not (server.base / "output" / "lora_workbench" / "history-2").exists()


def test_preview_any_prints_sentences(server: ComfyServer, trained: dict[str, Any]) -> None:
    prompt = training(server, "history")
    prompt |= {"run": node("PreviewAny", source=["train", 2]), "pictures": node("PreviewAny", source=["data", 0])}
    outputs = server.run(prompt)["outputs"]
    (told,) = trained["outputs"]["train"]["lora_workbench_run"]
    (text,) = outputs["run"]["text"]
    assert text.startswith("history: finished after 3 steps in ") and f"(least {told['least_loss']:.4f})" in text
    assert text.endswith(". Folder: lora_workbench/history")
    assert outputs["pictures"]["text"] == ["8 pictures, 16 per epoch, 8 different captions."]


def test_an_error_comes_without_the_path_of_a_module(server: ComfyServer) -> None:
    entry = server.wait(server.queue(training(server, "bad", optimizer="Prodigy", learning_rate=1e-4)))
    (error,) = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    assert error["exception_type"] == "SettingError"
    assert error["exception_message"].startswith("learning rate is 0.0001")
    assert "ExecutionBlock" not in json.dumps(entry["status"])
    with pytest.raises(PromptError, match=r"raised SettingError: "):
        server.run(training(server, "bad", optimizer="Prodigy", learning_rate=1e-4))
