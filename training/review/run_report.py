"""A report of a run as one HTML file: no script, nothing from outside, so it can be sent to anybody."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..data.dataset import Dataset, name_in
from ..events import counted, lasted
from ..lora import RunSummary
from ..settings import ordered_fields
from .bucket_sheet import bucket_sheet
from .loss_chart import ChartSettings, loss_chart

T = TypeVar("T")

_SAMPLE_SIDE = 320  # pixels
_MOST_STEPS, _MOST_PROMPTS, _MOST_SAMPLES = 12, 16, 96
_MOST_ROWS = 24  # of the held-out numbers
_MOST_CAPTIONS = 200
_MOST_THUMBNAILS = 48  # each is read from its file

# What a server sends with it: the page loads nothing and runs nothing, whatever is in it.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"

_STYLE = """
body { background: #1e1f22; color: #e6e7ea; font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px;
  padding: 24px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 36px 0 8px; }
p, li, summary, .quiet { color: #9aa0aa; } p { margin: 4px 0 16px; }
img { display: block; max-width: 100%; border-radius: 4px; }
.wide { overflow-x: auto; } .wide img { max-width: none; }
table { border-collapse: collapse; } details { margin: 8px 0; } summary { cursor: pointer; }
th, td { border-bottom: 1px solid #3a3d43; padding: 4px 18px 4px 0; text-align: left; vertical-align: top; }
th { color: #9aa0aa; font-weight: normal; } td.number, th.number { text-align: right; }
td { overflow-wrap: anywhere; white-space: pre-wrap; } .samples td { white-space: normal; min-width: 120px; }
"""


def run_report(
    summary: RunSummary, told: Mapping[str, Any], config: Any, in_force: Mapping[str, Any], dataset: Dataset,
    started_at: float, shortened: Callable[[str], str] = str,
) -> str:  # fmt: skip
    """Write the report of a run that has ended.

    Args:
        summary: How it went. Its samples are read from its folder.
        told: Its `curve` and the other `lines` of its log.
        config: Its settings.
        in_force: The values that took effect where a setting leaves the choice, by name.
        dataset: What was trained, bucketed.
        started_at: In seconds since 1970.
        shortened: Takes this machine's folders out of a sentence.

    Returns:
        The page.
    """
    folder = Path(summary.folder)
    hide = _without_paths(folder, dataset, shortened)
    parts = [
        f"<h1>{escape(summary.name)}</h1>",
        f"<p>{escape(_headline(summary, started_at))}</p>",
        _list([*summary.hints, *summary.not_saved, *summary.skipped], hide),
        _section("Loss", _picture(loss_chart(told, ChartSettings(height=520)), "PNG", "The chart of the loss")),
        _section("Held-out pictures", _held_out(summary)),
        _section("Samples", _samples(folder, told["lines"])),
        _section("Settings", _settings(config, in_force)),
        _section("Dataset", _dataset(dataset, hide)),
        _section("Files", _files(folder)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(summary.name)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY.removesuffix("; sandbox")}">'
        f"<style>{_STYLE}</style></head><body>\n{''.join(parts)}\n</body></html>\n"
    )


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, the first and the last among them, at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)] if most > 1 else [items[-1]]


def _headline(summary: RunSummary, started_at: float) -> str:
    began = datetime.fromtimestamp(int(started_at)).isoformat(sep=" ", timespec="minutes")
    parts = [
        f"{summary.outcome.capitalize()} after {counted(summary.steps, 'step')}",
        counted(summary.epochs, "epoch"), counted(summary.images, "picture") + " shown", lasted(summary.seconds),
        f"begun {began}", f"seed {summary.seed}", f"memory: {summary.memory}",
    ]  # fmt: skip
    if summary.losses:
        recent = summary.losses[-100:]
        parts.insert(1, f"loss {sum(recent) / len(recent):.4f}")
    return " · ".join(parts)


def _without_paths(folder: Path, dataset: Dataset, shortened: Callable[[str], str]) -> Callable[[str], str]:
    """What takes the run's and the dataset's folders out of a text, and then this machine's others."""
    known = {folder.parent, *(picture.path.parent for picture in dataset.pictures)}
    known |= {dataset.root} if dataset.root else set()
    folders = sorted((str(path) + os.sep for path in known), key=len, reverse=True)

    def hide(text: str) -> str:
        for path in folders:
            text = text.replace(path, "")
        return shortened(text)

    return hide


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}\n" if content else ""


def _list(sentences: Iterable[str], hide: Callable[[str], str]) -> str:
    rows = "".join(f"<li>{escape(hide(sentence))}</li>" for sentence in sentences)
    return f"<ul>{rows}</ul>" if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table of texts, which are escaped here.

    Args:
        head: The columns' names.
        rows: One text for each column.
        numbers: Whether all columns but the first are numbers.
    """

    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = ["", *([' class="number"' if numbers else ""] * (len(cells) - 1))]
        shown = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    return f"<table>{row('th', head)}{''.join(row('td', cells) for cells in rows)}</table>"


def _held_out(summary: RunSummary) -> str:
    """Every measurement, or some of many, and the last one by concept."""
    if not summary.held_out:
        return ""
    rows = [
        (f"{line['step']:,}", *_against(line["loss"], line["base"])) for line in evenly(summary.held_out, _MOST_ROWS)
    ]
    text = "<p>The loss of pictures that were not trained. Below the base model's, the LoRA helps on new pictures.</p>"
    text += _table(("step", "loss", "base model", "difference"), rows, numbers=True)
    last = summary.held_out[-1]["concepts"]
    if len(last) > 1:
        rows = [(name, *_against(found["loss"], found["base"])) for name, found in last.items()]
        text += f"<p></p>{_table(('concept, at the end', 'loss', 'base model', 'difference'), rows, numbers=True)}"
    return text


def _against(loss: float, base: float) -> tuple[str, str, str]:
    return f"{loss:.5f}", f"{base:.5f}", f"{100 * (loss / base - 1):+.2f}%" if base else ""


def _samples(folder: Path, lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each step, a column for each prompt. Of many, some are shown; pictures that are gone are left out."""
    found = [line for line in lines if line["kind"] == "sample" and line.get("pictures")]
    if not found:
        return ""
    numbers = sorted({picture["number"] for line in found for picture in line["pictures"]})[:_MOST_PROMPTS]
    columns = len(numbers)
    found = evenly(found, min(_MOST_STEPS, max(2, _MOST_SAMPLES // columns)))
    prompts = {picture["number"]: picture["prompt"] for line in found for picture in line["pictures"]}
    head = "".join(f"<th>{escape(prompts.get(number, ''))}</th>" for number in numbers)
    rows = []
    for line in found:
        painted = {picture["number"]: picture for picture in line["pictures"]}
        cells = "".join(f"<td>{_sample(folder, painted.get(number))}</td>" for number in numbers)
        rows.append(f"<tr><td>step {line['step']:,}</td>{cells}</tr>")
    return f'<div class="wide samples"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _sample(folder: Path, picture: Mapping[str, Any] | None) -> str:
    """One cell; empty for a sample that failed."""
    if picture is None:
        return ""
    path = folder / "samples" / Path(picture["file"]).name
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # gone, or damaged
        return "gone"
    small.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.LANCZOS)
    return _picture(small, "JPEG", picture["prompt"])


def _picture(image: Image.Image, kind: str, words: str) -> str:
    """An `img` that holds its own bytes."""
    data = BytesIO()
    image.save(data, kind, quality=82, optimize=True)
    held = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{escape(words)}" src="data:image/{kind.lower()};base64,{held}">'


def _settings(config: Any, in_force: Mapping[str, Any]) -> str:
    """Those that differ from their defaults first, the others to unfold."""
    changed: list[tuple[str, str, str]] = []
    others: list[tuple[str, str, str]] = []
    for field in ordered_fields(config):
        value, default = getattr(config, field.name), field.default
        took = in_force.get(field.name, value)
        shown = _in_words(value) + (f" ({_in_words(took)})" if took != value else "")
        (others if value == default else changed).append((field.name, shown, _in_words(default)))
    head = ("setting", "value", "default")
    text = _table(head, changed) if changed else "<p>All settings are at their defaults.</p>"
    return f"{text}<details><summary>{counted(len(others), 'setting')} at the default</summary>" + (
        f"{_table(head[:2], (row[:2] for row in others))}</details>"
    )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _dataset(dataset: Dataset, hide: Callable[[str], str]) -> str:
    """Counts by concept, the sheet of the buckets, and the captions to unfold."""
    concepts: dict[str, list[float]] = {}
    for picture in dataset.pictures:
        concepts.setdefault(dataset.concept_of(picture), []).append(picture.repeats)
    rows = [(name, str(len(repeats)), f"{sum(repeats):g}") for name, repeats in concepts.items()]
    text = _table(("concept", "pictures", "per epoch"), rows, numbers=True)
    text += _list(dataset.notes, hide)
    most = max(1, _MOST_THUMBNAILS // len(dataset.buckets()))
    sheet = bucket_sheet(dataset, max_per_bucket=min(12, most))
    text += f"<p></p>{_picture(sheet, 'JPEG', 'The pictures in their buckets')}"
    shown = dataset.pictures[:_MOST_CAPTIONS]
    more = f", the first {len(shown)}" if len(shown) < len(dataset.pictures) else ""
    captions = _table(("picture", "caption"), [(name_in(dataset, picture), picture.caption) for picture in shown])
    return f"{text}<details><summary>Captions{more}</summary>{captions}</details>"


def _files(folder: Path) -> str:
    """What the run left in its folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    rows = [(path.relative_to(folder).as_posix(), _size(path)) for path in found if path.parent.name != "samples"]
    count = len(found) - len(rows)
    rows += [("samples/", counted(count, "file"))] if count else []
    return _table(("file", "size"), rows, numbers=True) if rows else ""


def _size(path: Path) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size / 1024:.1f} KB"
