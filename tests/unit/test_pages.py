"""The pages a newcomer reads: short, and every link leads somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "lab").rglob("*.md"))]  # fmt: skip


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 650


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_loss_is_one_link_away() -> None:
    """From "Read the code" to a training step that fits on a screen and computes the loss itself."""
    part = (ROOT / "README.md").read_text(encoding="utf-8").split("## Read the code")[1].split("\n\n")[1]
    assert re.findall(r"\]\(([^)]+)\)", part) == [
        "training/step.py", "training/train.py", "training/config.py", "docs/design.md",
    ]  # fmt: skip
    source = (ROOT / "training" / "step.py").read_text(encoding="utf-8")
    first = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    assert first.name == "training_step" and first.end_lineno - first.lineno < 45
    body = ast.get_source_segment(source, first)
    assert body and all(line in body for line in ("error.square()", ".backward()", "model.denoised("))
