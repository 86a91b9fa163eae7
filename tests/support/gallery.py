"""The gallery of EditCaptions on a page in Chromium, and pictures for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from support.server import ComfyServer

COLORS = ("red", "green", "blue", "orange", "purple")

_SHOW = """folder => {
  const graph = window.app.graph;
  graph.clear();
  const add = (type, pos) => {
    const node = LiteGraph.createNode("LoRAWorkbench_" + type);
    node.pos = pos;
    graph.add(node);
    return node;
  };
  const load = add("LoadDataset", [40, 80]);
  load.widgets.find(widget => widget.name === "folder").value = folder;
  load.connect(0, add("EditCaptions", [380, 80]), 0);
  window.app.canvas.ds.offset = [0, 40];
  window.app.canvas.ds.scale = 1;
  window.app.canvas.draw(true, true);
}"""
QUEUE = "() => window.app.queuePrompt(0)"


def numbered(folder: Path, count: int) -> None:
    """Pictures of a number on a colour, with tags as captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        color = COLORS[number % len(COLORS)]
        picture = Image.new("RGB", (96, 64 if number % 3 else 128), color)
        ImageDraw.Draw(picture).text((10, 10), str(number), fill="white", font_size=32)
        picture.save(folder / f"{number:04}.png", compress_level=1)
        (folder / f"{number:04}.txt").write_text(f"{color}, number {number}, picture\n", encoding="utf-8")


class Gallery:
    """The gallery on an open page.

    Attributes:
        folder: Of its dataset, in the input folder.
    """

    def __init__(self, page: Any, folder: str) -> None:
        self.page, self.folder = page, folder
        self.root = page.locator(".lwb")
        self.grid = self.root.locator(".lwb-grid")
        self.text = self.root.locator("textarea")
        self.count = self.root.locator(".lwb-bar").first.locator(".lwb-count")

    def open(self) -> None:
        """Put the nodes on the canvas and queue them."""
        self.page.evaluate(_SHOW, self.folder)
        self.page.evaluate(QUEUE)
        self.cards().first.wait_for()

    def cards(self) -> Any:
        return self.root.locator(".lwb-card")

    def card(self, number: int) -> Any:
        return self.root.locator(f'.lwb-card[data-name$="{number:04}.png"]')

    def tag(self, name: str) -> Any:
        return self.root.locator(f'.lwb-tag[data-tag="{name}"]')

    def shows(self, text: str) -> None:
        self.page.wait_for_function(
            "text => document.querySelector('.lwb-bar .lwb-count').textContent === text", arg=text
        )

    def says(self, number: int, caption: str) -> None:
        """Wait until a picture has a caption."""
        self.page.wait_for_function(
            "([name, caption]) => document.querySelector(`.lwb-card[data-name$='${name}'] p`)?.textContent === caption",
            arg=[f"{number:04}.png", caption],
        )

    def saved(self, server: ComfyServer) -> dict[str, dict[str, Any]]:
        """The edits that lie on the server's disk, by picture."""
        key = self.page.evaluate("window.app.graph._nodes[1].properties.lora_workbench_gallery")
        file = server.base / "output" / "lora_workbench" / "edits" / f"{key}.json"
        return json.loads(file.read_text(encoding="utf-8"))["pictures"]

    def captions(self, *numbers: int) -> list[str]:
        return [self.card(number).locator("p").inner_text() for number in numbers]
