"""Loss Options greys out what has no effect, in a real browser."""

from __future__ import annotations

from typing import Any

from support.browser import RENDERERS, load_workflow, open_page
from support.server import ComfyServer

NODE = "LoRAWorkbench_LossOptions"
ADD = "type => { window.app.graph.clear(); window.app.graph.add(LiteGraph.createNode(type)) }"
GREY = "() => window.app.graph._nodes[0].widgets.filter(widget => widget.disabled).map(widget => widget.name)"
SET = """([name, value]) => {
  const widget = window.app.graph._nodes[0].widgets.find(one => one.name === name)
  widget.value = value
  widget.callback(value)
}"""
ALL = {
    "gamma", "p2_gamma", "huber_c", "huber_schedule", "noise_offset_adaptive", "noise_offset_random",
    "multires_discount", "ip_noise_random",
}  # fmt: skip


@RENDERERS
def test_inputs_without_an_effect_are_grey(vue: bool, chromium: Any, server: ComfyServer) -> None:
    with open_page(chromium, server.url, vue=vue) as page:
        page.evaluate(ADD, NODE)
        assert set(page.evaluate(GREY)) == ALL
        page.evaluate(SET, ["weighting", "min-SNR"])
        page.evaluate(SET, ["loss", "Huber"])
        assert set(page.evaluate(GREY)) == ALL - {"gamma", "huber_c", "huber_schedule"}
        page.evaluate(SET, ["weighting", "P2"])
        page.evaluate(SET, ["noise_offset", 0.1])
        page.evaluate(SET, ["ip_noise_gamma", 0.1])
        expected = {"gamma", "multires_discount"}
        assert set(page.evaluate(GREY)) == expected
        load_workflow(page, page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))"))
        assert set(page.evaluate(GREY)) == expected, "a loaded workflow shows its own values"
        assert page.problems == []
