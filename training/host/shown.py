"""What the pack's nodes showed last, so that a page which is loaded later shows it again.

It is in the server, because a browser gets no message while its page reloads, or while it is closed during a long
training, and because a workflow file travels to other people, while texts hold paths of this machine.

ComfyUI's history has what nodes showed, also those whose result came from the cache. But it holds a prompt only once
that has ended, and forgets it when the user clears the list. So what nodes show is kept here too. Both end with the
server, as ComfyUI's folder of temporary pictures does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
from aiohttp import web

from .server import prompts

# Key in a node's output with its text. ComfyUI sends a node's output again when it takes its result from the cache.
TEXT = "lora_workbench_text"
# Key under which web/workflow.js puts an id in the `extra` of a workflow without one.
_OWN_ID = "lora_workbench"
_NO_ID = "00000000-0000-0000-0000-000000000000"
_PREFIX = "LoRAWorkbench_"
_MOST = 500  # nodes


class _Kept(NamedTuple):
    prompt: str
    kind: str
    output: dict[str, Any]


class Shown:
    """The last output of each node, by workflow. Safe for several threads.

    Args:
        most: How many nodes are kept; those that ran least recently go first.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, workflow: str, node: str, prompt: str, kind: str, output: dict[str, Any]) -> None:
        """Keep what a node shows.

        Args:
            workflow: Id of the workflow. Without one, nothing is kept, as no page can ask for it.
            node: Id of the node, with those of the subgraphs around it.
            prompt: Id of the prompt in which it runs.
            kind: Id of the node's class.
            output: What it shows; empty while it runs and if it has failed.
        """
        if not (workflow and node):
            return
        with self._lock:
            self._kept[workflow, node] = _Kept(prompt, kind, output)
            self._kept.move_to_end((workflow, node))
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def of(self, workflow: str, prompts: Iterable[tuple[str, dict[str, Any]]] = ()) -> dict[str, dict[str, Any]]:
        """What each node of a workflow shows: its kind and its output. Pictures that are gone are left out.

        Args:
            workflow: Id of the workflow.
            prompts: Prompts of any workflow, the newest first, as `server.prompts` gives them.
        """
        with self._lock:
            kept = {node: entry for (place, node), entry in self._kept.items() if place == workflow}
        found: dict[str, _Kept] = {}
        for prompt, entry in prompts:
            for node, told in kept.items():
                if told.prompt == prompt:
                    found.setdefault(node, told)
            for node, told in _in_history(workflow, prompt, entry).items():
                found.setdefault(node, told)
        return {
            node: {"kind": told.kind, "output": _without_lost_pictures(told.output)}
            for node, told in (kept | found).items()
            if told.output
        }


@cache
def shown() -> Shown:
    """Return what the nodes of this server show."""
    return Shown()


def workflow_id(pnginfo: Any) -> str:
    """The id of the workflow that a prompt was made from, as web/workflow.js finds it; empty for a prompt without one.

    Args:
        pnginfo: What ComfyUI gives a node as `extra_pnginfo`.
    """
    workflow = (pnginfo.get("workflow") if isinstance(pnginfo, dict) else None) or {}
    ids = workflow.get("id"), (workflow.get("extra") or {}).get(_OWN_ID)
    return next((str(found) for found in ids if found and found != _NO_ID), "")


def route() -> web.RouteDef:
    """The route that tells a page what the nodes of its workflow show."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(shown().of(request.match_info["workflow"], prompts()))

    return web.get("/lora_workbench/shown/{workflow}", answer)


def _in_history(workflow: str, prompt: str, entry: dict[str, Any]) -> dict[str, _Kept]:
    """What the pack's nodes of a workflow showed in one prompt of the history."""
    if not entry:
        return {}
    _, _, nodes, extra, *_ = entry["prompt"]
    if workflow_id(extra.get("extra_pnginfo")) != workflow:
        return {}
    kinds = {node: nodes[node]["class_type"] for node in entry["outputs"] if node in nodes}
    return {
        node: _Kept(prompt, kind, entry["outputs"][node]) for node, kind in kinds.items() if kind.startswith(_PREFIX)
    }


def _without_lost_pictures(output: dict[str, Any]) -> dict[str, Any]:
    if "images" not in output:
        return output
    return {**output, "images": [picture for picture in output["images"] if _exists(picture)]}


def _exists(picture: dict[str, str]) -> bool:
    folder = folder_paths.get_directory_by_type(picture["type"])
    return folder is not None and Path(folder, picture["subfolder"], picture["filename"]).is_file()
