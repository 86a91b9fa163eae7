"""A run in sentences, and in a few values."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_workbench.training.data.dataset import Dataset
from lora_workbench.training.events import lasted
from lora_workbench.training.lora import RunSummary


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (125, "2 min"), (3599, "1 h 0 min"), (3780, "1 h 3 min")],
)
def test_how_long_something_lasted(seconds: float, said: str) -> None:
    assert lasted(seconds) == said


def run(folder: Path, **parts: object) -> RunSummary:
    made = {"name": "my_lora", "folder": str(folder), "losses": (0.5, 0.08, 0.12), "steps": 3, "seconds": 125.0}
    return RunSummary(**{**made, **parts})


def test_a_run_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "lora_workbench" / "my_lora"
    assert str(run(folder)) == (
        "my_lora: finished after 3 steps in 2 min, loss 0.2333 (least 0.0800). Folder: lora_workbench/my_lora"
    )
    assert str(run(folder, outcome="cancelled", losses=(), steps=1, seconds=3)) == (
        "my_lora: cancelled after 1 step in 3 s. Folder: lora_workbench/my_lora"
    )


def test_a_run_in_a_few_values(tmp_path: Path) -> None:
    folder = tmp_path / "lora_workbench" / "my_lora-2"
    told = run(folder, name="my_lora-2", epochs=1).result()
    assert told == {
        "id": "", "name": "my_lora-2", "outcome": "finished", "steps": 3, "epochs": 1, "seconds": 125.0,
        "first_loss": 0.5, "last_loss": 0.12, "least_loss": 0.08, "folder": "lora_workbench/my_lora-2", "file": None,
        "seed": None,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "my_lora-2.safetensors").touch()
    assert run(folder).result()["file"] == "lora_workbench/my_lora-2/my_lora-2.safetensors"
    none = run(folder, losses=(), steps=0).result()
    assert (none["first_loss"], none["last_loss"], none["least_loss"]) == (None, None, None)


def test_a_dataset_is_a_sentence() -> None:
    assert str(Dataset(())) == Dataset(()).describe() == "0 pictures, 0 per epoch, 0 different captions."
