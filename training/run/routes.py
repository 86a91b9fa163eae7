"""The routes by which a page asks for runs, and asks something of a run."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

from aiohttp import web

from ..host.paths import runs_folder
from ..review.run_report import CONTENT_POLICY
from . import past
from .folder import REPORT
from .under_way import WISHES, all_known, known

_ROOT = "/lora_workbench/runs"


def run_routes() -> list[web.RouteDef]:
    """Every route of runs, for the host to add to its server."""
    return [
        web.get(_ROOT, _list), web.get(_ROOT + "/{run}", _one), web.get(_ROOT + "/{run}/report", _report),
        web.post(_ROOT + "/{run}/{wish}", _wish),
    ]  # fmt: skip


async def _list(request: web.Request) -> web.Response:
    """The runs, the newest first; with `?workflow=` only the newest of each node of that workflow."""
    found = await asyncio.to_thread(_briefs, runs_folder())
    workflow = request.query.get("workflow")
    if workflow is not None:
        found = _newest_of(found, workflow) if workflow else []
    return web.json_response([{name: value for name, value in brief.items() if name != "uses"} for brief in found])


def _newest_of(found: list[dict[str, Any]], workflow: str) -> list[dict[str, Any]]:
    """The run that each node of a workflow made or used last, in that node's place."""
    newest: dict[str, tuple[float, dict[str, Any]]] = {}
    for brief in reversed(found):
        made = {"workflow": brief["workflow"], "node": brief["node"], "prompt": brief["prompt"]}
        began = math.inf if brief["state"] == "running" else brief["started_at"] or 0.0
        for use in ({**made, "at": began}, *brief["uses"]):
            if use["workflow"] == workflow and use["at"] >= newest.get(use["node"], (0.0, {}))[0]:
                place = {name: use[name] for name in made}
                newest[use["node"]] = use["at"], {**brief, **place}
    return [brief for _, brief in newest.values()]


async def _one(request: web.Request) -> web.Response:
    """What the panel shows of one run."""
    run = request.match_info["run"]
    live = known(run)
    if live:
        brief = {"id": run, "name": live.name, **vars(live.place), "folder": _place(live.folder)}
        return web.json_response({**brief, **live.told()})
    folder = await asyncio.to_thread(past.folder_of, runs_folder(), run)
    if folder is None:
        return _gone()

    def read() -> dict[str, Any]:
        return {**_brief(folder, past.facts(folder) or {"id": run}), **past.told(folder)}

    return web.json_response(await asyncio.to_thread(read))


async def _report(request: web.Request) -> web.Response:
    """The report of a run that has ended."""

    def read() -> str | None:
        run = request.match_info["run"]
        live = known(run)
        folder = live.folder if live else past.folder_of(runs_folder(), run)
        try:
            return (folder / REPORT).read_text(encoding="utf-8") if folder else None
        except OSError:
            return None

    page = await asyncio.to_thread(read)
    if page is None:
        return web.json_response({"error": "This run has no report."}, status=404)
    headers = {"Content-Security-Policy": CONTENT_POLICY, "X-Content-Type-Options": "nosniff"}
    return web.Response(text=page, content_type="text/html", headers=headers)


async def _wish(request: web.Request) -> web.Response:
    """Ask something of a run under way."""
    live, wish = known(request.match_info["run"]), request.match_info["wish"]
    if wish not in WISHES:
        return web.json_response({"error": f"{wish!r} is not one of {', '.join(WISHES)}."}, status=400)
    if live is None or not live.is_running:
        return _gone()
    live.wish(wish)
    return web.json_response({})


def _gone() -> web.Response:
    return web.json_response({"error": "This run is not there any more."}, status=404)


def _briefs(root: Path) -> list[dict[str, Any]]:
    found = [_brief(folder, told) for folder, told in past.runs(root)]
    ids = {brief["id"] for brief in found}
    for live in all_known():  # whose folder may be gone or not written yet
        if live.is_running and live.id not in ids:
            brief = {"id": live.id, "name": live.name, **vars(live.place), "state": "running", "uses": []}
            found.insert(0, brief)
    return found


def _brief(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """A run in a few values. Paths are below ComfyUI's output folder, as its route `/view` takes them.

    Args:
        folder: The run's folder.
        told: What it says of the run. Somebody may have edited the file.
    """
    live = known(told["id"])
    state = "running" if live and live.is_running else told.get("outcome")
    return {
        **{name: _text(told.get(name)) for name in ("id", "name", "workflow", "node", "prompt")},
        **{name: past.number(told.get(name)) for name in ("started_at", "steps", "loss")},
        "state": _text(state) or "broken off",
        "folder": _place(folder),
        "thumbnail": past.thumbnail(folder),
        "uses": past.uses(told),
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _place(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
