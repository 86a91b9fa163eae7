"""A LORA_MODEL as a file in ComfyUI's LoRA folder, read back by the host's own loader before it counts as saved."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from ..disk import safe_name
from ..errors import UserError
from ..host.keys import read_back
from ..host.paths import forget_lora_list, loras_folder
from ..lora import DiffusersTarget, LoraModel
from ..settings import Settings, knob
from .export import write_lora

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveSettings(Settings):
    """Name and kind of a LoRA file."""

    name: str = knob("my_lora", "File name, without folder and .safetensors.")
    precision: str = knob(
        "fp16", "Number format of the weights. fp16 is the usual choice; fp32 is exact and twice the size.",
        choices=("fp16", "bf16", "fp32"),
    )
    format: str = knob(
        "kohya", "Names of the weights. kohya is for ComfyUI, Forge and A1111; PEFT is for diffusers and peft.",
        choices=("kohya", "PEFT"),
    )
    overwrite: bool = knob(False, "Replace an existing file of this name. Off: a number is added to the new name.")


def save_lora(lora: dict[str, Any], name: str, *, precision: str, layout: str, overwrite: bool) -> Path:
    """Write a LoRA and check that ComfyUI can use all of it.

    Args:
        lora: A LORA_MODEL, ours or the host's.
        name: File name without folder and suffix.
        precision: `fp16`, `bf16` or `fp32`.
        layout: `kohya` or `peft`.
        overwrite: Whether an existing file of that name is replaced; else a number is added.

    Raises:
        UserError: The name or folder cannot be used, the disk is full, or the file that was written is not the
            LoRA that was meant; then it is removed again.
    """
    ours = lora if isinstance(lora, LoraModel) else LoraModel(dict(lora))
    path = write_lora(
        loras_folder() / f"{safe_name(name)}.safetensors",
        ours,
        precision=precision,
        layout=layout,
        overwrite=overwrite,
        check=lambda file: check_file(file, ours),
    )
    forget_lora_list()
    log.info("LoRA Workbench: saved %s", path)
    return path


def check_file(path: Path, lora: LoraModel) -> None:
    """Load a file as ComfyUI would and hold it against the layers that were trained.

    Layers whose diffusers names alone this host has no map for (a UNet's attention, say) are for diffusers: they are
    left out of the count, and the log says so.

    Raises:
        UserError: ComfyUI would not load every layer it should.
    """
    if not lora.key_map:
        return  # made by another node: which model it belongs to is not known here
    # The file does not end in .safetensors until it is checked, so the host is given what it would have read.
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
        log.info("LoRA Workbench: this PEFT file is for diffusers and peft; for ComfyUI save the format kohya.")
    patched, left_over = read_back(mine, lora.key_map)
    if absent or left_over or (len(mine) == len(tensors) and patched < len(lora.layers)):
        raise UserError(
            f"The LoRA was not saved: of its {len(lora.layers)} layers ComfyUI would load only {patched} "
            f"(left over: {', '.join([*absent, *left_over][:3]) or 'none'}). Please report this with the model's name."
        )
