"""Reads a LoRA file of any program as a LORA_MODEL, with its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..events import counted
from ..lora import LoraModel
from ..settings import Settings, knob

SUFFIXES = (".safetensors", ".sft")


@dataclass(frozen=True)
class LoadLoraSettings(Settings):
    """Which LoRA file is loaded."""

    file: str = knob("", "LoRA file in ComfyUI's models/loras. Only safetensors files are read.")


def refuse_other_files(name: str) -> None:
    """Refuse a file that is not in the safetensors format: loading a pickle can run any code.

    Raises:
        UserError: Names the file.
    """
    if not name.lower().endswith(SUFFIXES):
        raise UserError(f"{name} is not a safetensors file. Choose a LoRA that ends in .safetensors.")


def load_lora(path: Path, name: str) -> LoraModel:
    """Read a LoRA file.

    Args:
        path: The file.
        name: What it is called in messages and in the metadata of a run that starts from it.

    Raises:
        UserError: The file is missing, damaged, empty, or not in the safetensors format.
    """
    refuse_other_files(name)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            metadata = file.metadata()
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name} cannot be read ({error}). Copy the file again, or choose another one.") from error
    if not tensors:
        raise UserError(f"{name} holds no tensors. Choose another file.")
    return LoraModel(tensors, metadata=metadata, file=name)


def described(lora: LoraModel) -> str:
    """A loaded file in a few lines: its tensors, its ranks and the run it comes from."""
    found = {"rank": lora.metadata.get("ss_network_dim"), "alpha": lora.metadata.get("ss_network_alpha")}
    sizes = ", ".join(f"{name} {value}" for name, value in found.items() if value)
    return "\n".join(filter(None, [counted(len(lora), "tensor"), sizes, lora.origin]))
