"""What the user sees: names as on the screen, errors without the path of a module."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_workbench.training.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for folder in ("nodes", "training") for file in sorted((ROOT / folder).rglob("*.py"))]
# The class of each node, which the screen names in words: BucketImages is Bucket Images there.
NODES = [
    statement.name
    for file in (ROOT / "nodes").glob("*.py")
    for statement in ast.parse(file.read_text(encoding="utf-8")).body
    if isinstance(statement, ast.ClassDef)
    and any(isinstance(base, ast.Name) and base.id == "Node" for base in statement.bases)
]
# Not in LoRAWorkbench_BucketImages, which is an id.
CLASS_NAME = re.compile(rf"(?<!_)\b({'|'.join(NODES)})\b")
# Exceptions that the pack itself catches, so that no user sees them.
CAUGHT = {"Cancelled", "NotFinite", "Stopped", "Unidentified"}


def strings(file: Path) -> Iterator[str]:
    """The string literals of a file that are not docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_nodes_are_called_as_on_the_screen() -> None:
    assert len(NODES) >= 15
    found = [(file.name, text) for file in FILES for text in strings(file) if CLASS_NAME.search(text)]
    assert found == []


@pytest.mark.parametrize("page", [
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web").rglob("*.md")),
], ids=lambda page: page.relative_to(ROOT).as_posix())  # fmt: skip
def test_pages_call_nodes_as_on_the_screen(page: Path) -> None:
    assert CLASS_NAME.findall(page.read_text(encoding="utf-8")) == []


def exceptions() -> dict[str, Path]:
    """The file of every exception that the pack defines, by its name."""
    classes = [
        (node.name, {ast.unparse(base) for base in node.bases}, file)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    plain = [made for made in vars(builtins).values() if isinstance(made, type)]
    known = {made.__name__ for made in plain if issubclass(made, BaseException)}
    found: dict[str, Path] = {}
    for _ in range(4):  # generations
        found |= {name: file for name, bases, file in classes if bases & (known | set(found))}
    return found


def test_an_error_is_shown_without_the_path_of_its_module() -> None:
    """ComfyUI puts the module in front of the name unless it is `builtins`."""
    found = exceptions()
    assert {"UserError", "SettingError", "UnreadableImage", "Diverged", "Conflict"} <= set(found)
    for name in set(found) - CAUGHT:
        module = ".".join(found[name].relative_to(ROOT).with_suffix("").parts)
        made = getattr(importlib.import_module(f"lora_workbench.{module}"), name)
        assert issubclass(made, UserError) and made.__module__ == "builtins", name


def test_nothing_is_blocked_silently() -> None:
    """A node that cannot go on raises. A block without a message would end the queue as if all were well."""
    found = [file.name for file in FILES if re.search(r"ExecutionBlocker|block_execution", file.read_text("utf-8"))]
    assert found == []
