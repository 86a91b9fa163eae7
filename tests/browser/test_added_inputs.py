"""Workflows of older versions load where inputs were added, also with the text of a node behind their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.browser import RENDERERS, load_workflow, open_page
from support.server import ComfyServer

OLD = Path(__file__).resolve().parents[1] / "data" / "workflows_0.1" / "prepare_a_dataset.json"
PROMPT = "async () => (await window.app.graphToPrompt()).output"
TEXT = "4 pictures in 2 buckets, 4 per epoch"

# The number of values in version 0.1, what was added at their end, its defaults and other values.
NODES: dict[str, tuple[int, dict[str, Any], list[Any]]] = {
    "BucketImages": (7, {"random_crop": False, "color_aug": False, "variants": 8}, [True, True, 3]),
    "LoadDataset": (3, {"caption_extension": ""}, [".tags"]),
    "LiveCaptions": (5, {"draw_one_line": None, "drop_every_epochs": 0}, [True, 4]),
}


@RENDERERS
def test_values_land_where_they_belong(vue: bool, chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url, vue=vue) as page:
        for name, (count, defaults, others) in NODES.items():
            kind = f"LoRAWorkbench_{name}"

            def loaded(more: list[Any], kind: str = kind, count: int = count) -> dict[str, Any]:
                workflow = json.loads(OLD.read_text(encoding="utf-8"))
                node = next(node for node in workflow["nodes"] if node["type"] == kind)
                assert len(node["widgets_values"]) == count
                node["widgets_values"] += more
                load_workflow(page, workflow)
                return page.evaluate(PROMPT)[str(node["id"])]["inputs"]

            for text in ([], [TEXT], [None]):
                inputs = loaded(text)
                added = {name: inputs[name] for name in defaults}
                wanted = {name: inputs["wildcards"] if value is None else value for name, value in defaults.items()}
                assert added == wanted, f"{name} with {text}"
            if name == "LiveCaptions":  # saved between version 0.1 and this one
                inputs = loaded([False, TEXT])
                assert (inputs["draw_one_line"], inputs["drop_every_epochs"]) == (False, 0)
            inputs = loaded(others)
            assert [inputs[name] for name in defaults] == others, name
        assert page.problems == []
