"""The templates on ComfyUI's page: no node lies on another or leaves its group, whatever the nodes show."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import RENDERERS, load_workflow, open_page, template
from support.geometry import Box, measure
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
PREFIX = "LoRAWorkbench_"

OPEN_ADVANCED = """() => {
  for (const node of window.app.graph._nodes)
    if (node.widgets?.some(widget => widget.options?.advanced) && !node.showAdvanced) node.toggleAdvanced();
}"""
# What the server sends when nodes run. Training five times in each renderer would take minutes, so that this test sends
# it itself: long texts, portraits and a high sheet. test_nodes.py looks at one template after a real run.
LINES = "15 pictures, 1500 per epoch, 15 different captions, 12 of them without one of their own: trained as ohwx."
TEXTS = {
    "LiveCaptions": "Examples:\n" + "\n".join(["ohwx, a woman on a beach, red hair, a long coat, smiling, dusk"] * 4),
    "LoRATrainer": "finished: 1500 steps, loss 0.0812\nrun: lora_workbench/my_character\n" + LINES,
    "SaveLoRA": "/home/somebody/ComfyUI/models/loras/my_character_with_a_long_name.safetensors\n" + LINES,
    "EditCaptions": "",
}
PICTURES = {"SaveImage": (512, 768), PREFIX + "BucketImages": (900, 1000), PREFIX + "LossOptions": (900, 500)}
SEND = """([kind, detail]) => window.app.api.dispatchCustomEvent(kind, detail)"""
OPEN_TEMPLATE = """async ([workflow, name]) =>
  await window.app.loadGraphData(workflow, true, true, name, { openSource: "template" })"""
# What the window shows of the graph, without the bars at its left and top.
SEEN = """() => {
  const { canvas: { ds: { scale, offset }, canvas } } = window.app, page = canvas.getBoundingClientRect();
  return [(60 - page.left) / scale - offset[0], (80 - page.top) / scale - offset[1],
    (innerWidth - page.left) / scale - offset[0], (innerHeight - page.top) / scale - offset[1]];
}"""
NODES = "() => window.app.graph._nodes.map(node => [String(node.id), node.type])"


def show_a_run(page: Any, server: ComfyServer) -> None:
    """Send to the page what a run would: a text for each node of the pack, pictures for those that show some."""
    for number, kind in page.evaluate(NODES):
        name = kind.removeprefix(PREFIX)
        text = TEXTS.get(name, LINES) if name != kind else ""
        if kind in PICTURES:
            width, height = PICTURES[kind]
            file = server.base / "output" / f"geometry_{width}.png"
            Image.linear_gradient("L").resize((width, height)).save(file)
            picture = {"filename": file.name, "subfolder": "", "type": "output"}
            detail = {"node": number, "display_node": number, "output": {"images": [picture]}, "prompt_id": "test"}
            page.evaluate(SEND, ["executed", detail])
        if text:
            page.evaluate(SEND, ["progress_text", {"nodeId": number, "text": text}])
    page.wait_for_timeout(1000)  # until the pictures are there and the page is laid out


@pytest.mark.long
@RENDERERS
def test_no_node_is_on_another_or_leaves_its_group(vue: bool, chromium: Any, server: ComfyServer) -> None:
    wrong = []
    with open_page(chromium, server.url, vue=vue, size=(1280, 800)) as page:
        for file in TEMPLATES:
            load_workflow(page, template(file))
            if vue:
                count = page.evaluate("window.app.graph._nodes.length")
                page.wait_for_function(f"() => document.querySelectorAll('[data-node-id]').length === {count}")
            page.wait_for_timeout(500)
            nodes, groups = measure(page, vue)
            home = {n: g for n, node in nodes.items() for g, group in groups.items() if group.holds_middle_of(node)}
            notes = {number for number, kind in page.evaluate(NODES) if kind == "MarkdownNote"}
            assert set(nodes) - set(home) == notes
            wrong += [f"{file.stem}, fresh: {what}" for what in misplaced(nodes, groups, home)]
            page.evaluate(OPEN_ADVANCED)
            page.wait_for_timeout(500)
            wrong += [f"{file.stem}, advanced inputs: {what}" for what in misplaced(*measure(page, vue), home)]
            show_a_run(page, server)
            wrong += [f"{file.stem}, after a run: {what}" for what in misplaced(*measure(page, vue), home)]
        assert page.problems == []
    assert wrong == []


def misplaced(nodes: dict[str, Box], groups: dict[str, Box], home: dict[str, str]) -> list[str]:
    """What lies on something else, and which nodes have grown out of the group they began in."""
    boxes = [*nodes.values()]
    wrong = [f"{a} is on {b}" for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    wrong += [f"{a} is on {b}" for a, b in itertools.combinations(groups.values(), 2) if a.overlaps(b)]
    return wrong + [f"{nodes[n]} leaves {groups[g]}" for n, g in home.items() if not groups[g].holds(nodes[n])]


# Newer front ends fit a whole template into the window, where a wide one cannot be read.
@RENDERERS
def test_a_template_opens_where_it_can_be_read(vue: bool, chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url, vue=vue, size=(1280, 800)) as page:
        for file in TEMPLATES:
            page.evaluate(OPEN_TEMPLATE, [template(file), file.stem])
            page.wait_for_timeout(500)
            assert 0.7 <= page.evaluate("window.app.canvas.ds.scale") <= 1, file.stem
            nodes, _ = measure(page, vue)
            left, top, right, bottom = page.evaluate(SEEN)
            seen = Box("the window", left, top, right, bottom)
            note, first = nodes["1"], nodes["2"]
            assert seen.holds(first) and seen.holds(note), f"{file.stem}: {seen} {first} {note}"
            # What a person saves of it opens where they left it.
            assert "lora_workbench_template" not in page.evaluate("() => window.app.graph.serialize().extra")
        assert page.problems == []


def test_searching_the_templates_for_lora_finds_ours_in_order(chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url) as page:
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        page.get_by_placeholder("Search").first.fill("lora")
        for file in TEMPLATES:
            page.get_by_text(file.stem, exact=True).first.wait_for()
        assert page.problems == []
