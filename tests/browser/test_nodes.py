"""The nodes as a person meets them: in a real browser, on a real server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import RENDERERS, load_workflow, open_page, template
from support.geometry import measure
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
PREFIX = "LoRAWorkbench_"
BUTTON = "advanced_inputs"

# The widgets that a node shows before anybody asks for more, in their order.
BASIC = {
    "LoadDataset": ["folder", "trigger"],
    "ImagesToDataset": ["captions", "repeats", "trigger", "name"],
    "ConcatDatasets": ["first_weight", "second_weight"],
    "RegularizationImages": ["weight", "share", "target"],
    "PriorPreservation": ["class_word", "prompts", "weight", "share"],
    "AutoCaption": ["captioner", "mode", "write", "prompt", "general_threshold"],
    "CaptionOperation": ["operation", "text", "replacement", "share", "keep_tokens", "seed"],
    "LiveCaptions": [
        "shuffle", "keep_tokens", "tag_dropout", "caption_dropout", "wildcards", "draw_one_line", "drop_every_epochs",
    ],
    "LossMask": ["source", "outside"],
    "DatasetReport": ["leave_out_the_worst"],
    "EditCaptions": [],
    "BucketImages": ["resolution"],
    "LoRATrainer": ["name", "epochs", "learning_rate", "rank", "batch_size", "memory", "if_run_before"],
    "ApplyLoRA": ["strength_model", "strength_clip"],
    "SaveLoRA": ["name", "precision", "format", "overwrite"],
    "EstimateTraining": ["measure", "name", "epochs", "learning_rate", "rank", "batch_size", "memory", "if_run_before"],
    "LoadLoRA": ["file"],
    "HeldOutPictures": ["share", "every_steps"],
    "LossChart": ["log_scale", "smoothing", "width", "height"],
    "SamplePrompts": [
        "prompts", "negative", "width", "height", "steps", "cfg", "guidance", "sampler", "scheduler", "seed",
        "strength", "every_epochs", "every_steps", "at_start",
    ],
    "CompareCheckpoints": ["checkpoints", "strengths", "with_base", "chosen"],
    "RunBrowser": ["run"],
    "LoadCheckpoint": ["at"],
    # Who adds one of these wants to see what it has.
    "TextEncoderOptions": [
        f"{kind}{setting}" for kind in ("clip_l", "clip_g", "other") for setting in ("", "_rate", "_until")
    ],
    "LossOptions": [
        "weighting", "gamma", "p2_gamma", "loss", "huber_c", "huber_schedule", "noise_offset", "noise_offset_adaptive",
        "noise_offset_random", "multires_iterations", "multires_discount", "ip_noise_gamma", "ip_noise_random",
        "timestep_mean", "timestep_spread", "mode_scale", "shift", "resolution_shift", "min_timestep", "max_timestep",
        "latents", "picture_timesteps",
    ],
    "OptimizerOptions": [
        "beta1", "beta2", "beta3", "eps", "d_coef", "d0", "growth_rate", "bias_correction", "safeguard_warmup", "r",
        "weight_lr_power", "clip_threshold", "decay_rate", "scale_parameter", "eps1", "eps2", "ema_decay",
    ],
}

# What the pack's own scripts put into a node.
PANELS = {
    "DatasetReport": ["findings"], "EditCaptions": ["gallery"], "EstimateTraining": ["estimate"],
    "LoRATrainer": ["training"], "RunBrowser": ["runs"],
}  # fmt: skip

ADD_NODE = """type => {
  window.app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [120, 160];
  window.app.graph.add(node);
}"""
# Drawing is what arranges widgets and stretches a node that is too low.
DRAW = "() => window.app.canvas.draw(true, true)"
LOOK = """() => {
  const node = window.app.graph._nodes[0];
  return {
    height: node.size[1], least: node.computeSize()[1],
    shown: node.widgets.filter(widget => node.isWidgetVisible(widget)).map(widget => widget.name),
  };
}"""
PRESS = """name => window.app.graph._nodes[0].widgets.find(widget => widget.name === name).callback()"""

# Small enough for a test; given to every node of the type.
SMALL = {
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 1},
    "LoRAWorkbench_LoadDataset": {"folder": "photos"},
    "LoRAWorkbench_BucketImages": {"resolution": 128},
    "LoRAWorkbench_SamplePrompts": {"width": 128, "height": 128, "steps": 1},
}
SET_VALUES = """small => {
  for (const node of window.app.graph._nodes)
    for (const [name, value] of Object.entries(small[node.type] ?? {}))
      node.widgets.find(widget => widget.name === name).value = value;
}"""
# What a node says below its widgets, and whether it shows a picture.
SAYS = """type => {
  const node = window.app.graph._nodes.find(node => node.type === type);
  const text = node.widgets.find(widget => widget.name === '$$node-text-preview')?.value ?? '';
  return [text, (window.app.nodeOutputs[node.id]?.images ?? []).length];
}"""


@pytest.fixture(scope="module")
def page(chromium: Any, server: ComfyServer) -> Iterator[Any]:
    with open_page(chromium, server.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def inputs(server: ComfyServer) -> dict[str, list[str]]:
    """Every widget of every node of the pack, in the order of its schema."""
    found = {}
    for name, info in server.object_info().items():
        if name.startswith(PREFIX):
            specs = info["input"].get("required", {}) | info["input"].get("optional", {})
            found[name.removeprefix(PREFIX)] = [
                key for key, (kind, *_) in specs.items()
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
            ]
    return found


def test_basic_widgets_are_listed_for_every_node(inputs: dict[str, list[str]]) -> None:
    assert set(inputs) == set(BASIC)


@pytest.mark.parametrize("name", BASIC)
def test_node_shows_few_widgets_and_all_on_request(name: str, page: Any, inputs: dict[str, list[str]]) -> None:
    def without_panel(look: dict[str, Any]) -> list[str]:
        assert set(PANELS.get(name, [])) <= set(look["shown"])
        return [widget for widget in look["shown"] if widget not in PANELS.get(name, [])]

    page.evaluate(ADD_NODE, PREFIX + name)
    page.evaluate(DRAW)
    few = page.evaluate(LOOK)
    if BASIC[name] == inputs[name]:
        assert few["shown"] == BASIC[name] + PANELS.get(name, [])
        return
    assert without_panel(few) == [*BASIC[name], BUTTON]
    assert few["height"] == few["least"], "the node is higher than what it shows"
    page.evaluate(PRESS, BUTTON)
    page.evaluate(DRAW)
    # No "control after generate": a seed that changes by itself would train anew at every queue.
    assert without_panel(page.evaluate(LOOK)) == [*inputs[name], BUTTON]
    page.evaluate(PRESS, BUTTON)
    page.evaluate(DRAW)
    assert page.evaluate(LOOK) == few


def test_hidden_widgets_are_saved_and_loaded(page: Any) -> None:
    page.evaluate(ADD_NODE, PREFIX + "LoRATrainer")
    page.evaluate("() => { window.app.graph._nodes[0].widgets.find(w => w.name === 'weight_decay').value = 0.25 }")
    saved = json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    load_workflow(page, saved)
    page.evaluate(DRAW)
    again = json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    assert again["nodes"][0]["widgets_values"] == saved["nodes"][0]["widgets_values"]
    assert 0.25 in again["nodes"][0]["widgets_values"]
    assert again["nodes"][0]["size"] == saved["nodes"][0]["size"]


@RENDERERS
def test_examples_open_without_a_missing_node(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    with open_page(chromium, server.url, vue=vue) as page:
        assert page.evaluate("LiteGraph.vueNodesMode") is vue
        for file in EXAMPLES:
            load_workflow(page, template(file))
            page.evaluate(DRAW)
            bad = page.evaluate(
                "() => window.app.graph._nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type])"
                ".map(n => n.type)"
            )
            assert bad == []
            if vue:
                count = page.evaluate("window.app.graph._nodes.length")
                page.wait_for_function(f"() => document.querySelectorAll('[data-node-id]').length === {count}")
            check_picture(page, tmp_path / f"{file.stem}.png")
        assert page.problems == []


def test_vue_nodes_hide_advanced_inputs(chromium: Any, server: ComfyServer, host_path: Path) -> None:
    if "0.3." in (host_path / "comfyui_version.py").read_text(encoding="utf-8"):
        pytest.skip("Nodes 2.0 of this old front end shows advanced inputs always")
    with open_page(chromium, server.url, vue=True) as page:
        page.evaluate(ADD_NODE, PREFIX + "LoRATrainer")
        trainer = page.locator("[data-node-id]")
        trainer.get_by_text("Show advanced inputs").wait_for()
        assert trainer.get_by_text("learning_rate").is_visible()
        assert not trainer.get_by_text("optimizer").is_visible()


def test_a_queued_workflow_tells_of_its_progress(server: ComfyServer, page: Any, tmp_path: Path) -> None:
    file = ROOT / "example_workflows" / "lora_1_train_and_preview.json"
    load_workflow(page, template(file))
    settings = {"name": "test_browser", "steps": 6, "rank": 2, "if_run_before": "train again"}
    trainer = {"LoRAWorkbench_LoRATrainer": settings}
    page.evaluate(SET_VALUES, SMALL | trainer)
    page.evaluate("() => { window.seen = []; window.app.api.addEventListener('progress_text', "
                  "event => window.seen.push(event.detail.text)) }")
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(f"() => ({SAYS})('LoRAWorkbench_LoRATrainer')[0].startsWith('finished')", timeout=180_000)
    page.wait_for_function(f"() => ({SAYS})('SaveImage')[1] > 0", timeout=180_000)
    assert any(text.startswith("step 6/6 · epoch ") and " · loss " in text for text in page.evaluate("window.seen"))
    assert "pictures" in page.evaluate(SAYS, "LoRAWorkbench_LoadDataset")[0]
    assert page.evaluate(SAYS, "LoRAWorkbench_BucketImages")[1] == 1, "BucketImages shows no sheet"
    assert page.evaluate("() => window.app.graph._nodes.filter(node => node.has_errors).length") == 0
    nodes, groups = measure(page, vue=False)
    assert [(a.name, b.name) for a, b in combinations(nodes.values(), 2) if a.overlaps(b)] == []
    assert all(any(g.holds(n) for g in groups.values()) for n in nodes.values() if n.name != "Read me")
    check_picture(page, tmp_path / "after_a_run.png")
    assert page.problems == []


def check_picture(page: Any, file: Path) -> None:
    """Take a screenshot and make sure that something is on it."""
    page.wait_for_timeout(500)  # until what was loaded is drawn
    picture = page.screenshot(path=file)
    with Image.open(io.BytesIO(picture)) as image:
        colors = image.convert("RGB").getcolors(image.width * image.height)
        assert colors is not None and len(colors) > 200
        assert max(count for count, _ in colors) < 0.95 * image.width * image.height
