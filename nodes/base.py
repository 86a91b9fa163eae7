"""Base class of the pack's nodes: id and category, text in the node, progress and cancel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io

from ..training.events import Cancelled
from ..training.host.progress import NodeSink, host_interrupt
from ..training.host.server import node_text

CATEGORY = "LoRA Workbench"

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


class Node(io.ComfyNode):
    """A node of the pack. Keep it free of state: the host executes a clone of the class."""

    @classmethod
    def schema(cls, **parts: Any) -> io.Schema:
        """Build the schema. The node's id is `LoRAWorkbench_<class name>`.

        Args:
            parts: Fields of io.Schema. Those unknown to the running host are dropped (`search_aliases` on 0.3.75).
                `hidden` is the node's unique id unless given. Nodes that never use it pass `hidden=[]`, because a
                unique id makes the host's cache tell copies of a node apart.
        """
        parts = {
            "node_id": f"LoRAWorkbench_{cls.__name__}",
            "category": CATEGORY,
            "hidden": [io.Hidden.unique_id],
            **parts,
        }
        return io.Schema(**{name: part for name, part in parts.items() if name in _SCHEMA_FIELDS})

    @classmethod
    def show(cls, text: str) -> None:
        """Show a text in the node."""
        node_text(cls.hidden.unique_id, text)

    @classmethod
    @contextmanager
    def cancellable(cls) -> Iterator[NodeSink]:
        """Give the node's progress sink. A cancel inside the block stops ComfyUI's queue."""
        sink = NodeSink(cls.hidden.unique_id)
        try:
            yield sink
        except Cancelled as error:
            sink.take_cancel()
            raise host_interrupt() from error
