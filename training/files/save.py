"""Saves a LORA_MODEL into ComfyUI's LoRA folder and reads it back with ComfyUI's own loader."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from ..disk import safe_name
from ..errors import UserError
from ..events import counted
from ..host.keys import read_back
from ..host.paths import forget_lora_list, loras_folder
from ..lora import DiffusersTarget, LoraModel
from ..settings import Settings, knob
from .export import PRECISIONS, write_lora

log = logging.getLogger(__name__)

UNNAMED = "lora"  # file name of a LoRA whose run has no name


@dataclass(frozen=True)
class SaveSettings(Settings):
    """Name and kind of a LoRA file."""

    name: str = knob("", "File name, without folder and .safetensors. Empty: the name of the run.")
    precision: str = knob(
        "fp16", "Number format of the weights. fp16 is the usual choice; fp32 is exact and twice the size.",
        choices=tuple(PRECISIONS),
    )
    format: str = knob(
        "kohya", "Names of the weights. kohya is for ComfyUI, Forge and A1111; PEFT is for diffusers and peft.",
        choices=("kohya", "PEFT"),
    )
    overwrite: bool = knob(False, "Replace an existing file of this name. Off: a number is added to the new name.")


def save_lora(lora: dict[str, Any], name: str, *, precision: str, layout: str, overwrite: bool) -> Path:
    """Write a LoRA and check that ComfyUI can use all of it.

    Args:
        lora: A LORA_MODEL of this pack or of ComfyUI.
        name: File name without folder and suffix. Empty: the name of the run, or `lora` if it is unknown.
        precision: See `write_lora`.
        layout: See `write_lora`.
        overwrite: Replace an existing file of that name. Otherwise the name gets a number.

    Returns:
        The file that was written.

    Raises:
        SettingError: `precision` or `layout` is unknown.
        UserError: The name or folder cannot be used, the disk is full, or ComfyUI would not load the whole file. No
            file is left behind.
    """
    ours = lora if isinstance(lora, LoraModel) else LoraModel(dict(lora))
    # ComfyUI's own trainer names no run. Its LoRA must not be lost for want of a name.
    wanted = name if name.strip() else ours.run_name or UNNAMED
    path = write_lora(
        loras_folder() / f"{safe_name(wanted)}.safetensors",
        ours,
        precision=precision,
        layout=layout,
        overwrite=overwrite,
        check=lambda file: check_file(file, ours),
    )
    forget_lora_list()
    log.info("LoRA Workbench: saved %s (%s)", path, ours.origin or "of an unknown run")
    return path


def check_file(path: Path, lora: LoraModel) -> None:
    """Load a file as ComfyUI would and compare it with the trained layers.

    A PEFT file can have diffusers names that this host cannot load, such as those of a UNet's attention. Such a file is
    for diffusers: these layers do not count, and the log says so.

    Raises:
        UserError: ComfyUI would not load every layer it should.
    """
    if not lora.key_map:
        return  # a LoRA of another node: its model is not known here
    # Until it is checked the file does not end in .safetensors, so the host cannot load it by its path.
    tensors = safetensors.torch.load(path.read_bytes())
    there = {key.rsplit(".lora_", 1)[0] for key in tensors}
    absent = [
        names.module
        for names in lora.layers.values()
        if names.kohya not in there
        and not {target.module for target in names.diffusers or (DiffusersTarget(names.module),)} <= there
    ]
    known = [names for names in lora.layers.values() if names.kohya in lora.key_map]
    for_others = {target.module for names in known for target in names.diffusers} - set(lora.key_map)
    mine = {key: tensor for key, tensor in tensors.items() if key.rsplit(".lora_", 1)[0] not in for_others}
    if len(mine) < len(tensors):
        log.info("LoRA Workbench: this PEFT file is for diffusers and peft. For ComfyUI, save in the kohya format.")
    patched, left_over = read_back(mine, lora.key_map)
    if absent or left_over or (len(mine) == len(tensors) and patched < len(lora.layers)):
        raise UserError(
            f"The LoRA was not saved: ComfyUI would load only {patched} of its {counted(len(lora.layers), 'layer')} "
            f"(left over: {', '.join([*absent, *left_over][:3]) or 'none'}). Report this with the model's name."
        )
