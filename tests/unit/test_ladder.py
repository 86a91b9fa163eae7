"""The ladder of ways to fit into memory: their order, and what is left out where it cannot be done."""

from __future__ import annotations

from typing import Any

import pytest
from lora_workbench.training.config import TrainConfig
from lora_workbench.training.ladder import GIB, lora_bytes, preset_bytes, rungs
from lora_workbench.training.rung import Ladder, Rung

EVERYTHING = {"has_copies": True, "is_apart": True, "can_stream": True, "has_eight_bit": True}


def names(config: TrainConfig, **changes: Any) -> list[str]:
    return [rung.name.rpartition(", ")[2] for rung in rungs(config, **EVERYTHING | changes)]


def test_what_keeps_the_numbers_comes_first():
    assert names(TrainConfig(batch_size=5)) == [
        "plain", "weights cast when used", "gradient checkpointing", "block inputs in system memory",
        "weights streamed from system memory", "8-bit optimizer state", "batches of 3", "batches of 2", "batches of 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        ({}, {"has_copies": False, "is_apart": False, "can_stream": False, "has_eight_bit": False},
         ["plain", "gradient checkpointing"]),
        ({"gradient_checkpointing": True}, {"can_stream": False},
         ["gradient checkpointing"] * 2 + ["block inputs in system memory", "8-bit optimizer state"]),
        ({"optimizer": "Adafactor"}, {}, [*names(TrainConfig())[:5]]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_left_out(settings: dict[str, Any], changes: dict[str, Any], expected: list[str]):
    assert names(TrainConfig(**settings), **changes) == expected


def test_a_model_whose_blocks_cannot_be_recomputed_goes_on_without():
    ladder = Ladder(rungs(TrainConfig(batch_size=2), **EVERYTHING))
    while not ladder.rung.checkpointing:
        ladder.descend()
    ladder.forbid_checkpointing()
    left = [ladder.rung]
    while ladder.has_lower:
        left.append(ladder.descend())
    assert left == [
        Rung(copies=False), Rung(copies=False, streams=True), Rung(copies=False, streams=True, eight_bit=True),
        Rung(copies=False, streams=True, eight_bit=True, micro_batch=1),
    ]  # fmt: skip


def test_sizes():
    assert preset_bytes("12 GB") == int(12 * GIB * 0.9) and preset_bytes("auto") is None
    whole, half = (lora_bytes(TrainConfig(), 1000, size, eight_bit=False) for size in (4, 2))
    assert (whole, half) == (20_000, 24_000)
    assert lora_bytes(TrainConfig(), 1000, 2, eight_bit=True) == 18_000
    assert lora_bytes(TrainConfig(ema_decay=0.999), 1000, 4, eight_bit=False) == whole + 4000
