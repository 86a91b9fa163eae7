"""Base class of the pack's nodes: id and category, text in the node, progress and cancel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ..training.data.folders import DATASETS_KEY
from ..training.errors import UserError
from ..training.events import Cancelled
from ..training.host.paths import without_folders
from ..training.host.progress import NodeSink, host_interrupt
from ..training.host.server import executing_node, executing_prompt, last_text, node_text
from ..training.host.shown import TEXT, shown, workflow_id

CATEGORY = "LoRA Workbench"

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


class Node(io.ComfyNode):
    """A node of the pack. Keep it free of state: the host executes a clone of the class."""

    def __init_subclass__(cls, **parts: Any) -> None:
        """Let the node keep what it shows. The host's clones of the class bring an `execute` that does already."""
        super().__init_subclass__(**parts)
        execute = cls.__dict__.get("execute")
        if execute is not None and not hasattr(execute.__func__, "__wrapped__"):
            cls.execute = classmethod(_keeping_what_is_shown(execute.__func__, _node_id(cls)))

    @classmethod
    def schema(cls, **parts: Any) -> io.Schema:
        """Build the schema. The node's id is `LoRAWorkbench_<class name>`.

        Args:
            parts: Fields of io.Schema. Those unknown to the running host are dropped (`search_aliases` on 0.3.75).
                `hidden` is the node's unique id unless given. Nodes that never use it pass `hidden=[]`, because a
                unique id makes the host's cache tell copies of a node apart.
        """
        parts = {
            "node_id": _node_id(cls),
            "category": CATEGORY,
            **parts,
            # What names the workflow. It does not tell copies apart.
            "hidden": [*parts.get("hidden", [io.Hidden.unique_id]), io.Hidden.extra_pnginfo],
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


def _node_id(cls: type) -> str:
    return f"LoRAWorkbench_{cls.__name__}"


def _keeping_what_is_shown(execute: Callable[..., io.NodeOutput], kind: str) -> Callable[..., io.NodeOutput]:
    """Make a node's output carry its last text, and keep that output for pages that are loaded later.

    While it runs, nothing is kept of it: a node that fails must not look like one that has succeeded. What the user
    can mend is shown in the node too, as newer front ends show an error's text only on request.
    """

    @wraps(execute)
    def wrapped(cls: type[Node], *args: Any, **inputs: Any) -> io.NodeOutput:
        workflow = workflow_id(getattr(cls.hidden, "extra_pnginfo", None))
        place = workflow, executing_node(), executing_prompt(), kind
        shown().keep(*place, {})
        with last_text() as text:
            try:
                result = execute(cls, *args, **inputs)
            except UserError as error:
                node_text(executing_node() or None, str(error))
                shown().keep(*place, {TEXT: [without_folders(line, DATASETS_KEY) for line in text]})
                raise
        output = result.ui.as_dict() if hasattr(result.ui, "as_dict") else dict(result.ui or {})
        if text:
            # ComfyUI's history is open to other computers.
            output[TEXT] = [without_folders(line, DATASETS_KEY) for line in text]
        if output:
            result.ui = output
            shown().keep(*place, output)
        return result

    return wrapped
