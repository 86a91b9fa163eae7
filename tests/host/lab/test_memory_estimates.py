"""The engine's estimate of a step's memory on full-size models, held to an independent count; no model has data."""

from __future__ import annotations

import os
from itertools import product
from typing import Any

import pytest

# Pixels of a side.
MODELS = {
    "sd15": 512, "sdxl": 1024, "sd3": 1024, "sd35": 1024, "flux": 1024, "zimage": 1024, "qwen": 1024, "lumina2": 1024,
    "chroma": 1024,
}  # fmt: skip
MOST_OFF = 0.05


def cases() -> list[Any]:
    """Every model, plain and checkpointed, with batches of one and four."""
    found = []
    for case in product(MODELS, (False, True), (1, 4)):
        name, checkpointing, batch = case
        found.append(pytest.param(*case, id=f"{name}-{'checkpointed' * checkpointing or 'plain'}-{batch}"))
    return found


@pytest.mark.long
@pytest.mark.parametrize(("name", "checkpointing", "batch"), cases())
def test_the_estimate_agrees_with_an_independent_count(
    name: str, checkpointing: bool, batch: int, comfy_host: Any
) -> None:
    from lora_workbench.lab.bench.cases import Job
    from support.step_memory import counted_peak, dry_peak

    job = Job(name, MODELS[name], "bf16", 1, batch=batch, checkpointing=checkpointing)
    estimate, count = dry_peak(job), counted_peak(job)
    print(f"{name}: {estimate / 2**30:.2f} GiB by estimate, {count / 2**30:.2f} by count, {estimate / count - 1:+.1%}")
    assert count > 2**26
    assert abs(estimate / count - 1) <= MOST_OFF


def test_the_table_of_cards_is_what_is_estimated_today(comfy_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.lab.bench.cards import cards_benchmark
    from lora_workbench.lab.bench.results import read

    monkeypatch.setitem(os.environ, "COMFYUI_PATH", str(comfy_host.path))
    (rows,) = cards_benchmark(["sd35"])
    stored = {row["card"]: row for row in read("cards") if row["model"] == rows[0]["model"]}
    assert len(rows) == len(stored) == 4
    for row in rows:
        assert row["way"] == stored[row["card"]]["way"]
        assert row["memory_gb"] == pytest.approx(float(stored[row["card"]]["memory_gb"]), rel=0.02)
