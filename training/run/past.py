"""The runs on disk: what each folder says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import SUFFIX, content_hash, file_stamp
from ..errors import UserError
from ..events import Line
from ..lora import RunSummary
from ..settings import Settings, knob
from . import history
from .curve import Curve
from .folder import LOG, RUN, SAMPLES, SUMMARY


def facts(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says of it: its `run.json`; None if there is none or it cannot be read."""
    found = read_object(folder / RUN)
    return found if found.get("id") and isinstance(found["id"], str) else None


def runs(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run below a folder with its facts, the newest first. Runs of version 0.1 wrote none; their id is empty."""
    found = [(folder, told) for folder in _folders(root) if (told := facts(folder) or _of_summary(folder))]
    yield from sorted(found, key=lambda run: number(run[1].get("started_at")) or 0.0, reverse=True)


def _of_summary(folder: Path) -> dict[str, Any] | None:
    """A run's facts as far as its summary says them; None without one."""
    try:
        at = (folder / SUMMARY).stat().st_mtime
    except OSError:
        return None
    told = read_object(folder / SUMMARY)
    return {
        "id": "", "name": folder.name, "started_at": at, "outcome": told.get("outcome"), "steps": told.get("steps"),
    }  # fmt: skip


def folder_of(root: Path, run: str) -> Path | None:
    """The folder of a run by its id; None if it is gone."""
    return next((folder for folder, told in runs(root) if told["id"] == run), None)


@dataclass(frozen=True)
class RunBrowserSettings(Settings):
    """Which run is chosen."""

    run: str = knob("", "A run in output/lora_workbench, the newest first. Press R to read the list again.")


def names(root: Path) -> list[str]:
    """The folders of all runs, the newest first."""
    return [folder.name for folder, _ in runs(root)]


def folder_named(root: Path, name: str) -> Path:
    """The folder of a run by its name.

    Raises:
        UserError: It is gone, or the name is none of a run.
    """
    folder = root / name
    # A name with a path would lead out of the folder of all runs.
    if folder.parent != root or not any((folder / file).is_file() for file in (RUN, SUMMARY)):
        raise UserError(f"There is no run {name!r} in output/lora_workbench. Choose another one, or press R.")
    return folder


def stamp(folder: Path) -> str:
    """Changes with a run's facts and its files; not when it is used again."""
    told = facts(folder) or {}
    told.pop("uses", None)
    try:
        files = sorted((path.name, file_stamp(path)) for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError:
        files = []
    return f"{json.dumps(told, sort_keys=True)} {files}"


def finished(root: Path, fingerprint: str) -> Iterator[Path]:
    """The folders of finished runs with a fingerprint whose LoRA is as they left it, the newest first."""
    for folder, told in runs(root):
        if told.get("outcome") != "finished" or not fingerprint or told.get("fingerprint") != fingerprint:
            continue
        try:
            if content_hash(final_file(folder)) == told.get("file_hash"):
                yield folder
        except OSError:
            continue


def final_file(folder: Path) -> Path:
    """The file of the LoRA at the end of a run, there or not. The folder may have been renamed."""
    return folder / f"{(facts(folder) or {}).get('name') or folder.name}{SUFFIX}"


def told(folder: Path) -> dict[str, Any]:
    """What the panel shows of a run on disk: its state, its curve and all other lines of its log."""
    return {"state": (facts(folder) or {}).get("outcome", "broken off"), **history.read(log_text(folder))}


def log_text(folder: Path) -> str:
    """The text of a run's log, which may end inside a character; empty if it cannot be read."""
    try:
        return (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def told_by(summary: RunSummary) -> dict[str, Any]:
    """What the panel shows of the run that a RUN socket carries; from its losses if the folder is gone."""
    found = told(Path(summary.folder))
    if found["curve"]["step"]:
        return found
    measured: list[Line] = [{"kind": "held_out", **line} for line in summary.held_out]
    return {**told_of(summary.losses), "lines": measured}


def told_of(losses: Iterable[float]) -> dict[str, Any]:
    """What the panel would show of a run of which only the loss of each step is known."""
    curve = Curve()
    for step, loss in enumerate(losses, 1):
        curve.add(step, float(loss), 0.0, {})
    return {"curve": curve.columns(), "lines": []}


def thumbnail(folder: Path) -> str | None:
    """The name of the newest sample of a run, below its folder; None without one."""
    found = sorted((folder / SAMPLES).glob("*.png"))
    return f"{SAMPLES}/{found[-1].name}" if found else None


def uses(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Where a run was used in place of training it again, oldest first: workflow, node, prompt and `at`, a time."""
    found = facts.get("uses")
    return [use for use in found if _is_use(use)] if isinstance(found, list) else []


def _is_use(use: Any) -> bool:
    texts = ("workflow", "node", "prompt")
    return isinstance(use, dict) and all(isinstance(use.get(t), str) for t in texts) and bool(number(use.get("at")))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A value read from a file, if it is a finite number. JSON of this kind can hold NaN, which a page cannot read."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _folders(root: Path) -> list[Path]:
    try:
        return [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    except OSError:
        return []
