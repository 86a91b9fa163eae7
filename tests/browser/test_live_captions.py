"""Workflows saved when wildcards and one drawn line were one switch of Live Captions, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.browser import RENDERERS, load_workflow, open_page
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "data" / "workflows_0.1" / "prepare_a_dataset.json"
NODE = "LoRAWorkbench_LiveCaptions"
PROMPT = "async () => (await window.app.graphToPrompt()).output"


def loaded(page: Any, *values: Any) -> tuple[bool, bool]:
    """What the two switches are after opening a workflow in which Live Captions was saved with some last values."""
    workflow = json.loads(OLD.read_text(encoding="utf-8"))
    (node,) = [node for node in workflow["nodes"] if node["type"] == NODE]
    assert len(node["widgets_values"]) == 5
    node["widgets_values"][4:] = values
    load_workflow(page, workflow)
    (inputs,) = [one["inputs"] for one in page.evaluate(PROMPT).values() if one["class_type"] == NODE]
    assert [inputs[name] for name in ("shuffle", "keep_tokens", "tag_dropout", "caption_dropout")] == [
        True, 1, 0.1, 0.05]  # fmt: skip
    return inputs["wildcards"], inputs["draw_one_line"]


@RENDERERS
def test_one_saved_switch_becomes_two(vue: bool, chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url, vue=vue) as page:
        assert loaded(page, True) == (True, True)
        assert loaded(page, False) == (False, False)
        # The text under a node that has run is saved as a value too.
        assert loaded(page, True, "Examples:\nzorp") == (True, True)
        assert loaded(page, False, None) == (False, False)
        # What is saved now is loaded as it is.
        for new in ((True, False), (False, True), (True, True, "Examples:\nzorp"), (True, False, None)):
            assert loaded(page, *new) == new[:2]
        again = page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
        load_workflow(page, again)
        (inputs,) = [one["inputs"] for one in page.evaluate(PROMPT).values() if one["class_type"] == NODE]
        assert (inputs["wildcards"], inputs["draw_one_line"]) == (True, False)
        assert page.problems == []


def test_a_new_node_varies_nothing(chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url) as page:
        page.evaluate("type => { window.app.graph.clear(); window.app.graph.add(LiteGraph.createNode(type)) }", NODE)
        widgets = page.evaluate("() => window.app.graph._nodes[0].widgets.map(widget => [widget.name, widget.value])")
        assert dict(widgets) == {
            "shuffle": False, "keep_tokens": 1, "tag_dropout": 0, "caption_dropout": 0, "wildcards": False,
            "draw_one_line": False, "drop_every_epochs": 0,
        }  # fmt: skip
