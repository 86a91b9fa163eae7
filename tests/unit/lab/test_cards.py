"""The tables of docs/memory.md: those of the stored rows, a line for each model and card."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_workbench.lab.bench.cards import CARDS, MODELS, NO_ESTIMATE, NO_WAY, card_table, cards_benchmark
from lora_workbench.lab.bench.results import read
from lora_workbench.training.config import TrainConfig
from lora_workbench.training.ladder import preset_bytes, rungs

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("card", CARDS)
def test_the_page_holds_the_table_of_the_stored_rows(card: str) -> None:
    rows = [row for row in read("cards") if row["card"] == card]
    assert [row["model"] for row in rows] == list(MODELS)
    assert [row["weights"] for row in rows] == [model.weights for model in MODELS.values()]
    shown = PAGE.split(f"<!-- {card} -->")[1].split(f"<!-- end {card} -->")[0]
    assert shown == f"\n{card_table(rows)}\n", "run `python dev.py bench cards --write`"


def test_the_page_says_that_it_is_an_estimate() -> None:
    assert "by estimate; no card has confirmed it yet" in PAGE


def test_every_row_is_a_way_that_fits() -> None:
    ladder = rungs(TrainConfig(), has_copies=True, is_apart=True, can_stream=True, has_eight_bit=True)
    names = {rung.name for rung in ladder} | {"plain"}
    for row in read("cards"):
        if row["way"] in (NO_WAY, NO_ESTIMATE):
            assert row["memory_gb"] == ""
            continue
        most = preset_bytes(row["card"])
        assert row["way"] in names and most
        assert 1 < float(row["memory_gb"]) <= most / 2**30 + 0.01
        parts = sum(float(row[f"{name}_gb"]) for name in ("weights", "copies", "lora", "step"))
        if "streamed" not in row["way"]:
            assert parts == pytest.approx(float(row["memory_gb"]), abs=0.03)


def test_the_page_explains_every_way() -> None:
    explained = [line.split(" | ")[0].strip("| ") for line in PAGE.split("## What fits")[0].splitlines() if "|" in line]
    for row in read("cards"):
        assert row["way"].rpartition(", ")[2] in (*explained, NO_WAY, NO_ESTIMATE)


def test_a_model_that_is_not_in_the_table_says_so() -> None:
    with pytest.raises(SystemExit, match="'sd9' is not a model of the table. Choose from sd15, sdxl"):
        next(cards_benchmark(["sd9"]))
