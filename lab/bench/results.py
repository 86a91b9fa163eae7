"""Measured rows: kept as CSV in `results/`, shown as Markdown tables in docs/."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...training.disk import write_whole

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, Any]


class Column(NamedTuple):
    """A column of a Markdown table: which rows it takes, and which of their values."""

    where: Mapping[str, str]
    value: str
    digits: int


def read(name: str, folder: Path = RESULTS) -> list[dict[str, str]]:
    """Read the rows of `results/NAME.csv`; empty values are ""."""
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def store(name: str, rows: Sequence[Row], same: Sequence[str], folder: Path = RESULTS) -> None:
    """Put measured rows into `results/NAME.csv`.

    Args:
        name: Of the file.
        rows: What was measured. Their columns must be those of the file.
        same: Rows of the file that agree with a new one in these columns are replaced.
        folder: Where the file is.
    """
    file = folder / f"{name}.csv"
    with file.open(newline="", encoding="utf-8") as old:
        columns = next(csv.reader(old))
    replaced = {tuple(str(row[column]) for column in same) for row in rows}
    kept = [row for row in read(name, folder) if tuple(row[column] for column in same) not in replaced]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_whole(file, text.getvalue())


def table(rows: Iterable[Row], name: str, columns: Mapping[str, Column]) -> str:
    """A Markdown table with one line for each value of the column `name`, one number a cell."""
    rows = list(rows)
    lines = [f"| {name} | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for line in dict.fromkeys(row[name] for row in rows):
        cells = []
        for where, value, digits in columns.values():
            chosen = (row for row in rows if row[name] == line and all(str(row[key]) == where[key] for key in where))
            number = next(chosen, {}).get(value, "")
            cells.append("" if number == "" else f"{float(number):.{digits}f}")
        if any(cells):
            lines.append(f"| {line} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def launches_table(rows: Iterable[Row]) -> str:
    """A Markdown table of what a step costs, with one line for each quantity."""
    lines = ["| quantity | frozen model | LoRA Workbench | goal |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = [f"{float(row[name]):.6g}" if row[name] != "" else "" for name in ("frozen", "ours", "goal")]
        lines.append(f"| {row['quantity']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(page: Path, name: str, text: str) -> None:
    """Replace one table of a page, between its two marker comments.

    Raises:
        ValueError: The page lacks the markers.
    """
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{page} lacks the comments {start} and {end}. Add them where the table belongs.")
    write_whole(page, f"{before}{start}\n{text}\n{end}{after}")
