"""From settings to sockets: every node's schema is made here, for old and new hosts alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..training.disk import safe_name
from ..training.errors import UserError

CATEGORY = "LoRA Workbench"

# Sockets of our own carry the pack's name where other packs use the bare word.
Dataset = io.Custom("LORA_DATASET")
Run = io.Custom("LORA_RUN")
# ComfyUI's own, so that its nodes and ours can be mixed.
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(node: type[io.ComfyNode], **parts: Any) -> io.Schema:
    """Make a node's schema, leaving out what the running host does not know (search aliases, say).

    Args:
        node: The node's class; its id is `LoRAWorkbench_<class name>`.
        parts: Fields of io.Schema.
    """
    parts = {"node_id": f"LoRAWorkbench_{node.__name__}", "category": CATEGORY, **parts}
    return io.Schema(**{name: part for name, part in parts.items() if name in _SCHEMA_FIELDS})


def widgets(config: type, **overrides: dict[str, Any]) -> list[Any]:
    """Make one input for each setting of a config dataclass: type, default, bounds and tooltip are its own.

    Args:
        config: A frozen dataclass whose fields were made by `knob`.
        overrides: Further arguments of single inputs, by field name.
    """
    return [_widget(field, overrides.get(field.name, {})) for field in dataclasses.fields(config)]


def advanced(made: Any) -> Any:
    """Mark an input as one that the node hides until asked."""
    made.extra_dict = {**made.extra_dict, "advanced": True}  # hosts of 0.3.75 take it in no constructor
    return made


def _widget(field: dataclasses.Field[Any], more: dict[str, Any]) -> Any:
    made = _plain_widget(field, more)
    return advanced(made) if field.metadata["advanced"] else made


def _plain_widget(field: dataclasses.Field[Any], more: dict[str, Any]) -> Any:
    rule = field.metadata
    common: dict[str, Any] = {"default": field.default, "tooltip": rule["doc"], **more}
    if rule["choices"]:
        return io.Combo.Input(field.name, options=list(rule["choices"]), **common)
    if isinstance(field.default, bool):
        return io.Boolean.Input(field.name, **common)
    if isinstance(field.default, str):
        return io.String.Input(field.name, **common)
    bounds = {name: rule[name] for name in ("min", "max", "step") if rule[name] is not None}
    if isinstance(field.default, int):
        # Off, or the front end would draw a new `seed` after every queue and the graph would train anew each time.
        return io.Int.Input(field.name, **common, **bounds, control_after_generate=False)
    return io.Float.Input(field.name, **common, **bounds, round=False)


def config_from(config: type, inputs: dict[str, Any]) -> Any:
    """Make a config from a node's inputs, in which others may lie beside its own."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in inputs.items() if name in names})


def valid_name(name: str | None) -> bool | str:
    """Answer a node's validate_inputs for a file name: True, or what is wrong with it.

    Asked before anything runs, so that a night's training does not end at a name that cannot be written. A name
    that comes from another node is not known yet (None) and is checked when the node runs.
    """
    if name is None:
        return True
    try:
        safe_name(name)
    except UserError as error:
        return str(error)
    return True
