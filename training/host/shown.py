"""What the pack's nodes showed last, kept so that a page which is loaded later shows it again.

It is kept in the memory of the server, because

- a browser gets no message while its page reloads, or while it is closed during a long training;
- ComfyUI's history holds a prompt only once it has ended, and forgets it when the user clears the list;
- a workflow file travels to other people, and texts hold paths of this machine.

It ends with the server, as ComfyUI's folder of temporary pictures does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

# Key in a node's output with its text. ComfyUI sends a node's output again when it takes its result from the cache.
TEXT = "lora_workbench_text"
# web/shown.js gives a workflow without an id of its own this one.
_OWN_ID = "lora_workbench"
_MOST = 500  # nodes

# The texts of the node that is running in this context.
_texts: ContextVar[list[str] | None] = ContextVar("lora_workbench_texts", default=None)


class Shown:
    """The last output of each node, by workflow. Safe for several threads.

    Args:
        most: How many nodes are kept; those that ran least recently go first.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str], tuple[str, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, workflow: str, node: str, kind: str, output: dict[str, Any]) -> None:
        """Keep what a node of some kind shows."""
        with self._lock:
            self._kept[workflow, node] = kind, output
            self._kept.move_to_end((workflow, node))
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def forget(self, workflow: str, node: str) -> None:
        """Forget what a node showed."""
        with self._lock:
            self._kept.pop((workflow, node), None)

    def of(self, workflow: str) -> dict[str, dict[str, Any]]:
        """What each node of a workflow shows: its kind and its output. Pictures that are gone are left out."""
        with self._lock:
            kept = {node: entry for (place, node), entry in self._kept.items() if place == workflow}
        return {node: {"kind": kind, "output": _without_lost_pictures(output)} for node, (kind, output) in kept.items()}


@cache
def shown() -> Shown:
    """Return what the nodes of this server show."""
    return Shown()


def workflow_id(pnginfo: Any) -> str:
    """The id of the workflow that a prompt was made from, as web/shown.js finds it; empty for a prompt without one.

    Args:
        pnginfo: What ComfyUI gives a node as `extra_pnginfo`.
    """
    workflow = (pnginfo.get("workflow") if isinstance(pnginfo, dict) else None) or {}
    return str((workflow.get("extra") or {}).get(_OWN_ID) or workflow.get("id") or "")


def say(text: str) -> None:
    """Take note of the text of the node that runs now."""
    texts = _texts.get()
    if texts is not None:
        texts[:] = [text]


@contextmanager
def texts_of_a_node() -> Iterator[list[str]]:
    """Give the list that holds the last text of the node that runs in the block."""
    texts: list[str] = []
    token = _texts.set(texts)
    try:
        yield texts
    finally:
        _texts.reset(token)


def route() -> web.RouteDef:
    """The route that tells a page what the nodes of its workflow show."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(shown().of(request.match_info["workflow"]))

    return web.get("/lora_workbench/shown/{workflow}", answer)


def _without_lost_pictures(output: dict[str, Any]) -> dict[str, Any]:
    if "images" not in output:
        return output
    return {**output, "images": [picture for picture in output["images"] if _exists(picture)]}


def _exists(picture: dict[str, str]) -> bool:
    folder = folder_paths.get_directory_by_type(picture["type"])
    return folder is not None and Path(folder, picture["subfolder"], picture["filename"]).is_file()
