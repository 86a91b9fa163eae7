"""What the learning benchmark trains and judges with, on a few steps and pictures."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def learning(comfy_host: Any) -> Any:
    from lora_workbench.lab.bench import learning

    return learning


@pytest.mark.long
def test_both_trainers_are_run_and_judged(learning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.lab.base_model import painter
    from lora_workbench.lab.demo import pictures
    from lora_workbench.lab.judge import judge

    monkeypatch.setattr(painter, "STEPS", 4)
    monkeypatch.setattr(judge, "ALIKE", 4)
    monkeypatch.setattr(judge, "_REFERENCES", (20, 1000))
    monkeypatch.setattr(pictures, "KEPT_COUNT", 24)
    bench = learning.Bench("zorp", tmp_path, count=3, scenes=4)
    rounds = counted_rounds(monkeypatch)

    cold, judged = bench.run(bench.ours, 0, cold=True, steps=2)
    assert cold.steps == 2 and judged.drift > 0, "it is another model"
    encoded = len(list((tmp_path / "cache").rglob("*.safetensors")))
    assert encoded >= len(bench.pictures) + 24, "pictures to learn and to keep"
    alone = bench.ours(0, cold=True, steps=2, prior={"share": 0}, batch_size=learning.LEARNED)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) < encoded, "none to keep, and begun anew"
    assert alone.lora.keys() == cold.lora.keys()

    native, judged = bench.run(bench.native, 0, 2, **learning.FASTER, **learning.BY_STEPS)
    assert judged.drift > 0 and native.lora
    assert rounds.count("step") == 2, "as many steps, each of as many pictures as ours learns from"
    assert rounds.count("backward") == 2 * learning.LEARNED
    assert bench.judge.preservation(bench.painter.model).drift == 0, "the base paints what it did before"

    shown = []
    with monkeypatch.context() as patch:
        patch.setattr(learning, "native_lora", lambda _, *lists, **__: shown.extend(lists) or {})
        bench.native(0, 2, mixed=True)
    for things in shown:
        times = Counter(map(id, things))
        assert sorted(times.values()) == [1] * 24 + [2] * 12, "its own as often as those to keep"


def counted_rounds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What TrainLoraNode's own trainer does from now on: its backwards and its optimizer's steps."""
    import comfy_extras.nodes_train as native

    done: list[str] = []
    backward, step = torch.Tensor.backward, torch.optim.AdamW.step

    def within(name: str, plain: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return plain(self, *args, **kwargs)

        return call

    train = native.TrainLoraNode.execute.__func__

    def execute(cls: Any, **inputs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", within("backward", backward))
            patch.setattr(torch.optim.AdamW, "step", within("step", step))
            return train(cls, **inputs)

    monkeypatch.setattr(native.TrainLoraNode, "execute", classmethod(execute))
    return done


@pytest.mark.long
def test_the_check_of_a_gpu_machine_runs_without_one(comfy_host: Any, tmp_path: Path) -> None:
    """On narrow models; a case that fails has a row that says why and stops no other."""
    from lora_workbench.lab.bench.gpu import Check

    check = Check(tmp_path, True, time.monotonic() + 300)
    cases = ("no such case", "frozen model", "frozen model, CUDA graph", "LoRA Workbench", "TrainLoraNode")
    environment = os.environ | {"COMFYUI_PATH": str(comfy_host.path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        for case in cases:
            check.measure("SD1.5 512", case)
        check.measure("Z-Image 1024", "LoRA Workbench, gradient checkpointing")
        check.measure("SDXL 1024 in 8 GB", "memory auto")
        check.until = time.monotonic() + 1
        check.measure("SDXL 1024", "LoRA Workbench")
        check.write()
    told = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    rows = {(row["model"], row["trainer"]): row for row in told["steps"]}
    assert "no such case" in rows["SD1.5 512", "no such case"]["failed"]
    for key in [("SD1.5 512", case) for case in ("frozen model", "LoRA Workbench", "TrainLoraNode")] + [
        ("Z-Image 1024", "LoRA Workbench, gradient checkpointing")
    ]:
        assert rows[key]["seconds"] > 0 and rows[key]["peak"] > 0, rows[key]
    assert "NVIDIA" in rows["SD1.5 512", "frozen model, CUDA graph"].get("skipped", "NVIDIA")
    fitted = rows["SDXL 1024 in 8 GB", "memory auto"]
    assert fitted["way"] == "plain" and fitted["estimate"] > 0 < fitted["peak"], fitted
    assert rows["SDXL 1024", "LoRA Workbench"]["skipped"] == "no time was left"
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.count("| SD1.5 512 |") == len(cases) and "SDXL 1024, LoRA Workbench: skipped: no time was left" in page


def test_the_time_between_steps_is_counted_without_that_of_samples(comfy_host: Any, monkeypatch: Any) -> None:
    from lora_workbench.lab.bench import watching
    from lora_workbench.training import between
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.run.history import History
    from lora_workbench.training.samples import Samples

    told = History("ab", SilentSink(), lambda text: time.sleep(0.1), pytest.fail)

    def look(self: Any, run: Any) -> None:
        time.sleep(0.4)
        told.add("sample")

    monkeypatch.setattr(Samples, "look", look)
    monkeypatch.setattr(Samples, "is_due", lambda *_: True)
    keeper = SimpleNamespace(after_step=lambda *_: time.sleep(0.05) or told.add("hint", text="one"))
    under_way, run = SimpleNamespace(take=lambda _: False), SimpleNamespace(step=1, total=9)
    samples = object.__new__(Samples)
    ready = SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu")))
    with watching.timed_watching() as spent:
        this = between.Between(keeper, ready, SilentSink(), under_way, [samples])
        this.begin(run)
        assert spent == []
        this.after_step(run, False)
        told.add("hint", text="two")
    assert 0.25 <= sum(spent) < 0.6
