"""The checkpoints of a run, read back from its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..disk import SUFFIX
from ..errors import UserError
from ..files.load import load_lora
from ..lora import DiffusersTarget, LayerNames, LoraModel, RunSummary
from ..settings import Settings, knob
from . import history, past
from .folder import LAYERS, SUMMARY

LAST = "last"
_LAST_GOOD = "-last-good"  # what a failed run leaves


@dataclass(frozen=True)
class LoadCheckpointSettings(Settings):
    """Which checkpoint of a run is loaded."""

    at: str = knob(LAST, "Which checkpoint: last, or a step or an epoch such as 'step 200' or 'epoch 3'.")


@dataclass(frozen=True)
class Checkpoint:
    """A LoRA file in a run's folder.

    Attributes:
        step: Optimizer steps it was trained for; 0 where that is unknown.
        epoch: Epochs it was trained for; 0 before the end of the first one.
        path: The file.
        is_last: Whether it is the end of the run.
    """

    step: int
    epoch: int
    path: Path
    is_last: bool

    @property
    def label(self) -> str:
        """What it is called, such as `step 200 · epoch 2`."""
        return f"step {self.step} · epoch {self.epoch}"


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first. The end of the run comes last; of two at one step, one is listed.

    Args:
        folder: The run's folder, which may have been moved or renamed.
    """
    facts = past.facts(folder) or {}
    name = str(facts.get("name") or folder.name)
    places = {line["file"]: (line["step"], line["epoch"]) for line in _lines(folder, "checkpoint", "file", "step")}
    ends = {past.final_file(folder).name, f"{name}{_LAST_GOOD}{SUFFIX}"}
    found: dict[int | str, Checkpoint] = {}
    for path in sorted(_files(folder), key=lambda path: (path.name in ends, path.name)):
        step, epoch = places.get(path.name) or _place_in_file(path)
        found[step or path.name] = Checkpoint(step, epoch, path, path.name in ends)
    return sorted(found.values(), key=lambda one: (one.is_last, one.step))


def wanted(at: str) -> tuple[str, int]:
    """What a text asks for: (`last`, 0), or `step` or `epoch` and its number. A bare number is a step.

    Raises:
        UserError: The text names no checkpoint.
    """
    text = at.strip().lower()
    if text == LAST:
        return LAST, 0
    kind, _, number = text.rpartition(" ")
    kind = kind.strip() or "step"
    if kind not in ("step", "epoch") or not (number.isascii() and number.isdigit()):
        raise UserError(f"{at!r} names no checkpoint. Use last, or a step or an epoch such as 'step 200' or 'epoch 3'.")
    return kind, int(number)


def chosen(found: list[Checkpoint], at: str) -> Checkpoint:
    """The checkpoint that a text names.

    Args:
        found: The checkpoints of a run.
        at: `last`, `step 200` or `epoch 3`; a bare number is a step.

    Raises:
        UserError: There is no such checkpoint, or the text names none.
    """
    kind, number = wanted(at)
    if not found:
        raise UserError("This run has no checkpoints: its files are gone. Choose another run.")
    if kind == LAST:
        return found[-1]
    # An epoch can have several: those saved by hand or by steps lie behind its end.
    fitting = [one for one in found if getattr(one, kind) == number]
    if not fitting:
        raise UserError(f"The run has no checkpoint at {kind} {number}. Choose one of these: {_listed(found)}.")
    return fitting[0] if kind == "epoch" else fitting[-1]


def load(checkpoint: Checkpoint) -> LoraModel:
    """Read a checkpoint as the trainer hands it on: with its metadata and the names of its layers.

    Raises:
        UserError: The file is missing or damaged, or not in the safetensors format.
    """
    lora = load_lora(checkpoint.path, checkpoint.path.name)
    layers, key_map = read_layers(checkpoint.path.parent)
    return LoraModel(lora, layers, lora.metadata, key_map, lora.file)


def summary(folder: Path) -> RunSummary:
    """How a run went, as far as its folder says it.

    Args:
        folder: Where the run lies now.
    """
    told, facts = past.read_object(folder / SUMMARY), past.facts(folder) or {}
    known: dict[str, Any] = {}
    for field in dataclasses.fields(RunSummary):
        value = told.get(field.name, facts.get(field.name))
        if (fitting := _fitting(field, value)) is not None:
            known[field.name] = fitting
    known.setdefault("outcome", "broken off")
    if not told.get("losses"):
        known |= _from_log(folder)
    files = tuple(str(one.path) for one in checkpoints(folder) if not one.is_last)
    return RunSummary(**{"name": folder.name, **known, "folder": str(folder), "checkpoints": files})


def layers_text(layers: Iterable[LayerNames], key_map: Mapping[str, object]) -> str:
    """The layers and the key map of a LoRA as JSON, for `read_layers`.

    Names whose weight the host rearranges by a function are left out: no file of this pack has them.
    """
    plain = {name: place for name, place in key_map.items() if _is_plain(place)}
    return json.dumps({"layers": [dataclasses.asdict(names) for names in layers], "key_map": plain})


def read_layers(folder: Path) -> tuple[dict[str, LayerNames], dict[str, object]]:
    """The layers and the key map of a run's LoRAs; both empty if its folder does not have them."""
    told = past.read_object(folder / LAYERS)
    try:
        layers = [
            LayerNames(one["module"], one["kohya"], tuple(DiffusersTarget(**target) for target in one["diffusers"]))
            for one in told.get("layers", ())
        ]
        key_map = {name: _as_tuples(place) for name, place in told.get("key_map", {}).items()}
    except (KeyError, TypeError, AttributeError):
        return {}, {}
    return {names.kohya: names for names in layers}, key_map


def _listed(found: list[Checkpoint]) -> str:
    shown = [one.label for one in found[-8:]]
    return ", ".join(shown if len(found) <= 8 else ["…", *shown])


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file()]
    except OSError:
        return []


def _place_in_file(path: Path) -> tuple[int, int]:
    """Step and epoch of a file by its metadata, or else by its name."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return int(metadata["ss_steps"]), int(metadata["ss_epoch"])
    except (OSError, SafetensorError, KeyError, ValueError):
        number = path.stem.rpartition("-")[2]
        digits = number.removeprefix("step")
        if not digits.isdigit():
            return 0, 0
        return (int(digits), 0) if digits != number else (0, int(digits))


def _lines(folder: Path, kind: str, *needed: str) -> list[dict[str, Any]]:
    lines = history.read(past.log_text(folder))["lines"]
    return [line for line in lines if line.get("kind") == kind and all(name in line for name in needed)]


def _from_log(folder: Path) -> dict[str, Any]:
    """Losses, steps and epochs of a run that wrote no summary."""
    losses: dict[int, float] = {}
    epochs = 0
    for row in past.log_text(folder).splitlines():
        try:
            line = json.loads(row)
            if line["kind"] == "step":
                losses[int(line["step"])] = float(line["loss"])
            elif line["kind"] == "epoch":
                epochs = int(line["epoch"])
        except (ValueError, KeyError, TypeError):
            continue
    if not losses:
        return {}
    return {"losses": tuple(losses.values()), "steps": max(losses), "epochs": epochs}


def _fitting(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value read from JSON as its field takes it; None if it is of another kind."""
    usual = field.default if field.default is not dataclasses.MISSING else None
    if field.name == "concept_losses":
        return {str(name): tuple(losses) for name, losses in value.items()} if isinstance(value, dict) else None
    if isinstance(usual, tuple):
        return tuple(value) if isinstance(value, list) else None
    if isinstance(usual, float):
        return float(value) if isinstance(value, (int, float)) else None
    if isinstance(usual, int) or field.name == "seed":
        return value if isinstance(value, int) else None
    return value if isinstance(value, str) else None


def _is_plain(place: object) -> bool:
    if isinstance(place, (list, tuple)):
        return all(_is_plain(part) for part in place)
    return isinstance(place, (str, int))


def _as_tuples(place: Any) -> Any:
    return tuple(_as_tuples(part) for part in place) if isinstance(place, list) else place
