"""The panel of a trainer on ComfyUI's page, and runs for it to show."""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from .browser import READY, load_workflow
from .server import ComfyServer

IDLE = "Queue the graph to train."
STEPS = 600  # more than a test waits for

# A checkpoint and a dataset on a trainer. Returns the workflow as ComfyUI saves it.
BUILD = """([name, steps]) => {
  const graph = window.app.graph;
  graph.clear();
  const add = (type, x, values) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, 80];
    graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
    return node;
  };
  const loader = add("CheckpointLoaderSimple", 20, { ckpt_name: "tiny_sd15.safetensors" });
  const load = add("LoRAWorkbench_LoadDataset", 20, { folder: "photos", trigger: name });
  load.pos = [20, 300];
  const bucket = add("LoRAWorkbench_BucketImages", 20, { resolution: 128 });
  bucket.pos = [20, 600];
  const trainer = add("LoRAWorkbench_LoRATrainer", 560, { name, steps, rank: 1 });
  load.connect(0, bucket, 0);
  for (const at of [0, 1, 2]) loader.connect(at, trainer, at);
  bucket.connect(0, trainer, 3);
  return JSON.parse(JSON.stringify(graph.serialize())); // without what is undefined
}"""
# The page around the panel at the scale 1, with the panel in view.
SEE = """() => {
  const { ds } = window.app.canvas;
  const node = window.app.canvas.graph._nodes.find(n => n.widgets?.some(w => w.name === 'training'));
  ds.scale = 1;
  ds.offset = [80 - node.pos[0], 600 - node.pos[1] - node.size[1]];
  window.app.canvas.draw(true, true);
}"""
# The module of the page itself, which holds the runs.
RUNS = """async () => {
  const file = (await (await fetch('/extensions')).json()).find(name => name.endsWith('/training_panel.js'));
  const { feed, panels } = await import(window.app.api.fileURL(file));
  return [...feed.runs].map(([path, run]) => ({
    path, id: run.id, name: run.name, state: run.state, folder: run.folder,
    steps: run.curve.points.map(point => point.step), checkpoints: run.checkpoints.map(line => line.file),
  }));
}"""
# Counts what is drawn into charts and changed in panels from now on.
COUNT = """() => {
  window.drawn = 0;
  const { stroke } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.stroke = function () {
    if (this.canvas.closest('.lwb-chart')) window.drawn++;
    return stroke.apply(this, arguments);
  };
  new MutationObserver(changes => { window.drawn += changes.length; }).observe(
    document.querySelector('.lwb-panel'), { subtree: true, childList: true, attributes: true, characterData: true });
}"""
SAVED = "() => JSON.parse(JSON.stringify(window.app.graph.serialize()))"
ID = """async () => {
  const file = (await (await fetch('/extensions')).json()).find(name => name.endsWith('/training_panel.js'));
  return (await import(window.app.api.fileURL(file))).feed.workflowId();
}"""
SEND = "detail => window.app.api.dispatchCustomEvent('lora_workbench.run', detail)"


class Panel:
    """The panel of the only trainer on a page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.root = page.locator(".lwb-panel:visible").first

    def open(self, workflow: dict[str, Any]) -> None:
        load_workflow(self.page, workflow)
        self.see()

    def see(self) -> None:
        self.page.locator(".lwb-panel").first.wait_for(state="attached")
        self.page.wait_for_timeout(300)  # until the node has its size
        self.page.evaluate(SEE)

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()

    def runs(self) -> list[dict[str, Any]]:
        return self.page.evaluate(RUNS)

    def step(self) -> int:
        found = re.search(r"step\s*(\d+) / \d+", self.root.inner_text())
        return int(found[1]) if found else 0

    def wait_for_step(self, least: int) -> None:
        deadline = time.monotonic() + 30
        while self.step() < least:
            assert time.monotonic() < deadline, self.root.inner_text()
            self.page.wait_for_timeout(50)

    def reload(self) -> None:
        self.page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
        self.page.wait_for_timeout(1500)  # the front end keeps the workflow
        self.page.reload()
        self.page.wait_for_function(READY)
        self.page.wait_for_function("() => window.app.graph._nodes.length > 0")
        self.see()


def workflow(page: Any, name: str, steps: int = STEPS) -> dict[str, Any]:
    page.wait_for_function("() => window.app.extensionManager?.workflow?.activeWorkflow?.changeTracker")
    built = page.evaluate(BUILD, [name, steps])
    built["extra"].pop("lora_workbench", None)  # the id that a graph without one is given
    return {**built, "id": str(uuid.uuid4())}


def wait(until: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def write_run(server: ComfyServer, name: str, place: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    """A run as it lies on disk after its server ended."""
    folder = server.base / "output" / "lora_workbench" / name
    (folder / "samples").mkdir(parents=True)
    facts = {"id": uuid.uuid4().hex[:8], "name": name, "prompt": "", "started_at": time.time(), **place}
    (folder / "run.json").write_text(json.dumps({**facts, "outcome": "finished"}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        for picture in line["pictures"] if line["kind"] == "sample" else []:
            hue = int(line["step"]) % 256
            Image.new("RGB", (64, 96), (hue, 120, 255 - hue)).save(folder / picture["file"])
    return folder


def story(name: str, steps: int = 120) -> list[dict[str, Any]]:
    """The log of a run with everything that a panel shows."""
    lines: list[dict[str, Any]] = [
        {"kind": "begin", "name": name, "steps": steps, "epochs": 4, "time": 0, "pictures": 30, "concepts": ["a", "b"]},
        {"kind": "hint", "text": "120 steps are few."},
        {"kind": "memory", "step": 0, "rung": "plain", "bytes": 7 * 2**30},
    ]
    for step in range(steps + 1):
        if step:
            loss = 0.2 / (1 + step / 30) + (step * 7919 % 97) / 1500
            lines.append({
                "kind": "step", "step": step, "epoch": 1 + (step - 1) // 30, "loss": loss, "rate": 1e-4 * step / steps,
                "seconds": step / 2, "seconds_per_step": 0.5, "concepts": {"ab"[step % 2]: loss},
            })  # fmt: skip
        if step % 30 == 0:
            pictures = [
                {"file": f"samples/{step}_{n}.png", "number": n + 1, "prompt": f"prompt {n}", "seed": n, "width": 64,
                 "height": 96}
                for n in range(3) if (step, n) != (60, 0)  # a failed sample
            ]
            lines.append({"kind": "sample", "step": step, "epoch": step // 30, "seconds": 2, "pictures": pictures})
            held = {name: {"loss": loss - step / 2000, "base": 0.17} for name, loss in (("a", 0.2), ("b", 0.16))}
            lines.append({
                "kind": "held_out", "step": step, "loss": 0.18 - step / 2000, "base": 0.17, "concepts": held,
            })  # fmt: skip
        if step and step % 60 == 0:
            file = f"{name}-{step}.safetensors"
            lines.append({"kind": "checkpoint", "step": step, "epoch": step // 30, "file": file})
    return [*lines, {"kind": "end", "outcome": "finished", "step": steps, "seconds": 61}]
