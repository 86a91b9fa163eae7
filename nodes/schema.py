"""Sockets and widgets: the inputs of every node are made from its settings here."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..training.config import TrainConfig, TrainerSettings
from ..training.disk import safe_name
from ..training.errors import UserError
from ..training.settings import Settings, ordered_fields, settings_from

# Our own sockets carry the pack's name, because other packs use the bare words.
Dataset = io.Custom("LORA_DATASET")
Run = io.Custom("LORA_RUN")
TextEncoderOptions = io.Custom("LORA_TEXT_ENCODER_OPTIONS")
LossOptions = io.Custom("LORA_LOSS_OPTIONS")
OptimizerOptions = io.Custom("LORA_OPTIMIZER_OPTIONS")
SamplePrompts = io.Custom("LORA_SAMPLE_PROMPTS")
HeldOut = io.Custom("LORA_HELD_OUT")
# ComfyUI's own, so that its nodes and ours connect.
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

# The front end rounds every number, by default to the decimals of its step. `round=False` does not stop that.
FINEST = 1e-10


def widgets(config: type[Settings], **overrides: dict[str, Any]) -> list[Any]:
    """Make one input for each setting: type, default, bounds and tooltip come from its knob.

    Args:
        config: A frozen dataclass whose fields were made by `knob`.
        overrides: Arguments that are known only now, by field name. `folder={"options": [...]}` makes a drop-down
            list whose first option is the default.
    """
    fields = ordered_fields(config)
    names = [field.name for field in fields]
    added = names[names.index(config.ADDED_FROM) :] if config.ADDED_FROM else []
    optional = {name: {"optional": True} for name in added}
    return [_widget(field, {**optional.get(field.name, {}), **overrides.get(field.name, {})}) for field in fields]


def training_inputs(*more: Any) -> list[Any]:
    """The inputs of the nodes that train: option nodes, what one node alone has, then the trainer's settings."""
    return [
        TextEncoderOptions.Input(
            "text_encoder_options", optional=True, tooltip="From Text Encoder Options. Empty: trains only the model."
        ),
        LossOptions.Input("loss_options", optional=True, tooltip="From Loss Options. Empty: their default settings."),
        OptimizerOptions.Input(
            "optimizer_options", optional=True, tooltip="From Optimizer Options. Empty: their default settings."
        ),
        LoraModel.Input(
            "start_from", optional=True, tooltip="A LoRA to train on, from Load LoRA File. Empty: a fresh one."
        ),
        HeldOut.Input(
            "held_out", optional=True, tooltip="From Held-out Pictures: which pictures are measured and not trained."
        ),
        *more,
        *widgets(TrainerSettings),
    ]


def training_config(inputs: dict[str, Any]) -> TrainConfig:
    """The settings of a run from the inputs made by `training_inputs`.

    Raises:
        SettingError: Settings contradict each other.
    """
    options = [inputs.get(name) for name in ("text_encoder_options", "loss_options", "optimizer_options")]
    chosen = {name: value for option in options if option is not None for name, value in vars(option).items()}
    return settings_from(TrainConfig, {**chosen, **inputs})


def _widget(field: dataclasses.Field[Any], more: dict[str, Any]) -> Any:
    made = _plain_widget(field, more)
    if field.metadata["advanced"]:
        # Constructors of 0.3.75 do not take `advanced`.
        made.extra_dict = {**made.extra_dict, "advanced": True}
    return made


def _plain_widget(field: dataclasses.Field[Any], more: dict[str, Any]) -> Any:
    rule = field.metadata
    if "options" in more:
        return io.Combo.Input(field.name, **{"tooltip": rule["doc"], **more})
    common: dict[str, Any] = {"default": field.default, "tooltip": rule["doc"], **more}
    if rule["choices"]:
        return io.Combo.Input(field.name, options=list(rule["choices"]), **common)
    if isinstance(field.default, bool):
        return io.Boolean.Input(field.name, **common)
    if isinstance(field.default, str):
        return io.String.Input(field.name, multiline=rule["multiline"], **common)
    bounds = {name: rule[name] for name in ("min", "max", "step") if rule[name] is not None}
    if isinstance(field.default, int):
        # The front end gives an input named `seed` a new value after every queue unless this is off.
        return io.Int.Input(field.name, **common, **bounds, control_after_generate=False)
    return io.Float.Input(field.name, **common, **bounds, round=None if rule["rounded"] else FINEST)


def valid_name(name: str | None, *, may_be_empty: bool = False) -> bool | str:
    """Answer a node's `validate_inputs` for a file name: True, or what is wrong with it.

    ComfyUI asks before anything runs, so a bad name cannot end a long training at its last step. A name from another
    node is not known yet (None). It is checked when the node runs.
    """
    if name is None or (may_be_empty and not name.strip()):
        return True
    try:
        safe_name(name)
    except UserError as error:
        return str(error)
    return True
