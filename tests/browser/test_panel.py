"""The training panel, in a real browser on a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.browser import READY, load_workflow, open_page, template
from support.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
SPINE = ROOT / "example_workflows" / "lora_1_train_and_preview.json"
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
SMALL = {
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 1},
    "LoRAWorkbench_LoadDataset": {"folder": "photos"},
    "LoRAWorkbench_BucketImages": {"resolution": 128},
}
SET_VALUES = """small => {
  for (const node of window.app.graph._nodes)
    for (const [name, value] of Object.entries(small[node.type] ?? {}))
      node.widgets.find(widget => widget.name === name).value = value;
}"""
QUEUE = "() => window.app.queuePrompt(0)"
LOOK_AT_TRAINER = """() => {
  const node = window.app.graph._nodes.find(node => node.type === 'LoRAWorkbench_LoRATrainer');
  const { ds } = window.app.canvas;
  ds.scale = 1; ds.offset = [200 - node.pos[0], 100 - node.pos[1]];
  window.app.canvas.setDirty(true, true);
}"""


def test_play(chromium: Any, server: ComfyServer) -> None:
    for vue in (False, True):
        with open_page(chromium, server.url, vue=vue) as page:
            page.on("console", lambda m: print("console", m.type, m.text[:300]) if m.type in ("error", "warning") else None)
            load_workflow(page, template(SPINE))
            page.evaluate(SET_VALUES, SMALL | {"LoRAWorkbench_LoRATrainer": {"name": f"play{vue}", "steps": 60, "rank": 2}})
            page.evaluate(LOOK_AT_TRAINER)
            page.wait_for_timeout(1500)
            page.screenshot(path=f"/work/shots/play_{vue}_0.png")
            page.evaluate(QUEUE)
            page.wait_for_function("() => /step/.test(document.querySelector('.lwb-facts')?.textContent)", timeout=120000)
            page.wait_for_timeout(3000)
            page.screenshot(path=f"/work/shots/play_{vue}_1.png")
            print(page.locator(".lwb-panel").first.inner_text())
            page.locator(".lwb-panel").get_by_text("finished after").wait_for()
            page.wait_for_timeout(300)
            page.screenshot(path=f"/work/shots/play_{vue}_2.png")
            print(page.problems)
