"""ComfyUI's page in a real Chromium."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .marks import long_but

# ComfyUI's two ways to draw nodes. All of Nodes 2.0 is with the long tests.
WAYS = long_but({False}, [False, True], {False: "canvas", True: "vue"}.get)
RENDERERS = pytest.mark.parametrize("vue", WAYS)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
READY = "() => !!(window.app?.graph && window.LiteGraph?.registered_node_types?.LoRAWorkbench_LoRATrainer)"
TIMEOUT = 60_000  # milliseconds


def chromium() -> str:
    """The path of a Chromium: CHROME_PATH, else whatever is on PATH. Without one the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CHROME_PATH") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium: install one, or name it in CHROME_PATH")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """Start a headless Chromium.

    Playwright allows one at a time, and while it runs no `asyncio.run` in this thread: end it with the module.

    Yields:
        A Playwright browser.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def open_page(browser: Any, url: str, *, vue: bool = False, size: tuple[int, int] = (1800, 1100)) -> Iterator[Any]:
    """Open ComfyUI's page with the pack's nodes registered and no dialog in front.

    Args:
        browser: From `browser`.
        url: Of the server.
        vue: Whether nodes are drawn by Vue ("Nodes 2.0") or on the canvas. The server remembers it.
        size: Width and height of the window in pixels.

    Yields:
        A Playwright page. Its attribute `problems` lists every error thrown in it.
    """
    set_setting(url, "Comfy.TutorialCompleted", "true")  # or the templates open over the canvas
    set_setting(url, "Comfy.VueNodes.Enabled", "true" if vue else "false")
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    try:
        page.set_default_timeout(TIMEOUT)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        # Nothing but the server under test: the front end would ask its makers' servers about the user.
        page.route(lambda to: urlsplit(to).hostname not in ("127.0.0.1", "localhost"), lambda r: r.abort())
        page.goto(url)
        page.wait_for_function(READY)
        page.wait_for_function("() => document.querySelector('canvas')?.width > 0")
        yield page
    finally:
        page.close()


def template(file: Path) -> dict[str, Any]:
    """A workflow with the test server's models in it: newer front ends mark nodes whose model is missing."""
    text = file.read_text(encoding="utf-8")
    for theirs, ours in (("v1-5-pruned-emaonly-fp16", "tiny_sd15"), ("my_character", "tiny_lora")):
        text = text.replace(f"{theirs}.safetensors", f"{ours}.safetensors")
    return json.loads(text)


def load_workflow(page: Any, workflow: dict[str, Any]) -> None:
    """Open a workflow and bring all of it into view."""
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function("count => window.app.graph._nodes.length === count", arg=len(workflow["nodes"]))


def build_report(page: Any, folder: str) -> None:
    """Build the graph of Dataset Report once the front end has opened the workflow with which it starts."""
    page.wait_for_function("() => window.app.extensionManager?.workflow?.activeWorkflow?.changeTracker")
    page.evaluate(_REPORT_GRAPH, folder)


def set_setting(url: str, setting: str, value: str) -> None:
    """Change a setting of ComfyUI's page, in JSON. The server keeps it for every page opened from now on."""
    request = urllib.request.Request(
        f"{url}/settings/{setting}", value.encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()


# Dataset Report below a Load Dataset, in a graph that was cleared.
_REPORT_GRAPH = """folder => {
  const graph = window.app.graph;
  graph.clear();
  const load = LiteGraph.createNode("LoRAWorkbench_LoadDataset");
  const report = LiteGraph.createNode("LoRAWorkbench_DatasetReport");
  load.pos = [40, 80];
  report.pos = [480, 80];
  graph.add(load);
  graph.add(report);
  load.widgets.find(widget => widget.name === "folder").value = folder;
  load.connect(0, report, 0);
  window.app.canvas.ds.offset = [0, 40];
  window.app.canvas.ds.scale = 1;
  window.app.canvas.draw(true, true);
}"""
