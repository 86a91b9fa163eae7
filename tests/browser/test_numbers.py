"""Number inputs in a real browser: what is set, typed or dragged is what is shown and saved, however small it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import WAYS, open_page, set_setting
from support.server import ComfyServer

PREFIX = "LoRAWorkbench_"

ADD_NODE = """type => {
  const { canvas, graph } = window.app;
  graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [300, 60];
  graph.add(node);
  canvas.ds.scale = 1;
  canvas.ds.offset = [0, 0];
  canvas.setDirty(true, true);
}"""
WIDGET = "window.app.graph._nodes[0].widgets.find(widget => widget.name === name)"
# As a person finds them in a saved workflow: Nodes 2.0 of older front ends does not see what a script sets.
LOAD = """async values => {
  const saved = window.app.graph.serialize(), [node] = window.app.graph._nodes;
  node.widgets.filter(widget => widget.serialize !== false).forEach((widget, place) => {
    if (widget.name in values) saved.nodes[0].widgets_values[place] = values[widget.name];
  });
  await window.app.loadGraphData(saved, true, false);
  const [opened] = window.app.graph._nodes;
  if (opened.widgets.some(widget => widget.options.advanced)) opened.toggleAdvanced();
}"""
DRAWN = f"name => {WIDGET}._displayValue"
# The middle of a widget on the page, for the canvas.
MIDDLE = f"""name => {{
  window.app.canvas.draw(true, true);
  const node = window.app.graph._nodes[0], widget = {WIDGET}, canvas = window.app.canvas;
  const [x, y] = canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]);
  const box = canvas.canvas.getBoundingClientRect();
  return [box.left + x, box.top + y];
}}"""


# What makes the page take numbers that have no effect otherwise.
USED: dict[str, dict[str, Any]] = {
    "LossOptions": {"weighting": "min-SNR", "loss": "Huber", "multires_iterations": 1}
}


class Inputs:
    """The number inputs of one node, as a person uses them."""

    def __init__(self, page: Any, vue: bool) -> None:
        self.page, self.vue = page, vue

    def open(self, node: str, values: dict[str, float] | None = None) -> None:
        """Open a workflow of one node with these values, and its advanced inputs."""
        self.page.evaluate(ADD_NODE, PREFIX + node)
        self.page.evaluate(LOAD, values or {})
        if self.vue:
            self.page.locator("[data-node-id]").wait_for()

    def is_greyed(self, name: str) -> bool:
        """Whether the input takes nothing at present."""
        return bool(self.page.evaluate(f"name => {WIDGET}.disabled", name))

    def box(self, name: str) -> Any:
        """The text field of Nodes 2.0."""
        return self.page.locator(f'[data-node-id] :is(input[aria-label="{name}"], [aria-label="{name}"] input)')

    def middle(self, name: str) -> tuple[float, float]:
        """Where to click."""
        if not self.vue:
            return tuple(self.page.evaluate(MIDDLE, name))
        box = self.box(name).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def shown(self, name: str) -> float:
        """The number that stands there."""
        return float(self.box(name).input_value() if self.vue else self.page.evaluate(DRAWN, name))

    def saved(self, name: str) -> float:
        """The number that ComfyUI sends to the server and writes into the workflow."""
        prompt = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        (node,) = prompt.values()
        workflow = json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
        assert node["inputs"][name] in workflow["nodes"][0]["widgets_values"]
        return node["inputs"][name]

    def click_in(self, name: str) -> None:
        """Click the number, which makes it a text field with all of it selected."""
        self.page.mouse.click(*self.middle(name))
        if self.vue:
            self.page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'")
            self.page.keyboard.press("Control+A")
        else:
            self.page.locator(".graphdialog input").wait_for()

    def click_out(self) -> None:
        """Leave the text field as it is."""
        if self.vue:
            self.page.evaluate("() => document.activeElement.blur()")
        else:
            self.page.keyboard.press("Enter")
            self.page.locator(".graphdialog").wait_for(state="detached")

    def type(self, name: str, text: str, end: str = "Enter") -> None:
        """Type a number over what is there."""
        self.click_in(name)
        self.page.keyboard.type(text)
        if self.vue and end == "Enter":
            self.page.keyboard.press("Enter")
        self.click_out()

    def press(self, name: str, sign: int) -> bool:
        """Press a button of the older Nodes 2.0; False where there is none."""
        kind = "increment" if sign > 0 else "decrement"
        button = self.page.locator(f".p-inputnumber:has(input[aria-label='{name}']) .p-inputnumber-{kind}-button")
        if not button.count():
            return False
        button.click()
        self.page.wait_for_timeout(100)
        return True

    def drag(self, name: str, pixels: int) -> None:
        """Drag the number sideways."""
        x, y = self.middle(name)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=8)
        self.page.mouse.up()
        self.page.wait_for_timeout(100)


@pytest.fixture(scope="module", params=WAYS)
def page(request: Any, chromium: Any, server: ComfyServer) -> Iterator[Any]:
    with open_page(chromium, server.url, vue=request.param) as opened:
        opened.vue = request.param
        yield opened
        assert opened.problems == []


@pytest.fixture
def inputs(page: Any) -> Inputs:
    return Inputs(page, page.vue)


@pytest.fixture(scope="module")
def floats(server: ComfyServer) -> dict[str, dict[str, dict[str, Any]]]:
    """The options of every float input: node → input → options."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, info in server.object_info().items():
        if name.startswith(PREFIX):
            specs = info["input"].get("required", {}) | info["input"].get("optional", {})
            of_node = {key: options for key, (kind, options) in specs.items() if kind == "FLOAT"}
            if of_node:
                found[name.removeprefix(PREFIX)] = of_node
    return found


@pytest.mark.long
def test_every_number_is_shown_and_survives_a_click(inputs: Inputs, floats: dict[str, Any]) -> None:
    assert len(floats) > 8 and "learning_rate" in floats["LoRATrainer"]
    wrong = []
    for node, options in floats.items():
        for values in trials(options):
            inputs.open(node, values | USED.get(node, {}))
            for name, value in values.items():
                if inputs.is_greyed(name):
                    continue
                before = inputs.shown(name)
                inputs.click_in(name)
                inputs.click_out()
                seen = (before, inputs.shown(name), inputs.saved(name))
                if seen != (value, value, value):
                    wrong.append((node, name, value, seen))
    assert wrong == []


def trials(options: dict[str, dict[str, Any]]) -> Iterator[dict[str, float]]:
    """The default of each input; its smallest step from zero; and a finer number, where the input takes one."""
    yield {name: spec["default"] for name, spec in options.items()}
    lows = {name: max(spec["min"], 0.0) if spec["max"] > 0 else spec["min"] for name, spec in options.items()}
    least = {name: round(lows[name] + spec["step"], 10) for name, spec in options.items()}
    yield least
    finer = {name: round(least[name] + spec["step"] / 4, 10) for name, spec in options.items() if "round" in spec}
    if finer:
        yield finer


# A rate that the page shows as 0 and turns to 0: FluxGym 246 tells of it in a page of its own.
@pytest.mark.parametrize("text", ["2e-4", "0.0002", "1e-6", "1.25e-5", "3E-7"])
def test_a_typed_rate_is_kept(inputs: Inputs, text: str) -> None:
    # A click outside the canvas' text field cancels the input.
    for end in ("Enter", "click") if inputs.vue else ("Enter",):
        inputs.open("LoRATrainer")
        inputs.type("learning_rate", text, end)
        assert inputs.saved("learning_rate") == float(text), end
        assert inputs.shown("learning_rate") == float(text), end


@pytest.mark.parametrize(("rate", "pixels"), [(1e-4, -40), (3e-6, 40)])
def test_a_dragged_rate_is_kept(inputs: Inputs, rate: float, pixels: int) -> None:
    inputs.open("LoRATrainer", {"learning_rate": rate})
    sign = 1 if pixels > 0 else -1
    if inputs.press("learning_rate", sign):  # the older Nodes 2.0 has buttons only
        steps = [1]
    else:
        inputs.drag("learning_rate", pixels)
        steps = range(3, 60)  # one a pixel, or every ten
    assert inputs.saved("learning_rate") in [round(rate + sign * step * 1e-6, 6) for step in steps]
    assert inputs.shown("learning_rate") == inputs.saved("learning_rate")


# ComfyUI's own setting "Float widget rounding decimal places" must not turn a rate to 0 either.
def test_the_pages_own_rounding_leaves_a_rate_alone(chromium: Any, server: ComfyServer) -> None:
    set_setting(server.url, "Comfy.FloatRoundingPrecision", "3")
    try:
        with open_page(chromium, server.url) as page:
            inputs = Inputs(page, vue=False)
            inputs.open("LoRATrainer")
            page.wait_for_timeout(1000)  # a click is lost while the page still loads
            inputs.type("learning_rate", "2e-4")
            assert inputs.shown("learning_rate") == inputs.saved("learning_rate") == 2e-4
    finally:
        set_setting(server.url, "Comfy.FloatRoundingPrecision", "0")
