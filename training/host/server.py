"""ComfyUI's own web server, if it runs; scripts and tests run without it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .shown import say


def _instance() -> Any:
    from server import PromptServer  # exists only in a running server

    return getattr(PromptServer, "instance", None)


def add_routes(routes: Iterable[Any]) -> None:
    """Add routes of aiohttp to the server. Without a server, do nothing."""
    server = _instance()
    if server is not None:
        for route in routes:
            server.routes.route(route.method, route.path)(route.handler)


def node_text(node_id: str | None, text: str) -> None:
    """Show a line of text in a node of the graph. Without a server or a node, only take note of it."""
    say(text)
    server = _instance()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


def executing_node() -> str:
    """Return the id of the node that ComfyUI queries or runs now, with the ids of the subgraphs around it."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return context.node_id if context else ""
