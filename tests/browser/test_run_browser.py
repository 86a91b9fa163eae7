"""Run Browser in a real browser, in both of ComfyUI's renderers: the list of past runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import RENDERERS, open_page
from support.server import ComfyServer

ADD = """() => {
  const graph = window.app.graph
  graph.clear()
  const node = LiteGraph.createNode("LoRAWorkbench_RunBrowser")
  const see = LiteGraph.createNode("PreviewAny")
  node.pos = [60, 80]
  see.pos = [560, 80]
  graph.add(node)
  graph.add(see)
  node.connect(0, see, 0)
  window.app.canvas.ds.offset = [0, 40]
  window.app.canvas.ds.scale = 1
  window.app.canvas.draw(true, true)
}"""
# A click brings a node to the front, and so to the end of the list.
WIDGET = """name => window.app.graph._nodes.find(node => node.comfyClass.endsWith("RunBrowser")).widgets.find(
  widget => widget.name === name)"""
CHOSEN = f"() => ({WIDGET})('run').value"
OPTIONS = f"() => ({WIDGET})('run').options.values"
SAYS = f"() => ({WIDGET})('$$node-text-preview')?.value ?? ''"


def put_run(root: Path, name: str, *, at: float, sample: bool = False, **facts: Any) -> None:
    """A run's folder as LoRA Trainer leaves it, without its files of weights."""
    folder = root / name
    folder.mkdir(parents=True)
    told = {"id": name, "name": name, "workflow": "", "node": "", "prompt": "", "started_at": at, **facts}
    (folder / "run.json").write_text(json.dumps(told))
    (folder / "summary.json").write_text(json.dumps({"name": name, "steps": facts.get("steps", 0)}))
    if sample:
        (folder / "samples").mkdir()
        Image.new("RGB", (64, 64), "#3080c0").save(folder / "samples" / "0001.png")


@pytest.fixture
def root(server: ComfyServer) -> Iterator[Path]:
    """The folder of all runs, with two that are newer than any other."""
    root = server.base / "output" / "lora_workbench"
    names = ("browse_old", "browse_new", "browse_later")
    put_run(root, names[0], at=4e9, steps=1, loss=0.5, outcome="cancelled")
    put_run(root, names[1], at=4.1e9, sample=True, steps=1200, loss=0.08125, outcome="finished")
    yield root
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)


@RENDERERS
def test_a_run_is_chosen_from_the_list(
    vue: bool, chromium: Any, server: ComfyServer, root: Path, tmp_path: Path
) -> None:
    with open_page(chromium, server.url, vue=vue) as page:
        page.wait_for_function("() => window.app.extensionManager?.workflow?.activeWorkflow?.changeTracker")
        page.evaluate(ADD)
        rows = page.locator(".lwb-run")
        rows.nth(1).wait_for()
        new, old = rows.nth(0).inner_text(), rows.nth(1).inner_text()
        assert new.startswith("browse_new") and "1200 steps · loss 0.0813 · finished" in new and "2099" in new
        assert old.startswith("browse_old") and "1 step · loss 0.5000 · cancelled" in old
        picture = rows.nth(0).locator("img")
        page.wait_for_function("picture => picture.naturalWidth === 64", arg=picture.element_handle())
        assert rows.nth(1).locator("img").count() == 0
        for number, name in ((1, "browse_old"), (0, "browse_new")):
            rows.nth(number).click()
            assert page.evaluate(CHOSEN) == name
            marked = page.locator(".lwb-run[aria-pressed=true]")
            assert [row.get_attribute("data-run") for row in marked.all()] == [name]
        shutil.rmtree(root / "browse_old")
        put_run(root, "browse_later", at=4.2e9 + vue)  # ComfyUI would take a run of the same facts from its cache
        page.get_by_role("button", name="Refresh").click()
        page.locator(".lwb-run", has_text="browse_later").click()
        assert page.evaluate(CHOSEN) == "browse_later" and page.evaluate(OPTIONS)[0] == "browse_later"
        assert "browse_new" in page.evaluate(OPTIONS) and "browse_old" not in page.evaluate(OPTIONS)
        page.screenshot(path=tmp_path / "runs.png")
        page.evaluate("() => window.app.queuePrompt(0)")
        page.wait_for_function(f"() => ({SAYS})().startsWith('browse_later: ')")
        if vue:
            page.locator("[data-node-id]").get_by_text("browse_later").first.wait_for()
        saved = page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
        (node,) = [node for node in saved["nodes"] if node["type"].endswith("RunBrowser")]
        assert node["widgets_values"] == ["browse_later"]
        assert page.problems == []
