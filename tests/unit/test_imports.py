"""Imports go one way: each room may import only what stands to its right, and no circle closes."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# docs/design.md draws it. What stands in one line of it may not import each other either.
ORDER = (
    "nodes", "train estimate compare", "measure", "preflight between samples held_out", "ready", "fit loop", "dry_run",
    "step",
    "run advice", "guard plan objective optimizers ladder encode", "config review watch", "losses noise noise_levels",
    "captions files", "cache", "data host", "adapters",
    "errors events draws late lora settings options prompts disk allocations rung",
)  # fmt: skip
RANK = {room: rank for rank, line in enumerate(ORDER) for room in line.split()}
GROUND = len(ORDER) - 1
HOST = {"comfy", "comfy_api", "comfy_execution", "comfyui_version", "folder_paths", "server", "execution"}


def test_imports_go_one_way() -> None:
    files = [file for folder in ("nodes", "training") for file in (ROOT / folder).rglob("*.py")]
    modules = {file.relative_to(ROOT).with_suffix("").parts: file for file in files}
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for here, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                if isinstance(node, (ast.Import, ast.ImportFrom)) and "host" not in here and here[0] != "nodes":
                    names = [getattr(node, "module", None) or name.name for name in node.names]
                    assert not HOST & {name.split(".")[0] for name in names}, f"{file}, line {node.lineno}: {names}"
                continue
            base = (*here[: len(here) - node.level], *(node.module.split(".") if node.module else ()))
            for name in node.names:
                target = (*base, name.name) if (*base, name.name) in modules else base
                assert target in modules, f"{file}, line {node.lineno}: {'.'.join(target)} is no module of the pack"
                graph.setdefault(here, set()).add(target)
                one, other = (path[path[0] == "training"] for path in (here, target))
                allowed = one == other or RANK[one] < RANK[other] or RANK[one] == GROUND == RANK[other]
                assert allowed, f"{file}, line {node.lineno}: {one} must not import {other}"
    list(TopologicalSorter(graph).static_order())  # raises CycleError when a circle closes
