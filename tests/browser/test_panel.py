"""Runs that train while LoRA Trainer's panel shows them, in a real browser on a real server."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import Any

from support.browser import RENDERERS, open_page
from support.panel import COUNT, IDLE, SAVED, SEND, Panel, story, wait, workflow
from support.server import ComfyServer

# ComfyUI's own page throws this at an event that comes before its canvas is there.
THROWN = {"getCanvas: canvas is null"}
ZOOM = """async () => {
  const file = (await (await fetch('/extensions')).json()).find(name => name.endsWith('/training_panel.js'));
  const { panels } = await import(window.app.api.fileURL(file));
  const panel = panels.get(window.app.graph._nodes.find(node => node.type.endsWith('LoRATrainer')));
  const { min, max } = panel.chart.plot.scales.x;
  return [min, max];
}"""


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
        # A question that was left open does not go on to the next run.
        panel.press("Stop and discard")
        event["run"], told["id"] = "another", "another"
        page.route("**/runs/another", lambda route: route.fulfill(json=told))
        send(begin, *steps[:2])
        panel.root.get_by_role("button", name="Stop and discard").wait_for()
        assert panel.step() == 2
        assert not panel.root.get_by_role("button", name="Discard", exact=True).is_visible()
        event["run"], told["id"] = "live", "live"
        send(begin, *steps[: step + 9])
        panel.wait_for_step(step + 9)
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
