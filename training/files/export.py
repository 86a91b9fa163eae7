"""Writes LoRA files for other programs. A file is written whole or not at all, so no training is lost.

There are two layouts of the same numbers, both safetensors:

- `kohya`: one down, up and alpha tensor per layer, with the names of kohya's trainer. ComfyUI, Automatic1111 and
  Forge read it.
- `peft`: `lora_A` and `lora_B` with the names of diffusers' modules, which split layers that ComfyUI fuses.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..adapters.lora import peft_tensors
from ..disk import SUFFIX, disk_trouble, give_free_name, give_name, unfinished
from ..errors import SettingError, UserError
from ..events import counted
from ..lora import DiffusersTarget, LoraModel

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = ("kohya", "peft")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota error


def to_kohya(lora: LoraModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a LoRA under kohya's names.

    Args:
        lora: The LoRA. One from another program keeps its names.
        dtype: The dtype of the floating point tensors, alpha included.

    Returns:
        Copies on the CPU: `<layer>.lora_down.weight` [rank, in, …], `.lora_up.weight` [out, rank, …] and
        `.alpha` [].
    """
    return {key: _cast(tensor, dtype) for key, tensor in lora.items()}


def to_peft(lora: LoraModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a LoRA under diffusers' names.

    A layer that diffusers splits becomes several (`peft_tensors`). A layer without a known diffusers name is called
    `diffusion_model.<path>`. ComfyUI, ai-toolkit and musubi tuner read that name, and diffusers converts it for the
    models those trainers support.

    Args:
        lora: A LoRA trained by this pack.
        dtype: The dtype of the tensors.

    Returns:
        Copies on the CPU: `<module>.lora_A.weight` [rank, in, …] and `.lora_B.weight` [rows, rank, …], with
        alpha / rank multiplied into `lora_B`.

    Raises:
        UserError: The LoRA is from another program, or has tensors other than down, up and alpha.
    """
    if not lora.layers:
        raise UserError(
            "This LoRA was not trained by LoRA Workbench, so the diffusers names of its layers are not known. "
            "Save it in the kohya format."
        )
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, names in lora.layers.items():
        made, keys = peft_tensors(lora, name, names.diffusers or (DiffusersTarget(names.module),))
        tensors |= {key: _cast(tensor, dtype) for key, tensor in made.items()}
        used |= keys
    unknown = sorted(set(lora) - used)
    if unknown:
        raise UserError(
            f"This LoRA has {counted(len(unknown), 'tensor')} without a place in the PEFT format, such as {unknown[0]}."
            " Save it in the kohya format."
        )
    return tensors


def model_hashes(tensors: Mapping[str, Tensor], metadata_ss: Mapping[str, str]) -> tuple[str, str]:
    """Compute the two hashes by which LoRA managers recognize a file, as kohya's trainer does.

    Args:
        tensors: The tensors of the file.
        metadata_ss: Its metadata. Keys that do not start with `ss_` are ignored.

    Returns:
        `sshs_model_hash` and `sshs_legacy_hash` of a file with no other metadata. The first is the SHA-256 of its
        bytes after the header. The second is the first eight digits of the SHA-256 of the 64 KiB at offset 1 MiB, or
        of no bytes if the file is smaller.
    """
    only_ss = {key: value for key, value in metadata_ss.items() if key.startswith("ss_")}
    blob = memoryview(safetensors.torch.save(dict(tensors), only_ss))
    header = int.from_bytes(blob[:8], "little")
    legacy = blob[0x100000 : 0x100000 + 0x10000]
    return hashlib.sha256(blob[8 + header :]).hexdigest(), hashlib.sha256(legacy).hexdigest()[:8]


def write_lora(
    path: Path,
    lora: LoraModel,
    *,
    precision: str = "fp16",
    layout: str = "kohya",
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write a LoRA file whole or not at all.

    Args:
        path: The file, with or without `.safetensors`. Missing folders are created.
        lora: The LoRA and its metadata.
        precision: A key of `PRECISIONS`.
        layout: One of `LAYOUTS`.
        overwrite: Replace an existing file. Otherwise the name gets a number: `name-2`, `name-3`, …
        check: Called with the written file before it gets its name. If it raises, nothing has changed.

    Returns:
        The file that was written.

    Raises:
        SettingError: `precision` or `layout` is unknown.
        UserError: The folder cannot be written, the disk is full, a tensor is not finite or too large for the
            precision, or the LoRA has no form in this layout. No file is left behind.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"precision is {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if layout not in LAYOUTS:
        raise SettingError(f"layout is {layout!r}. Choose one of {', '.join(LAYOUTS)}.")
    _refuse_broken(lora)
    tensors = (to_kohya if layout == "kohya" else to_peft)(lora, PRECISIONS[precision])
    _refuse_overflow(tensors, precision)

    metadata = dict(lora.metadata)
    model_hash, legacy_hash = model_hashes(tensors, metadata)
    metadata |= {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    blob = safetensors.torch.save(tensors, metadata)
    if not path.name.lower().endswith(SUFFIX):
        path = path.with_name(path.name + SUFFIX)
    return _write_checked(path, blob, overwrite, check)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy on the CPU that shares no memory, as safetensors requires."""
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", wanted, copy=True, memory_format=torch.contiguous_format)


def _refuse_broken(lora: LoraModel) -> None:
    for key, tensor in lora.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"Nothing was written: {key} has values that are NaN or infinite, because the training diverged. "
                "Lower the learning rate and train again."
            )


def _refuse_overflow(tensors: Mapping[str, Tensor], precision: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"Nothing was written: {key} has values too large for {precision}, which would become infinite. "
                f"Save it as {'bf16 or fp32' if precision == 'fp16' else 'fp32'}."
            )


def _write_checked(path: Path, blob: bytes, overwrite: bool, check: Callable[[Path], None] | None) -> Path:
    """Write a file, check it, and only then give it its name."""
    try:
        with unfinished(path.parent) as part:
            part.write_bytes(blob)
            if check:
                check(part)
            if not overwrite:
                return give_free_name(part, _numbered(path))
            give_name(part, path)
    except OSError as error:
        trouble = disk_trouble(error, path)
        if error.errno in _FULL:
            trouble += f" It needs {len(blob) / 2**20:.1f} MiB{_free(path.parent)}."
        raise UserError(trouble) from error
    return path


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    stem, number = path.name[: -len(SUFFIX)], 2
    while True:
        yield path.with_name(f"{stem}-{number}{SUFFIX}")
        number += 1


def _free(folder: Path) -> str:
    """Return how much room a folder's disk has, as the end of a sentence; nothing if that is not known."""
    try:
        return f"; {shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    except OSError:
        return ""
