"""The tables of docs/benchmarks.md, docs/defaults.md and docs/memory.md, made from the CSV files in `results/`."""

from __future__ import annotations

from pathlib import Path

from ..pack import ROOT
from .cards import CARDS, card_table
from .defaults import defaults_table
from .forecast import forecast_table
from .learning import THRESHOLD
from .results import Column, Row, launches_table, read, table, write_table
from .rungs import rungs_table
from .watching import watching_table

BENCHMARKS, DEFAULTS, MEMORY = (ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "defaults", "memory"))
CHARACTERS = ("zorp", "gub")


def step_table(rows: list[Row]) -> str:
    """Time and memory of a step on a processor, for the oldest and the newest ComfyUI measured."""
    versions = sorted({row["comfyui"] for row in rows if not row["gpu"]}, key=_version)
    columns = {}
    for version in dict.fromkeys((versions[0], versions[-1])):
        where = {"comfyui": version, "gpu": ""}
        columns[f"{version}: time"] = Column(where, "time_of_floor", 2)
        columns[f"{version}: memory"] = Column(where, "memory_of_host", 2)
    return table(rows, "trainer", columns)


def learning_table(rows: list[Row]) -> str:
    """What each trainer learns and spoils, on the ComfyUI and machine measured last."""
    columns = {}
    for character in CHARACTERS:
        where = {**_last(rows), "character": character, "seed": "mean"}
        columns[f"{character}: likeness"] = Column(where, "likeness", 2)
        columns[f"{character}: lost"] = Column(where, "lost", 1)
    return table((row for row in rows if row["trainer"] != THRESHOLD), "trainer", columns)


def dataset_table(rows: list[Row]) -> str:
    """Time and memory of each loader, on the ComfyUI and machine measured last."""
    where = _last(rows)
    columns = {
        "pictures": Column(where, "pictures", 0), "seconds": Column(where, "seconds", 0),
        "time per picture": Column(where, "time_of_ours", 1), "memory per picture": Column(where, "memory_of_ours", 0),
    }  # fmt: skip
    return table(rows, "loader", columns)


def tables() -> dict[tuple[Path, str], str]:
    """Each table by its page and the name in its marker comments."""
    return {
        (BENCHMARKS, "step"): step_table(read("step")),
        (BENCHMARKS, "launches"): launches_table(_of_last(read("launches"))),
        (BENCHMARKS, "learning"): learning_table(read("learning")),
        (BENCHMARKS, "dataset"): dataset_table(read("dataset")),
        (DEFAULTS, "defaults"): defaults_table(read("defaults")),
        (BENCHMARKS, "forecast"): forecast_table(_of_last(read("forecast")), _of_last(read("rungs"))),
        (BENCHMARKS, "rungs"): rungs_table(_of_last(read("rungs"))),
        (BENCHMARKS, "watching"): watching_table(_of_last(read("watching"))),
        **{(MEMORY, card): card_table(row for row in read("cards") if row["card"] == card) for card in CARDS},
    }


def write_pages() -> None:
    """Rewrite every table of the pages."""
    for (page, name), text in tables().items():
        write_table(page, name, text)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _of_last(rows: list[Row]) -> list[Row]:
    where = _last(rows)
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def _last(rows: list[Row]) -> dict[str, str]:
    if not rows:
        return {}
    return {key: rows[-1][key] for key in ("comfyui", "gpu")}
