"""ComfyUI's own web server, if it runs; scripts and tests run without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# The last text of the node that runs in this context.
_text: ContextVar[list[str] | None] = ContextVar("lora_workbench_text", default=None)


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
    noted = _text.get()
    if noted is not None:
        noted[:] = [text]
    server = _instance()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


def send(event: str, data: dict[str, Any]) -> None:
    """Send an event to every page that is open. Without a server, do nothing."""
    server = _instance()
    if server is not None:
        server.send_sync(event, data)


@contextmanager
def last_text() -> Iterator[list[str]]:
    """Give a list that holds the last text which `node_text` was given in the block, if any."""
    noted: list[str] = []
    token = _text.set(noted)
    try:
        yield noted
    finally:
        _text.reset(token)


def executing_node() -> str:
    """Return the id of the node that ComfyUI queries or runs now, with the ids of the subgraphs around it."""
    context = _context()
    return context.node_id if context else ""


def executing_prompt() -> str:
    """Return the id of the prompt that ComfyUI runs now."""
    context = _context()
    return context.prompt_id if context else ""


def _context() -> Any:
    from comfy_execution.utils import get_executing_context

    return get_executing_context()


def prompts() -> list[tuple[str, dict[str, Any]]]:
    """Return the id and the entry in ComfyUI's history of each prompt, the newest first. Running ones have none yet."""
    server = _instance()
    if server is None:
        return []
    running, _ = server.prompt_queue.get_current_queue_volatile()
    ended = server.prompt_queue.get_history()
    return [(item[1], {}) for item in running] + list(reversed(ended.items()))
