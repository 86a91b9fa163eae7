"""What a long benchmark keeps when it is stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import unfinished

    yield unfinished
    for name in ("unfinished", "machine", "step_time"):
        sys.modules.pop(name, None)


def test_goes_on_with_what_was_measured(unfinished, tmp_path: Path) -> None:
    first = unfinished.Unfinished("learning zorp 16", tmp_path)
    first.put(100, [["LoRA Workbench", 240, 1.5, {"fidelity": 0.5}]])
    (file,) = tmp_path.iterdir()
    with file.open("a") as torn:
        torn.write('\n["101", [["LoRA Wor')
    again = unfinished.Unfinished("learning zorp 16", tmp_path)
    assert again.get(100) == [["LoRA Workbench", 240, 1.5, {"fidelity": 0.5}]]
    assert again.get(101) is None
    again.put(101, "whole")
    assert unfinished.Unfinished("learning zorp 16", tmp_path).get(101) == "whole"
    assert unfinished.Unfinished("learning quib 16", tmp_path).get(100) is None
    again.forget()
    assert unfinished.Unfinished("learning zorp 16", tmp_path).get(100) is None


def test_nothing_is_taken_up_from_other_sources(
    unfinished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "training" / "step.py"
    source.parent.mkdir()
    source.write_text("rate = 1")
    monkeypatch.setattr(unfinished, "ROOT", tmp_path)
    unfinished.Unfinished("kept", tmp_path / "kept").put(0, 1)
    assert unfinished.Unfinished("kept", tmp_path / "kept").get(0) == 1
    source.write_text("rate = 2")
    assert unfinished.Unfinished("kept", tmp_path / "kept").get(0) is None
