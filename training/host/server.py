"""ComfyUI's own web server, where there is one: a script or a test runs without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def _instance() -> Any:
    from server import PromptServer  # exists only in a running server

    return getattr(PromptServer, "instance", None)


def add_routes(routes: Iterable[Any]) -> None:
    """Add routes of aiohttp to the server; without a server there is nothing to add to."""
    server = _instance()
    if server is not None:
        for route in routes:
            server.routes.route(route.method, route.path)(route.handler)


def node_text(node_id: str | None, text: str) -> None:
    """Write a line of text into a node of the graph; without a server or a node, nowhere."""
    server = _instance()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


def executing_node() -> str:
    """The id of the node that ComfyUI asks or runs at this moment, with those of the subgraphs around it."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return context.node_id if context else ""
