"""Hands on the LoRA of a finished run with the same inputs, in place of training it again."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..disk import safe_name, write_whole
from ..errors import UserError
from ..events import Place, Sink
from ..lora import LoraModel, RunSummary
from . import past
from .checkpoints import checkpoints, load, summary
from .folder import CONFIG, RUN

log = logging.getLogger(__name__)

_MOST = 50  # places remembered of one run


def reused(
    root: Path, fingerprint: str, config: TrainConfig, sink: Sink, place: Place
) -> tuple[LoraModel, RunSummary] | None:
    """The LoRA of the newest finished run with a fingerprint, and how that run went.

    Args:
        root: The folder of all runs.
        fingerprint: Of the run that is asked for; empty if it has none.
        config: Its settings. If its name is another one, the LoRA takes that name. A run whose optimizer memory forced
            to 8 bits is used only for the same setting of memory.
        sink: Receives a sentence on the run that was used.
        place: Where it is used.

    Returns:
        None if there is no such run, or its file is gone, damaged or changed.
    """
    for folder in past.finished(root, fingerprint):
        optimizer = (past.facts(folder) or {}).get("optimizer", config.optimizer)
        if optimizer != config.optimizer and _set_to(folder, "memory") != config.memory:
            log.info("LoRA Workbench: the run in %s is not used: memory made its optimizer %s", folder, optimizer)
            continue
        try:
            lora = load(checkpoints(folder)[-1])
        except UserError as error:
            log.warning("LoRA Workbench: the run in %s is not used: %s", folder, error)
            continue
        lora.file = ""  # it is the run's, as if it had just been trained
        wished, name = _set_to(folder, "name"), safe_name(config.name)
        if name not in (wished, lora.run_name):
            lora.metadata |= {"ss_output_name": name, "modelspec.title": name}
        found = summary(folder)
        _remember(folder, place)
        sink.record(found.id, {"kind": "reused", "run": found.id})
        sentence = (
            f"Uses the LoRA of the run {found.place}, which had the same inputs. To train it again, such as for other "
            "samples, set if_run_before to 'train again'."
        )
        sink.tell(sentence)
        log.info("LoRA Workbench: %s", sentence)
        return lora, found
    return None


def _set_to(folder: Path, setting: str) -> str:
    """What a run was set to. Its folder may have got another name, and memory may have needed another optimizer."""
    return str(past.read_object(folder / CONFIG).get(setting, ""))


def _remember(folder: Path, place: Place) -> None:
    """Write into a run's facts that it is shown in a place now. A place counts once."""
    facts: dict[str, Any] = past.facts(folder) or {}
    if not place.workflow:
        return
    earlier = [use for use in past.uses(facts) if (use["workflow"], use["node"]) != (place.workflow, place.node)]
    facts["uses"] = [*earlier, {**vars(place), "at": time.time()}][-_MOST:]
    try:
        write_whole(folder / RUN, json.dumps(facts, indent=1, ensure_ascii=False))
    except OSError as error:
        log.warning("LoRA Workbench: %s cannot be written (%s)", folder / RUN, error)
