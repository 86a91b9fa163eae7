"""The example workflows: complete, up to date with the nodes, and each runs to its end."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from safetensors import safe_open
from support.browser import browser, load_workflow, open_page
from support.marks import long_but
from support.prompts import IDS, set_values
from support.server import ComfyServer
from support.session import AGAIN

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "example_workflows").glob("*.json"))
# As version 0.1 shipped them: what people saved then must keep loading. These files never change.
SAVED = sorted((ROOT / "tests" / "data" / "workflows_0.1").glob("*.json"))
# Those that the quick suite runs; the others run with the long tests.
QUICK = [file for file in FILES if file.stem[5] in "17"]
# Nodes that version 0.1 lacks.
SINCE = {
    "EstimateTraining", "TextEncoderOptions", "LossOptions", "OptimizerOptions", "LoadLoRA", "SamplePrompts",
    "HeldOutPictures", "LossChart", "CompareCheckpoints", "RunBrowser", "LoadCheckpoint",
}  # fmt: skip
PREFIX = "LoRAWorkbench_"
BYPASS = 4  # LiteGraph's mode of a node that passes its input on
NAMES = {
    "AutoCaption": "Auto Caption", "CaptionOperation": "Caption Operation", "ConcatDatasets": "Concat Datasets",
    "RegularizationImages": "Regularization Images", "LiveCaptions": "Live Captions",
}  # fmt: skip
ORDER = ("name", "epochs", "learning_rate", "rank", "batch_size", "steps", "gradient_accumulation")  # of the trainer
FIRST_INPUTS = 24  # of the trainer, which every workflow has; later ones are optional
MOST_THUMBNAIL_BYTES = 150_000

# What makes any example small enough for a test; a workflow need not have all of these nodes.
SMALL: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": "tiny_sd15.safetensors"},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 2},
    "LoRAWorkbench_AutoCaption": {"captioner": "tiny_tagger"},
    "LoRAWorkbench_LoadDataset": {"folder": "photos"},
    "LoRAWorkbench_LoadLoRA": {"file": "tiny_lora.safetensors"},
    "LoRAWorkbench_BucketImages": {"resolution": 128},
    "LoRAWorkbench_SamplePrompts": {"width": 128, "height": 128, "steps": 2},
    # A large step, so that two of them can be seen.
    "LoRAWorkbench_LoRATrainer": {"epochs": 1, "steps": 2, "rank": 4, "learning_rate": 0.05},
}


# The same for the example on the pack's own base model, which is small as it is.
SMALL_BASE: dict[str, dict[str, Any]] = {
    "EmptySD3LatentImage": {"batch_size": 1},
    "KSampler": {"steps": 2},
    "LoRAWorkbench_SamplePrompts": {"steps": 2},
    "LoRAWorkbench_LoRATrainer": {"epochs": 1, "steps": 2, "rank": 4, "learning_rate": 0.05},
}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


# Each old file right after the example of its name: the server keeps the results of the last prompt.
BOTH = sorted([*FILES, *SAVED], key=lambda file: (re.sub(r"^lora_\d_", "", file.stem), file in SAVED))


def running(nodes: list[dict[str, Any]]) -> set[str]:
    """The kinds of nodes that are not bypassed."""
    return {node["type"] for node in nodes if node["mode"] == 0}


def name_of(file: Path) -> str:
    return f"{file.stem} 0.1" if file in SAVED else file.stem


@pytest.fixture(params=FILES, ids=name_of)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_names_tell_what_it_is_and_where_to_begin() -> None:
    """ComfyUI's templates are searched by file name, and list them by it."""
    assert [file.stem[:7] for file in FILES] == [f"lora_{number}_" for number in range(1, len(FILES) + 1)]
    assert FILES[0].stem == "lora_1_train_and_preview"
    # Of those that lead from a folder to two pictures it has the fewest nodes.
    nodes = {file: read(file)["nodes"] for file in FILES}
    whole = [file for file in FILES if {PREFIX + "LoadDataset", "VAEDecode"} <= running(nodes[file])]
    assert len(whole) == 5 and min(whole, key=lambda file: len(nodes[file])) == FILES[0]


# Templates that need more than a beginner has: a captioner, a second folder, pictures of the class.
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_template_has_no_id_of_its_own(file: Path) -> None:
    # What nodes showed is kept by the id of their workflow, and every copy of a template is another workflow.
    assert read(file)["id"] == "00000000-0000-0000-0000-000000000000"


def test_one_folder_is_enough_to_begin() -> None:
    for file in FILES[:2]:
        running = [node for node in read(file)["nodes"] if node["mode"] == 0]
        kinds = [node["type"].removeprefix(PREFIX) for node in running]
        assert kinds.count("LoadDataset") == 1 and "AutoCaption" not in kinds
    by_name = {file.stem: read(file) for file in FILES}
    prepare = by_name["lora_2_prepare_a_dataset"]["nodes"]
    (note,) = [node for node in prepare if node["type"] == "MarkdownNote"]
    bypassed = [node for node in prepare if node["mode"] == BYPASS]
    assert len(bypassed) == 7 and "Ctrl+B" in note["widgets_values"][0]
    names = {node.get("title") or NAMES[node["type"].removeprefix(PREFIX)] for node in bypassed}
    assert all(f"**{name}**" in note["widgets_values"][0] for name in names)


# kohya_ss 735: 15 pictures at the defaults learn nothing, because nobody says how many steps they get.
def test_fifteen_pictures_get_about_1500_steps_and_a_trigger() -> None:
    nodes = {node["type"].removeprefix(PREFIX): node for node in read(FILES[0])["nodes"]}
    trainer = dict(zip(ORDER, nodes["LoRATrainer"]["widgets_values"], strict=False))
    steps = 15 * trainer["epochs"] // (trainer["batch_size"] * trainer["gradient_accumulation"])
    assert trainer["steps"] == 0 and 1200 <= steps <= 1800
    _, trigger, *_ = nodes["LoadDataset"]["widgets_values"]
    prompt = next(node for node in read(FILES[0])["nodes"] if node.get("title") == "Prompt")
    assert re.fullmatch(r"[a-z]{4,6}", trigger) and trigger in prompt["widgets_values"][0]
    (note,) = nodes["MarkdownNote"]["widgets_values"]
    assert f"*{trigger}*" in note and "1,500 steps" in note


@pytest.fixture(scope="module")
def object_info(server: ComfyServer) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture(scope="module")
def page(server: ComfyServer) -> Iterator[Any]:
    with browser() as running, open_page(running, server.url) as opened:
        yield opened


def test_has_a_thumbnail(file: Path) -> None:
    picture = file.with_suffix(".jpg")
    assert picture.is_file(), "ComfyUI shows NAME.jpg beside NAME.json in its templates"
    assert picture.stat().st_size < MOST_THUMBNAIL_BYTES
    with Image.open(picture) as image:
        assert image.format == "JPEG"


def test_says_what_to_do_and_is_divided_into_steps(file: Path) -> None:
    workflow = read(file)
    assert workflow["version"] == 0.4
    assert any(node["type"] in ("Note", "MarkdownNote") for node in workflow["nodes"])
    assert [group["title"][:1] for group in workflow["groups"]] == ["1", "2", "3", "4"]


def test_every_node_lies_in_one_group_and_on_no_other(file: Path) -> None:
    workflow = read(file)
    boxes = []
    for node in workflow["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        boxes.append((node["type"], left, top - 30, left + width, top + height))  # 30: its title bar
    for type_, left, top, right, bottom in boxes:
        around = [g["title"] for g in workflow["groups"] if g["bounding"][0] <= left and g["bounding"][1] <= top
                  and right <= g["bounding"][0] + g["bounding"][2] and bottom <= g["bounding"][1] + g["bounding"][3]]
        assert len(around) == (0 if "Note" in type_ else 1), f"{type_} lies in {around}"
    for number, (one, *a) in enumerate(boxes):
        for other, *b in boxes[number + 1 :]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"{one} and {other} overlap"


def test_every_node_of_the_pack_is_in_an_example(object_info: dict[str, Any]) -> None:
    used = {node["type"] for file in FILES for node in read(file)["nodes"]}
    ours = {name for name in object_info if name.startswith(PREFIX)}
    assert ours, "the pack was not loaded"
    assert ours - used == set()


def test_every_node_exists_on_this_host(file: Path, object_info: dict[str, Any]) -> None:
    from lora_workbench.lab.demo.workflow import NOTES

    workflow = read(file)
    assert {node["type"] for node in workflow["nodes"]} - NOTES - set(object_info) == set()
    for node in workflow["nodes"]:
        assert node["properties"].get("Node name for S&R", node["type"]) == node["type"]


@pytest.mark.parametrize("file", BOTH, ids=name_of)
def test_converts_to_the_prompt_that_the_browser_makes(file: Path, object_info: dict[str, Any], page: Any) -> None:
    from lora_workbench.lab.demo.workflow import to_prompt

    workflow = read(file)
    load_workflow(page, workflow)
    theirs = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert to_prompt(workflow, object_info) == theirs


@pytest.mark.parametrize("file", SAVED, ids=name_of)
def test_every_saved_value_lands_on_the_input_it_was_saved_for(file: Path, object_info: dict[str, Any]) -> None:
    """A saved workflow names its widgets in the order of their values."""
    from lora_workbench.lab.demo.workflow import to_prompt

    workflow = read(file)
    prompt, checked = to_prompt(workflow, object_info), 0
    for node in workflow["nodes"]:
        if node["type"].startswith(PREFIX):
            names = [socket["widget"]["name"] for socket in node["inputs"] if "widget" in socket]
            saved = dict(zip(names, node["widgets_values"], strict=True))
            inputs = prompt[str(node["id"])]["inputs"]
            assert {name: inputs[name] for name in names} == saved, node["type"]
            checked += len(saved)
    assert checked > 40, "the file holds fewer values than any of version 0.1"


def test_version_0_1_is_complete() -> None:
    assert len(SAVED) == 5
    used = {node["type"].removeprefix(PREFIX) for file in SAVED for node in read(file)["nodes"]}
    assert used >= set(IDS) - SINCE


@pytest.mark.parametrize("file", long_but(QUICK, BOTH, name_of))
def test_runs_to_its_end(file: Path, object_info: dict[str, Any], server: ComfyServer) -> None:
    run_to_its_end(read(file), file.stem, object_info, server)


@pytest.mark.long
def test_the_bypassed_nodes_run_too(object_info: dict[str, Any], server: ComfyServer) -> None:
    for file in FILES:
        workflow = read(file)
        if any(node["mode"] == BYPASS for node in workflow["nodes"]):
            workflow["nodes"] = [{**node, "mode": 0} for node in workflow["nodes"]]
            run_to_its_end(workflow, f"{file.stem}_all", object_info, server)


@pytest.mark.long
def test_one_switch_trains_the_text_encoder(object_info: dict[str, Any], server: ComfyServer) -> None:
    workflow = read(FILES[0])
    (options,) = [node for node in workflow["nodes"] if node["type"] == PREFIX + "TextEncoderOptions"]
    assert options["widgets_values"][0] is False
    options["widgets_values"][0] = True
    saved = run_to_its_end(workflow, "text_encoder", object_info, server)
    with safe_open(saved, framework="np") as file:
        keys = list(file.keys())
    assert {key.split("_")[1] for key in keys} == {"te", "unet"}


@pytest.mark.parametrize("file", [FILES[0], FILES[5]], ids=name_of)
def test_prompts_are_encoded_with_the_lora(file: Path, object_info: dict[str, Any]) -> None:
    from lora_workbench.lab.demo.workflow import to_prompt

    prompt = to_prompt(read(file), object_info)
    samplers = [node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"]
    assert len(samplers) == 2
    for inputs in samplers:
        (lora, _), texts = inputs["model"], [prompt[inputs[part][0]] for part in ("positive", "negative")]
        assert prompt[lora]["class_type"] == PREFIX + "ApplyLoRA"
        assert [text["inputs"]["clip"] for text in texts] == [[lora, 1]] * 2


def run_to_its_end(workflow: dict[str, Any], stem: str, object_info: dict[str, Any], server: ComfyServer) -> Path:
    """Run a workflow on a small model, look at what it gives and return the saved LoRA."""
    from lora_workbench.lab.demo.workflow import find, to_prompt

    prompt = to_prompt(workflow, object_info)
    there = {node["class_type"] for node in prompt.values()}
    on_base = prompt[find(prompt, "CheckpointLoaderSimple")]["inputs"]["ckpt_name"] == "lora_workbench_base.safetensors"
    for class_type, values in (SMALL_BASE if on_base else SMALL).items():
        if class_type in there:
            set_values(prompt, class_type, **values)
    name = f"test_{stem}"
    set_values(prompt, "LoRAWorkbench_LoRATrainer", name=name)
    prompt[find(prompt, "LoRAWorkbench_LoRATrainer")]["inputs"] |= AGAIN  # saved workflows of old lack it
    set_values(prompt, "LoRAWorkbench_SaveLoRA", name=name, overwrite=True)
    if PREFIX + "RunBrowser" in there:  # the newest run, of the template before this one
        set_values(prompt, PREFIX + "RunBrowser", run=past_runs(server)[0])
    entry = server.run(prompt, timeout=300)

    def shown(title: str) -> Image.Image:
        listed = entry["outputs"][find(prompt, "SaveImage", title)]["images"]
        assert len(listed) == 1
        return Image.open(io.BytesIO(server.view(**listed[0]))).convert("RGB")

    if PREFIX + "CompareCheckpoints" in there:
        outputs = entry["outputs"][find(prompt, PREFIX + "CompareCheckpoints")]
        assert len(outputs["images"]) == 1
    else:
        before, after = shown("Before"), shown("After")
        assert before.size == after.size == (128, 128)
        assert ImageChops.difference(before, after).getbbox() is not None, "the LoRA changed nothing"
    if PREFIX + "RunBrowser" in there:
        assert shown("From the run").size == (128, 128)
    saved = Path(entry["outputs"][find(prompt, "LoRAWorkbench_SaveLoRA")]["text"][0])
    assert saved == server.base / "models" / "loras" / f"{name}.safetensors"
    assert saved.stat().st_size > 10_000
    return saved


def past_runs(server: ComfyServer) -> list[str]:
    """What Run Browser offers, newest first."""
    kind = PREFIX + "RunBrowser"
    offered, options = server.object_info(kind)[kind]["input"]["required"]["run"]
    return offered if isinstance(offered, list) else options["options"]


def test_a_changed_node_is_noticed(object_info: dict[str, Any]) -> None:
    from lora_workbench.lab.demo.workflow import WorkflowError, to_prompt

    workflow = read(FILES[0])
    for node in workflow["nodes"]:
        if node["type"] == "LoRAWorkbench_LoRATrainer":
            del node["widgets_values"][FIRST_INPUTS - 1 :]
    with pytest.raises(WorkflowError, match="none for 'on_cancel'"):
        to_prompt(workflow, object_info)
    workflow["nodes"] = [{**workflow["nodes"][0], "type": "Gone"}]
    with pytest.raises(WorkflowError, match="no node 'Gone'"):
        to_prompt(workflow, object_info)
