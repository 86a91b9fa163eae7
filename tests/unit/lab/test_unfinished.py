"""What a stopped benchmark keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch):
    from lora_workbench.lab.bench import unfinished

    monkeypatch.setattr(unfinished, "describe_machine", lambda: "a machine")
    return unfinished


def again() -> None:
    pytest.fail("measured again")


def test_goes_on_with_what_was_measured(unfinished, tmp_path: Path) -> None:
    result = [["LoRA Workbench", 240, 1.5, {"likeness": 0.5}]]
    unfinished.Unfinished("learning zorp 16", tmp_path).once(100, lambda: result)
    (file,) = tmp_path.iterdir()
    with file.open("a") as torn:
        torn.write('\n["101", [["LoRA Wor')
    second = unfinished.Unfinished("learning zorp 16", tmp_path)
    assert second.once(100, again) == result
    assert second.once(101, lambda: "whole") == "whole"
    assert unfinished.Unfinished("learning zorp 16", tmp_path).once(101, again) == "whole"
    assert unfinished.Unfinished("learning quib 16", tmp_path).once(100, lambda: "quib's") == "quib's"
    second.forget()
    assert unfinished.Unfinished("learning zorp 16", tmp_path).once(100, lambda: "anew") == "anew"


def test_nothing_is_taken_up_from_other_sources(unfinished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "training" / "step.py"
    source.parent.mkdir()
    source.write_text("rate = 1")
    monkeypatch.setattr(unfinished, "ROOT", tmp_path)

    def begun() -> object:
        """As a process that begins now."""
        monkeypatch.setattr(unfinished, "_STATE", unfinished._state())
        return unfinished.Unfinished("kept", tmp_path / "kept")

    begun().once(0, lambda: 1)
    assert begun().once(0, again) == 1
    source.write_text("rate = 2")
    assert begun().once(0, lambda: 2) == 2
    running = begun()
    with pytest.raises(SystemExit, match="changed while '1' was measured"):
        running.once(1, lambda: source.write_text("rate = 3"))
    source.write_text("rate = 2")
    assert begun().once(1, lambda: "kept") == "kept", "nothing was written of what was measured of two states"
