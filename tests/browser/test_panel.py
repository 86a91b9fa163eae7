"""The training panel of LoRA Trainer, in a real browser on a real server."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_workbench.training.run import curve
from PIL import Image
from support.browser import READY, load_workflow, open_page
from support.server import ComfyServer

RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
# ComfyUI's own page throws this at an event that comes before its canvas is there.
THROWN = {"getCanvas: canvas is null"}
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
ZOOM = """async () => {
  const file = (await (await fetch('/extensions')).json()).find(name => name.endsWith('/training_panel.js'));
  const { panels } = await import(window.app.api.fileURL(file));
  const panel = panels.get(window.app.graph._nodes.find(node => node.type.endsWith('LoRATrainer')));
  const { min, max } = panel.chart.plot.scales.x;
  return [min, max];
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
# What the front end opens after "Save As".
SAVE_AS = """name => {
  const { workflow } = window.app.extensionManager;
  workflow.activeWorkflow.changeTracker.checkState();
  return JSON.parse(workflow.saveAs(workflow.activeWorkflow, `workflows/${name}.json`).content);
}"""
COLUMNS = ("step", "loss", "rate")
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
                {"file": f"samples/{step}_{n}.png", "prompt": f"prompt {n}", "seed": n, "width": 64, "height": 96}
                for n in range(3)
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


@RENDERERS
def test_a_run_from_its_first_point_to_stop_and_keep(vue: bool, chromium: Any, server: ComfyServer) -> None:
    name = f"panel_{vue}"
    folder = server.base / "output" / "lora_workbench" / name
    with open_page(chromium, server.url, vue=vue) as page:
        panel, graph = Panel(page), workflow(page, name)
        panel.open(graph)
        panel.root.get_by_text(IDLE).wait_for()
        assert panel.root.get_by_role("button", name="Save now").is_disabled()
        page.evaluate("() => window.app.queuePrompt(0)")
        panel.wait_for_step(4)

        # Zoomed by a drag, and so while points arrive. A double click shows all again.
        box = panel.root.locator(".u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 30, steps=4)
        page.mouse.up()
        zoomed, step = page.evaluate(ZOOM), panel.step()
        assert 1 < zoomed[0] < zoomed[1] < step + 1
        panel.wait_for_step(step + 3)
        assert page.evaluate(ZOOM) == zoomed
        page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 20)
        assert page.evaluate(ZOOM)[0] == 1 and page.evaluate(ZOOM)[1] >= step + 3

        # In mid-run the chart is back after a reload, from its first point on.
        panel.reload()
        panel.wait_for_step(step + 5)
        [run] = panel.runs()
        assert run["steps"] == list(range(1, run["steps"][-1] + 1)) and run["state"] == "running"

        # A second browser has it too; another workflow there does not.
        with open_page(chromium, server.url, vue=vue) as other_page:
            other = Panel(other_page)
            other.open({**graph, "id": str(uuid.uuid4())})
            other_page.wait_for_timeout(1000)
            other.root.get_by_text(IDLE).wait_for()
            assert other.runs() == []
            other.open(graph)
            other.wait_for_step(panel.step())
            other.press("Save now")
            wait(lambda: list(folder.glob("*-step*.safetensors")), "no checkpoint")
            assert set(other_page.problems) <= THROWN

        # The mark of the checkpoint came here as well.
        wait(lambda: panel.runs()[0]["checkpoints"], "no mark")
        assert (folder / panel.runs()[0]["checkpoints"][0]).is_file()
        panel.press("Stop and keep")
        panel.root.get_by_text("stopped, LoRA kept after").wait_for()
        assert (folder / f"{name}.safetensors").is_file()
        assert panel.root.get_by_role("link", name="Report").is_visible()
        assert panel.root.get_by_role("button", name="Save now").is_disabled()

        # Nothing is drawn when nothing changes.
        page.wait_for_timeout(500)
        page.evaluate(COUNT)
        page.wait_for_timeout(1000)
        assert page.evaluate("window.drawn") == 0
        panel.root.get_by_text("log scale").click()
        page.wait_for_function("() => window.drawn > 0")

        # Next week: a server that knows nothing but the files.
        again = folder.with_name(f"{name}_again")
        shutil.copytree(folder, again)
        facts = json.loads((again / "run.json").read_text())
        later = {**graph, "id": str(uuid.uuid4())}
        (again / "run.json").write_text(json.dumps({**facts, "id": f"aa{facts['id'][2:]}", "workflow": later["id"]}))
        panel.open(later)
        panel.root.get_by_text("stopped, LoRA kept after").wait_for()
        [shown] = panel.runs()
        assert shown["folder"].endswith("_again") and shown["steps"][0] == 1 and shown["checkpoints"]
        saved = json.dumps(page.evaluate(SAVED))
        assert "_again" not in saved and "stopped" not in saved
        assert set(page.problems) <= THROWN


def test_stop_and_discard_asks_first(chromium: Any, server: ComfyServer) -> None:
    folder = server.base / "output" / "lora_workbench" / "panel_discard"
    with open_page(chromium, server.url) as page:
        panel = Panel(page)
        panel.open(workflow(page, "panel_discard"))
        page.evaluate("() => window.app.queuePrompt(0)")
        panel.wait_for_step(2)
        panel.press("Stop and discard")
        panel.press("Go on training")
        step = panel.step()
        panel.wait_for_step(step + 2)
        # A request that fails says so.
        page.route("**/runs/*/save", lambda route: route.abort())
        panel.press("Save now")
        panel.root.get_by_text("ComfyUI does not answer.").wait_for()
        assert panel.root.get_by_role("button", name="Save now").is_enabled()
        assert folder.is_dir()
        panel.press("Stop and discard")
        panel.press("Discard")
        panel.root.get_by_text(f"The run was discarded. {IDLE}").wait_for()
        wait(lambda: not folder.exists(), "the folder is still there")
        assert page.problems == []


def test_a_run_that_is_used_again_shows_its_chart(chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url) as page:
        panel = Panel(page)
        panel.open(workflow(page, "panel_first", 3))
        page.evaluate("() => window.app.queuePrompt(0)")
        wait(lambda: [run["state"] for run in panel.runs()] == ["finished"], "the run did not end")
        page.evaluate("""() => {
          const trainer = window.app.graph._nodes.find(node => node.type.endsWith('LoRATrainer'));
          trainer.widgets.find(widget => widget.name === 'name').value = 'panel_second';
        }""")
        events = len(server.events)
        page.evaluate("() => window.app.queuePrompt(0)")
        wait(lambda: any(
            line["kind"] == "reused"
            for event in server.events[events:] if event["type"] == "lora_workbench.run"
            for line in event["data"]["lines"]
        ), "the run was trained again")  # fmt: skip
        page.wait_for_timeout(500)
        (run,) = panel.runs()
        assert (run["name"], run["state"], run["steps"]) == ("panel_first", "finished", [1, 2, 3])
        panel.root.get_by_text("panel_first").wait_for()
        assert panel.step() == 3 and not (server.base / "output" / "lora_workbench" / "panel_second").exists()
        assert page.problems == []


def test_a_wish_is_shown_until_it_is_granted(chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url) as page:
        panel, graph = Panel(page), workflow(page, "panel_wishes")
        trainer = next(str(node["id"]) for node in graph["nodes"] if node["type"].endswith("LoRATrainer"))
        panel.open(graph)
        event = {"workflow": graph["id"], "node": trainer, "prompt": "", "run": "live"}
        begin, *lines = (line for line in story("panel_wishes") if line["kind"] != "held_out")
        told = {"id": "live", "state": "running", "folder": "x", "curve": None, "last": {}, "lines": [begin]}
        page.route("**/runs/live", lambda route: route.fulfill(json=told))
        page.route("**/runs/live/*", lambda route: route.fulfill(json={}))

        def send(*lines: dict[str, Any]) -> None:
            page.evaluate(SEND, {**event, "lines": list(lines)})

        def pending() -> str:
            page.wait_for_timeout(200)
            return panel.root.locator(".lwb-pending").inner_text()

        steps = [line for line in lines if line["kind"] == "step"]
        sample = next(line for line in lines if line["kind"] == "sample")
        send(begin)
        send(*steps[:60])
        panel.wait_for_step(60)
        for name, said, answer in (
            ("Save now", "Saves a checkpoint after this step.", {"kind": "checkpoint", "epoch": 2, "file": "x"}),
            ("Sample now", "Makes samples after this step.", sample),
            ("Sample now", "Makes samples after this step.", {"kind": "hint", "text": "The samples failed."}),
        ):
            step = panel.step()
            panel.press(name)
            assert pending() == said and panel.root.get_by_role("button", name=name).is_disabled()
            send({"kind": "checkpoint", "step": step - 1, "epoch": 2, "file": "old"}, steps[step])
            assert pending() == said
            send({**answer, "step": step + 1})
            assert pending() == "" and panel.root.get_by_role("button", name=name).is_enabled()
        # One that nothing answers.
        step = panel.step()
        panel.press("Save now")
        send(*steps[step : step + 8])
        assert pending() == "Saves a checkpoint after this step."
        send(steps[step + 8])
        assert pending() == ""
        panel.press("Stop and keep")
        assert pending() == "Stops after this step."
        send({"kind": "end", "outcome": "stopped", "step": step + 9, "seconds": 3})
        assert pending() == "" and panel.root.get_by_role("link", name="Report").is_visible()
        # A run that failed at once has nothing to look at.
        event["run"], told["id"] = "next", "next"
        page.route("**/runs/next", lambda route: route.fulfill(json=told))
        send(begin, {"kind": "end", "outcome": "failed", "step": 0, "seconds": 3})
        panel.root.get_by_text("The training failed before its first step.").wait_for()
        panel.root.get_by_text("failed after 3 s").wait_for()
        assert not panel.root.get_by_role("link", name="Report").is_visible()
        assert page.problems == []


@RENDERERS
def test_a_finished_run_is_looked_at(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    name = f"panel_story_{vue}"
    with open_page(chromium, server.url, vue=vue) as page:
        panel, graph = Panel(page), workflow(page, name)
        trainer = next(str(node["id"]) for node in graph["nodes"] if node["type"].endswith("LoRATrainer"))
        write_run(server, name, {"workflow": graph["id"], "node": trainer}, story(name))
        panel.open(graph)
        panel.root.get_by_text("finished after 1:01").wait_for()
        text = " ".join(panel.root.inner_text().split())
        for said in ("step 120 / 120", "epoch 4 / 4", "2.00 it/s", "memory 7.0 GiB", "rung plain", "120 steps are"):
            assert said in text

        # The samples: the newest, then those chosen with the slider, then one of them large.
        pictures = panel.root.locator(".lwb-strip img")
        assert pictures.count() == 3
        panel.root.get_by_text("step 120 (newest)").wait_for()
        panel.root.locator(".lwb-samples input").fill("1")
        panel.root.get_by_text("step 30", exact=True).wait_for()
        loaded = "() => [...document.querySelectorAll('.lwb-strip img')].every(image => image.naturalWidth === 64)"
        page.wait_for_function(loaded)
        pictures.nth(1).click()
        large = page.get_by_role("dialog", name="Sample")
        large.get_by_text("prompt 1 · seed 1 · step 30 · 64 × 96").wait_for()
        page.keyboard.press("ArrowRight")
        large.get_by_text("step 60").wait_for()
        page.keyboard.press("Escape")
        assert large.count() == 0

        # The pointer reads values and marks.
        box = panel.root.locator(".u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)  # steps run from 0 to 120
        hover = panel.root.locator(".lwb-hover")
        for said in ("step 60", f"checkpoint {name}-60.safetensors", "samples of step 60", "loss 0.", "held-out 0.15"):
            assert said in hover.inner_text()
        assert "held-out a" not in hover.inner_text()

        # Switches are remembered in the workflow.
        panel.root.get_by_text("clip outliers").click()
        panel.root.get_by_role("button", name="base model").click()
        panel.root.get_by_role("button", name="a", exact=True).click()
        panel.root.get_by_role("button", name="held-out b", exact=True).click()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)
        panel.root.get_by_text("held-out b 0.13").wait_for()
        page.wait_for_timeout(200)
        saved = page.evaluate(SAVED)
        panel.open(saved)
        panel.root.get_by_text("finished after 1:01").wait_for()
        assert panel.root.get_by_label("clip outliers").is_checked()
        pressed = {key: panel.root.get_by_role("button", name=key, exact=True).get_attribute("aria-pressed")
                   for key in ("loss", "held-out", "base model", "a", "b", "held-out a", "held-out b")}
        on = {"loss", "held-out", "a", "held-out b"}
        assert {key for key, value in pressed.items() if value == "true"} == on
        page.screenshot(path=tmp_path / "dark.png")

        # Another palette is drawn at once.
        page.evaluate(COUNT)
        before = panel.root.evaluate("root => getComputedStyle(root).color")
        page.evaluate("() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
        page.wait_for_function("() => window.drawn > 0")
        assert panel.root.evaluate("root => getComputedStyle(root).color") != before
        page.wait_for_timeout(300)
        page.screenshot(path=tmp_path / "light.png")
        page.evaluate("() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
        page.wait_for_timeout(300)
        assert page.problems == []


def test_events_of_a_run_fill_gaps_and_do_not_leak(chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url) as page:
        panel, graph = Panel(page), workflow(page, "panel_events")
        trainer = next(str(node["id"]) for node in graph["nodes"] if node["type"].endswith("LoRATrainer"))
        lines = story("panel_events")
        folder = write_run(server, "panel_events", {"workflow": "elsewhere", "node": trainer}, lines)
        run = json.loads((folder / "run.json").read_text())["id"]
        panel.open(graph)
        event = {"workflow": graph["id"], "node": trainer, "prompt": "", "run": "live"}
        steps = [line for line in lines if line["kind"] == "step"]
        asked: list[str] = []

        def answer(route: Any) -> None:  # what the server knows: nothing at first, then all
            asked.append(route.request.url)
            known = {"id": "live", "state": "running", "folder": "x", "lines": lines[:1]}
            columns = {
                "stride": 1, "count": [1] * 9, "concepts": {}, "counts": {},
                **{key: [line[key] for line in steps[:9]] for key in COLUMNS},
            }  # fmt: skip
            late = {"curve": columns, "last": steps[8]} if len(asked) > 1 else {"curve": None, "last": {}}
            route.fulfill(json={**known, **late})

        page.route("**/runs/live", answer)
        page.evaluate(SEND, {**event, "workflow": "elsewhere", "lines": lines[:6]})
        assert panel.runs() == []
        page.evaluate(SEND, {**event, "lines": [*lines[:1], *steps[:2]]})
        panel.wait_for_step(2)
        page.evaluate(SEND, {**event, "lines": steps[2:4]})
        panel.wait_for_step(4)
        assert len(asked) == 1
        # A step that does not follow the last one: everything is asked for again.
        page.evaluate(SEND, {**event, "lines": steps[7:9]})
        panel.wait_for_step(9)
        assert panel.runs()[0]["steps"] == list(range(1, 10)) and len(asked) == 2
        # A reused run is shown as it is on disk.
        page.evaluate(SEND, {**event, "run": "", "lines": [{"kind": "reused", "run": run}]})
        panel.root.get_by_text("finished after 1:01").wait_for()
        assert panel.runs()[0]["steps"] == list(range(1, 121))
        # A run that begins takes its place.
        page.evaluate(SEND, {**event, "run": "next", "lines": [{**lines[0], "name": "next"}]})
        panel.root.get_by_text(IDLE).wait_for()  # the server does not know it
        assert [run["id"] for run in panel.runs()] == ["next"]
        assert page.problems == []


def test_a_copy_of_a_workflow_does_not_show_its_runs(chromium: Any, server: ComfyServer) -> None:
    name = "panel_copied"
    with open_page(chromium, server.url) as page:
        panel, graph = Panel(page), {**workflow(page, name), "id": str(uuid.UUID(int=0))}
        trainer = next(str(node["id"]) for node in graph["nodes"] if node["type"].endswith("LoRATrainer"))
        names = []
        for extra in ({}, {"lora_workbench": str(uuid.uuid4())}):  # a template, and one saved after it was cleared
            panel.open({**graph, "extra": {**graph["extra"], **extra}})
            names.append(page.evaluate(ID))
            assert names[-1] == extra.get("lora_workbench", names[-1]) != graph["id"]
            write_run(server, f"{name}_{len(names)}", {"workflow": names[-1], "node": trainer}, story(name))
            saved = page.evaluate(SAVED)
            assert saved["id"] == names[-1]
            panel.open(saved)
            panel.root.get_by_text("finished after 1:01").wait_for()
            panel.open(page.evaluate(SAVE_AS, f"{name}_{len(names)}"))
            panel.root.get_by_text(IDLE).wait_for()
            names.append(page.evaluate(ID))
            page.wait_for_timeout(500)
            assert panel.runs() == []
            # Nor what goes on in the original from now on.
            event = {"workflow": names[-2], "node": trainer, "prompt": "", "run": "live"}
            page.evaluate(SEND, {**event, "lines": story(name)[:6]})
            assert panel.runs() == []
        assert len(set(names)) == 4
        assert page.problems == []


@RENDERERS
def test_a_trainer_in_a_subgraph_is_seen_from_outside(vue: bool, chromium: Any, server: ComfyServer) -> None:
    name = f"panel_inside_{vue}"
    with open_page(chromium, server.url, vue=vue) as page:
        panel = Panel(page)
        panel.open(workflow(page, name))
        outer, inner = page.evaluate("""() => {
          const graph = window.app.graph;
          const inside = graph._nodes.filter(node => /LoRATrainer|BucketImages/.test(node.type));
          const { node } = graph.convertToSubgraph(new Set(inside));
          return [node.id, node.subgraph.nodes.find(node => /LoRATrainer/.test(node.type)).id];
        }""")
        place = {"workflow": page.evaluate(ID), "node": f"{outer}:{inner}"}
        folder = write_run(server, name, place, story(name))
        run = json.loads((folder / "run.json").read_text())["id"]
        page.evaluate(SEND, {**place, "prompt": "", "run": run, "lines": story(name)[:1]})
        page.wait_for_timeout(500)
        panel.see()
        panel.root.get_by_text("finished after 1:01").wait_for()
        node = f"window.app.graph.getNodeById({outer})"
        assert page.evaluate(f"() => {node}.widgets.map(widget => widget.name)").count("training") == 1
        saved = page.evaluate(f"() => {node}.serialize()")
        assert "training" not in json.dumps([saved.get("properties"), saved.get("widgets_values")])
        if vue:  # the node has grown, and holds the panel
            around = page.locator(f"[data-node-id='{outer}']").bounding_box()
            inside = panel.root.bounding_box()
            assert around["x"] <= inside["x"] and inside["x"] + inside["width"] <= around["x"] + around["width"]
            assert inside["y"] + inside["height"] <= around["y"] + around["height"] and inside["width"] >= 370
        # After the workflow is opened again.
        panel.open({**page.evaluate(SAVED), "id": place["workflow"]})
        panel.root.get_by_text("finished after 1:01").wait_for()
        assert page.problems == []


@RENDERERS
def test_the_node_holds_its_panel_and_all_labels(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    with open_page(chromium, server.url, vue=vue, size=(1200, 1900)) as page:
        panel = Panel(page)
        panel.open(workflow(page, "panel_labels"))
        for shows_all in (False, True):
            if shows_all:
                page.evaluate("() => window.app.graph._nodes.find(n => /LoRATrainer/.test(n.type)).toggleAdvanced()")
                page.wait_for_timeout(500)
                page.evaluate(SEE.replace("600 -", "1700 -"))
                page.wait_for_timeout(300)
            page.screenshot(path=tmp_path / f"{shows_all}.png")
            inside = panel.root.bounding_box()
            assert inside["height"] >= 400
            if not vue:
                fits = page.evaluate("""() => {
                  const node = window.app.graph._nodes.find(n => /LoRATrainer/.test(n.type));
                  return node.size[1] >= node.computeSize()[1] && node.size[0] >= 400;
                }""")
                assert fits
                continue
            around = page.locator("[data-node-id]:has(.lwb-panel)").bounding_box()
            assert inside["y"] + inside["height"] <= around["y"] + around["height"] + 1
            assert inside["x"] + inside["width"] <= around["x"] + around["width"]
            cut = page.evaluate("""() => [...document.querySelectorAll('[data-node-id]:has(.lwb-panel) .truncate')]
              .filter(label => label.scrollWidth > label.clientWidth + 1).map(label => label.textContent)""")
            assert cut == []
        assert page.problems == []


@pytest.fixture(scope="module")
def modules(chromium: Any) -> Iterator[Any]:
    """A page with data.js in it, without a server."""
    page = chromium.new_page()
    text = (Path(__file__).resolve().parents[2] / "web" / "panel" / "data.js").read_text(encoding="utf-8")
    page.evaluate("""async text => {
      window.data = await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    }""", text)
    yield page
    page.close()


def test_the_page_thins_as_the_server_does(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = curve.MOST
    monkeypatch.setattr(curve, "MOST", 50)
    steps = [
        {"kind": "step", "step": n, "loss": (n * 7919 % 101) / 100, "rate": n / 1000, "seconds": n,
         "concepts": {"ab"[n % 2]: n / 100}}
        for n in range(1, 334)
    ]  # fmt: skip
    server = curve.Curve()
    for line in steps:
        server.add(line["step"], line["loss"], line["rate"], line["concepts"])
    told = server.columns()
    found = modules.evaluate("""lines => {
      const run = new window.data.Run("x", 50);
      for (const line of lines) run.add(line);
      const again = lines.slice(-20).map(line => run.add(line));
      return { stride: run.curve.stride, again, ...run.curve.columns() };
    }""", steps)
    assert found.pop("counts") == told.pop("counts")
    assert found.pop("again") == [False] * 20, "a line that came twice is drawn twice"
    concepts, theirs = found.pop("concepts"), told.pop("concepts")
    assert {key: pytest.approx(value) for key, value in told.items()} == found
    assert {key: pytest.approx(value) for key, value in theirs.items()} == concepts
    most = modules.evaluate("""() => {
      const run = new window.data.Run("x");
      for (let step = 1; step <= 30000; step++) run.add({ kind: "step", step, loss: 1, rate: 1, seconds: step });
      return run.curve.points.length;
    }""")
    assert allowed / 2 <= most <= allowed


def test_the_loss_shown_is_the_same_after_a_reload(modules: Any) -> None:
    steps = [
        {"kind": "step", "step": n, "loss": (n * 7919 % 101) / 100 + (n > 2900), "rate": 1, "seconds": n,
         "concepts": {"ab"[n % 3 == 0]: n / 100}}
        for n in range(1, 3004)
    ]  # fmt: skip
    server = curve.Curve()
    for line in steps[:-2]:
        server.add(line["step"], line["loss"], line["rate"], line["concepts"])
    live, again, whole = modules.evaluate("""([lines, curve]) => {
      const { Run, smoothed } = window.data;
      const shown = run => {
        const { loss, count, concepts, counts } = run.curve.columns();
        return [[loss, count], [concepts.a, counts.a], [concepts.b, counts.b]].map(
          ([values, counts]) => smoothed(values, 0.99, counts).findLast(value => value !== null));
      };
      const runs = [new Run("x"), new Run("x"), new Run("x", 10000)];
      runs[1].take({ state: "running", curve, last: lines.at(-3), lines: [] });
      for (const run of runs) for (const line of lines) run.add(line);
      return runs.map(shown);
    }""", [steps, server.columns()])
    assert live == pytest.approx(again, rel=1e-9)
    assert live == pytest.approx(whole, rel=0.02), "a thinned curve is smoothed otherwise"
