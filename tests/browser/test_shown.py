"""What the nodes showed is there again after the page was reloaded, in both of ComfyUI's renderers."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.browser import READY, RENDERERS, build_report, load_workflow, open_page
from support.photos import write_photos
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
SPINE = json.loads((ROOT / "example_workflows" / "lora_1_train_and_preview.json").read_text(encoding="utf-8"))

# The text in the first node of a type, and how many of its pictures the browser could load.
SHOWS = """async type => {
  const node = window.app.graph._nodes.find(node => node.type === `LoRAWorkbench_${type}`);
  const text = node?.widgets.find(widget => widget.name === '$$node-text-preview')?.value ?? '';
  const pictures = window.app.nodeOutputs[node?.id]?.images ?? [];
  const found = await Promise.all(pictures.map(picture =>
    fetch(window.app.api.apiURL(`/view?${new URLSearchParams(picture)}`)).then(answer => answer.ok)));
  return [text, found.length, found.every(Boolean)];
}"""
# Small enough for a test; given to every node of the type.
SMALL = {
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 1},
    "LoRAWorkbench_LoadDataset": {"folder": "photos"},
    "LoRAWorkbench_BucketImages": {"resolution": 128},
    "LoRAWorkbench_SamplePrompts": {"width": 128, "height": 128, "steps": 1},
    "LoRAWorkbench_LoRATrainer": {"steps": 3, "rank": 2, "if_run_before": "train again"},
}
SET_VALUES = """small => {
  for (const node of window.app.graph._nodes)
    for (const [name, value] of Object.entries(small[node.type] ?? {}))
      node.widgets.find(widget => widget.name === name).value = value;
}"""


def reload(page: Any) -> None:
    """Reload the page when the front end has kept the workflow as it is now."""
    page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_function(READY)
    page.wait_for_function("() => window.app.graph._nodes.length > 0")


def wait_for_text(page: Any, kind: str, start: str = "") -> None:
    page.wait_for_function(
        """([kind, start]) => window.app.graph._nodes.find(node => node.type === `LoRAWorkbench_${kind}`)?.widgets.some(
          widget => widget.name === '$$node-text-preview' && widget.value && widget.value.startsWith(start))""",
        arg=[kind, start],
        timeout=180_000,
    )


@RENDERERS
def test_the_report_survives_a_reload(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    folder = f"reload_{vue}"
    write_photos(server.base / "input" / folder / "2_photo", longest=256)
    with open_page(chromium, server.url, vue=vue) as page:
        build_report(page, folder)
        panel = page.locator(".lwb-report")
        panel.get_by_text("Queue the graph to examine the dataset.").wait_for()
        page.evaluate("() => window.app.queuePrompt(0)")
        panel.locator("details, p").first.wait_for()
        wait_for_text(page, "DatasetReport")
        found = panel.inner_text()
        before = [page.evaluate(SHOWS, kind) for kind in ("LoadDataset", "DatasetReport")]
        assert before[1][1:] == [1, True]
        reload(page)
        panel.locator("details, p").first.wait_for()
        wait_for_text(page, "LoadDataset")
        wait_for_text(page, "DatasetReport")
        assert panel.inner_text() == found
        assert [page.evaluate(SHOWS, kind) for kind in ("LoadDataset", "DatasetReport")] == before
        page.wait_for_timeout(500)
        page.screenshot(path=tmp_path / "reloaded.png")
        if vue:
            page.locator("[data-node-id] img").first.wait_for()
            assert page.locator("[data-node-id]").get_by_text(before[0][0]).count() == 1
        # The server has lost the picture: no broken one is shown.
        picture = page.evaluate("() => Object.values(window.app.nodeOutputs).find(o => o.images).images[0]")
        (server.base / "temp" / picture["subfolder"] / picture["filename"]).unlink()
        reload(page)
        panel.locator("details, p").first.wait_for()
        wait_for_text(page, "DatasetReport")
        assert page.evaluate(SHOWS, "DatasetReport") == [before[1][0], 0, True]
        assert page.problems == []


@RENDERERS
def test_a_trained_workflow_survives_a_reload(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    name = f"reload_trained_{vue}"
    values = {**SMALL, "LoRAWorkbench_LoRATrainer": {**SMALL["LoRAWorkbench_LoRATrainer"], "name": name}}
    values["LoRAWorkbench_SaveLoRA"] = {"name": name}
    # ComfyUI sends nothing of a node whose result it has already, unless it is an output node.
    values["LoRAWorkbench_LoadDataset"] = {"folder": "photos", "trigger": name}
    workflow = json.loads(json.dumps(SPINE).replace("v1-5-pruned-emaonly-fp16.safetensors", "tiny_sd15.safetensors"))
    kinds = ("LoadDataset", "BucketImages", "LoRATrainer", "SaveLoRA")
    with open_page(chromium, server.url, vue=vue) as page:
        load_workflow(page, workflow)
        page.evaluate(SET_VALUES, values)
        page.evaluate("() => window.app.queuePrompt(0)")
        wait_for_text(page, "SaveLoRA")
        wait_for_text(page, "LoRATrainer", "finished: 3 steps")
        before = [page.evaluate(SHOWS, kind) for kind in kinds]
        assert before[1][1:] == [1, True], before
        assert f"{name}.safetensors" in before[3][0], before
        reload(page)
        for kind in kinds:
            wait_for_text(page, kind)
        assert [page.evaluate(SHOWS, kind) for kind in kinds] == before
        page.wait_for_timeout(500)
        page.screenshot(path=tmp_path / "reloaded.png")
        saved = page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
        assert "finished: 3 steps" not in saved, "a text travels with the workflow"
        assert str(server.base) not in saved, "a path travels with the workflow"
        # The same workflow under another id: ComfyUI takes the results of the last nodes from its cache.
        load_workflow(page, {**workflow, "id": str(uuid.uuid4())})
        page.evaluate(SET_VALUES, values)
        assert page.evaluate(SHOWS, "LoRATrainer")[0] == ""
        page.evaluate("() => window.app.queuePrompt(0)")
        for again in (False, True):
            if again:
                reload(page)
            for kind in kinds[2:]:
                wait_for_text(page, kind)
            assert [page.evaluate(SHOWS, kind) for kind in kinds[2:]] == before[2:]
        assert page.problems == []


@RENDERERS
def test_an_error_replaces_the_last_success(vue: bool, chromium: Any, server: ComfyServer) -> None:
    folder = f"reload_failed_{vue}"
    files = write_photos(server.base / "input" / folder / "2_photo", longest=256)
    with open_page(chromium, server.url, vue=vue) as page:
        build_report(page, folder)
        page.evaluate("() => window.app.queuePrompt(0)")
        wait_for_text(page, "LoadDataset", "8 pictures")
        for file in files:
            file.unlink()
        page.evaluate("() => window.app.queuePrompt(0)")
        wait_for_text(page, "LoadDataset", "There are no pictures")
        assert "There are no pictures" not in page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
        reload(page)
        wait_for_text(page, "LoadDataset", "There are no pictures")
        assert page.problems == []


# The two nodes in a subgraph, whose texts the front end shows only while it is open.
WRAP = """() => { const graph = window.app.graph; graph.convertToSubgraph(new Set(graph._nodes)); }"""
OPEN = """() => window.app.canvas.setGraph(window.app.graph._nodes[0].subgraph)"""
SAID_INSIDE = """() => window.app.canvas.graph.nodes.map(
  node => node.widgets.find(widget => widget.name === '$$node-text-preview')?.value ?? '')"""


@pytest.mark.long
@RENDERERS
def test_nodes_of_a_subgraph_show_their_texts_when_it_is_opened(vue: bool, chromium: Any, server: ComfyServer) -> None:
    folder = f"reload_inside_{vue}"
    write_photos(server.base / "input" / folder / "2_photo", longest=256)
    with open_page(chromium, server.url, vue=vue) as page:
        build_report(page, folder)
        page.evaluate(WRAP)
        page.evaluate("""() => {
          window.app.api.addEventListener('execution_success', () => { window.done = true; });
          window.app.queuePrompt(0);
        }""")
        page.wait_for_function("() => window.done")
        reload(page)
        page.wait_for_timeout(1000)
        page.evaluate(OPEN)
        page.wait_for_function(f"() => ({SAID_INSIDE})().every(text => text.length > 0)")
        assert any(text.startswith("8 pictures") for text in page.evaluate(SAID_INSIDE))
        assert page.problems == []
