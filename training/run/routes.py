"""The routes by which a page asks for runs, and asks something of a run."""

from __future__ import annotations

import asyncio
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
        newest: dict[str, dict[str, Any]] = {}
        for brief in found:
            if workflow and brief["workflow"] == workflow:
                newest.setdefault(brief["node"], brief)
        found = list(newest.values())
    return web.json_response(found)


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
    return web.json_response(await asyncio.to_thread(lambda: {**_brief(folder), **past.told(folder)}))


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
    found = {brief["id"]: brief for folder, _ in past.runs(root) if (brief := _brief(folder))}
    for live in all_known():  # whose folder may be gone or not written yet
        if live.is_running and live.id not in found:
            found = {live.id: {"id": live.id, "name": live.name, **vars(live.place), "state": "running"}, **found}
    return list(found.values())


def _brief(folder: Path) -> dict[str, Any]:
    """A run in a few values. Paths are below ComfyUI's output folder, as its route `/view` takes them."""
    told = past.facts(folder) or {}
    live = known(told.get("id", ""))
    names = ("id", "name", "workflow", "node", "prompt", "started_at", "steps", "loss")
    return {
        **{name: told.get(name) for name in names},
        "state": "running" if live and live.is_running else told.get("outcome", "broken off"),
        "folder": _place(folder),
        "thumbnail": past.thumbnail(folder),
    }


def _place(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
