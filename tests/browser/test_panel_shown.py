"""What LoRA Trainer's panel shows of runs on disk and of events, in a real browser on a real server."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from support.browser import RENDERERS, open_page
from support.panel import COUNT, ID, IDLE, SAVED, SEE, SEND, Panel, story, workflow, write_run
from support.server import ComfyServer

COLUMNS = ("step", "loss", "rate")
# What the front end opens after "Save As".
SAVE_AS = """name => {
  const { workflow } = window.app.extensionManager;
  workflow.activeWorkflow.changeTracker.checkState();
  return JSON.parse(workflow.saveAs(workflow.activeWorkflow, `workflows/${name}.json`).content);
}"""


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
        large.get_by_text("prompt 1 · seed 1 · step 60").wait_for()  # the first prompt of this step failed
        page.keyboard.press("ArrowDown")
        large.get_by_text("prompt 2 · seed 2 · step 60").wait_for()
        page.keyboard.press("ArrowLeft")
        large.get_by_text("prompt 2 · seed 2 · step 30").wait_for()
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
