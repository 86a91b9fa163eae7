"""The tables of Estimate Training in a real browser, in both of ComfyUI's renderers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.browser import RENDERERS, open_page
from support.photos import write_photos
from support.server import ComfyServer

# Load Dataset, Bucket Images and a checkpoint into Estimate Training, in a graph that was cleared.
GRAPH = """folder => {
  const graph = window.app.graph;
  graph.clear();
  const add = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    graph.add(node);
    for (const [name, value] of Object.entries(values))
      node.widgets.find(widget => widget.name === name).value = value;
    return node;
  };
  const data = add("LoRAWorkbench_LoadDataset", 40, 80, { folder });
  const buckets = add("LoRAWorkbench_BucketImages", 40, 400, { resolution: 64 });
  const loader = add("CheckpointLoaderSimple", 480, 80, { ckpt_name: "tiny_sd15.safetensors" });
  const estimate = add("LoRAWorkbench_EstimateTraining", 860, 80, { epochs: 100, measure: true });
  data.connect(0, buckets, 0);
  for (const output of [0, 1, 2]) loader.connect(output, estimate, output);
  buckets.connect(0, estimate, 3);
  window.app.canvas.ds.offset = [0, 40];
  window.app.canvas.ds.scale = 0.8;
  window.app.canvas.draw(true, true);
}"""
LOOK_AT_ITS_END = """() => {
  const node = window.app.graph._nodes.find(node => node.type === "LoRAWorkbench_EstimateTraining");
  window.app.canvas.ds.offset = [100 - node.pos[0], 1100 - node.pos[1] - node.size[1]];
  window.app.canvas.draw(true, true);
}"""
NUMBERS = """() => Object.fromEntries(
  [...document.querySelectorAll('.lwb-estimate table:first-of-type tr')]
    .map(row => [...row.cells].map(cell => cell.innerText))
)"""


@RENDERERS
def test_the_tables_show_the_estimate(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    folder = f"estimate_{'vue' if vue else 'canvas'}"
    write_photos(server.base / "input" / folder / "2_photo", ["cat", "coffee", "rocket"], longest=128)
    with open_page(chromium, server.url, vue=vue) as page:
        page.wait_for_function("() => window.app.extensionManager?.workflow?.activeWorkflow?.changeTracker")
        page.evaluate(GRAPH, folder)
        panel = page.locator(".lwb-estimate")
        panel.get_by_text("Queue the graph to estimate the training.").wait_for()
        page.evaluate("() => window.app.queuePrompt(0)")
        panel.get_by_text("24 GB").wait_for()
        page.evaluate(LOOK_AT_ITS_END)
        page.screenshot(path=tmp_path / "estimate.png")
        numbers = page.evaluate(NUMBERS)
        assert numbers["pictures"] == "3" and numbers["steps per epoch"] == "6" and numbers["steps"] == "600"
        assert numbers["latents to encode"] == "3" and numbers["time of a step"].endswith(" s")
        cards = panel.locator("table").last.locator("tr").all_inner_texts()
        assert len(cards) == 6 and cards[1].startswith("this device (cpu)"), cards
        box, last = panel.bounding_box(), panel.locator("tr").last.bounding_box()
        assert box and last
        assert last["y"] + last["height"] <= box["y"] + box["height"], "the last row is seen without scrolling"
        assert page.problems == []
