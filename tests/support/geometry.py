"""Where the nodes and groups of an open workflow are on ComfyUI's page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Both in units of the graph. Nodes 2.0 draws HTML: what is seen counts, not what the graph believes.
MEASURE = """vue => {
  const { canvas, graph } = window.app, { scale, offset } = canvas.ds;
  canvas.draw(true, true);
  const page = canvas.canvas.getBoundingClientRect();
  const drawn = node => {
    const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
    const left = (box.left - page.left) / scale - offset[0], top = (box.top - page.top) / scale - offset[1];
    return [left, top, left + box.width / scale, top + box.height / scale];
  };
  const titled = ({ pos: [x, y], size: [width, height] }) =>
    [x, y - LiteGraph.NODE_TITLE_HEIGHT, x + width, y + height];
  return {
    nodes: graph._nodes.map(node => [String(node.id), node.title, vue ? drawn(node) : titled(node)]),
    groups: graph._groups.map(({ title, pos: [x, y], size: [width, height] }) =>
      [title, title, [x, y, x + width, y + height]]),
  };
}"""
SLACK = 1.0  # rounding of HTML


@dataclass(frozen=True)
class Box:
    """A named rectangle, y downwards."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    def __str__(self) -> str:
        return f"{self.name} ({self.left:.0f}, {self.top:.0f}, {self.right:.0f}, {self.bottom:.0f})"

    def overlaps(self, other: Box) -> bool:
        """Whether the two have an area in common."""
        return (
            min(self.right, other.right) - max(self.left, other.left) > SLACK
            and min(self.bottom, other.bottom) - max(self.top, other.top) > SLACK
        )

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        return (
            self.left - SLACK <= other.left and self.top - SLACK <= other.top
            and other.right <= self.right + SLACK and other.bottom <= self.bottom + SLACK
        )  # fmt: skip

    def holds_middle_of(self, other: Box) -> bool:
        """Whether the other's middle lies inside: then it belongs here, as ComfyUI decides when a group is moved."""
        x, y = (other.left + other.right) / 2, (other.top + other.bottom) / 2
        return self.left <= x <= self.right and self.top <= y <= self.bottom


def measure(page: Any, vue: bool) -> tuple[dict[str, Box], dict[str, Box]]:
    """The boxes of all nodes by their id, and of all groups by their title."""
    found = page.evaluate(MEASURE, vue)
    nodes, groups = ({key: Box(name, *box) for key, name, box in found[kind]} for kind in ("nodes", "groups"))
    return nodes, groups
