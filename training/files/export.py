"""LoRA files: what other programs read, written so that a night's work cannot be lost or left half written.

Two layouts of the same numbers, always safetensors:

- `kohya`: one down, up and alpha per layer, by the names of kohya's trainer. ComfyUI, Automatic1111 and Forge
  read it.
- `peft`: `lora_A` and `lora_B` by the names of diffusers' modules, which split what ComfyUI fuses. Its
  readers take a file without alpha at scale 1, so alpha / rank is multiplied into `lora_B`.
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

from ..disk import SUFFIX, give_free_name, give_name, unfinished
from ..errors import SettingError, UserError
from ..lora import DiffusersTarget, LayerNames, LoraModel

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = ("kohya", "peft")



def to_kohya(lora: LoraModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a LoRA under kohya's names.

    Args:
        lora: The LoRA; one that came from elsewhere keeps the names it has.
        dtype: What floating point tensors are cast to, alpha too.

    Returns:
        Copies on the CPU: `<layer>.lora_down.weight` [rank, in, …], `.lora_up.weight` [out, rank, …] and
        `.alpha` [].
    """
    return {key: _cast(tensor, dtype) for key, tensor in lora.items()}


def to_peft(lora: LoraModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a LoRA under diffusers' names.

    A layer that diffusers splits becomes several, each with its rows of `lora_B` and a copy of `lora_A`. A
    layer for which no diffusers name is known goes by `diffusion_model.<path>`, which ComfyUI, ai-toolkit and
    musubi tuner read and diffusers converts for the models they write it for.

    Args:
        lora: A LoRA that was trained by this pack.
        dtype: What the tensors are cast to.

    Returns:
        Copies on the CPU: `<module>.lora_A.weight` [rank, in, …] and `.lora_B.weight` [rows, rank, …], with
        alpha / rank multiplied into `lora_B`.

    Raises:
        UserError: The LoRA came from elsewhere, or holds more than pairs of down and up.
    """
    if not lora.layers:
        raise UserError(
            "This LoRA was not trained by LoRA Workbench, so the names of its layers in diffusers are not "
            "known. Save it in the kohya layout."
        )
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for prefix, names in lora.layers.items():
        down_key, up_key = f"{prefix}.lora_down.weight", f"{prefix}.lora_up.weight"
        alpha_key = f"{prefix}.alpha"
        used |= {down_key, up_key, alpha_key}
        down, up = lora[down_key], lora[up_key]
        if alpha_key in lora:
            up = up.float() * (lora[alpha_key].item() / down.shape[0])
        for target in _peft_targets(names):
            rows = up.shape[0] - target.start if target.rows is None else target.rows
            tensors[f"{target.module}.lora_A.weight"] = _cast(down, dtype)
            tensors[f"{target.module}.lora_B.weight"] = _cast(up.narrow(0, target.start, rows), dtype)
    unknown = sorted(set(lora) - used)
    if unknown:
        raise UserError(
            f"This LoRA holds {len(unknown)} tensors that have no place in the PEFT layout, {unknown[0]} for "
            "one. Save it in the kohya layout."
        )
    return tensors


def model_hashes(tensors: Mapping[str, Tensor], metadata_ss: Mapping[str, str]) -> tuple[str, str]:
    """Compute the two hashes by which LoRA managers recognise a file, as kohya's trainer does.

    Args:
        tensors: What stands in the file.
        metadata_ss: Its metadata; keys that do not start with `ss_` are passed over.

    Returns:
        `sshs_model_hash`, SHA-256 of the file's bytes after its header, and `sshs_legacy_hash`, the first
        eight digits of the SHA-256 of 64 KiB at 1 MiB into a file that has no other metadata (of nothing, for
        a smaller one).
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
    """Write a LoRA file in one piece: it is there whole, or not at all.

    Args:
        path: The file, with or without `.safetensors`. Folders that are missing are made.
        lora: What to write; its metadata goes with it.
        precision: `fp16`, `bf16` or `fp32`.
        layout: `kohya` or `peft`.
        overwrite: Replace a file of that name. Otherwise a taken name gets a number: `name-2`, `name-3`, …
        check: Reads the written file back before it gets its name; what it raises leaves everything as it was.

    Returns:
        The file that was written.

    Raises:
        SettingError: `precision` or `layout` is none of the above.
        UserError: The folder cannot be written to or is full, a tensor is not finite or does not fit the
            precision, or the LoRA cannot be put in this layout. No file is left behind.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    if layout not in LAYOUTS:
        raise SettingError(f"layout is {layout!r}: choose one of {', '.join(LAYOUTS)}.")
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
    """A copy on the CPU that shares memory with nothing, as safetensors wants it."""
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", wanted, copy=True, memory_format=torch.contiguous_format)


def _peft_targets(names: LayerNames) -> tuple[DiffusersTarget, ...]:
    return names.diffusers or (DiffusersTarget(names.module),)


def _refuse_broken(lora: LoraModel) -> None:
    for key, tensor in lora.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"The LoRA is broken: {key} holds values that are not numbers (NaN or infinite). Training "
                "ran away; lower the learning rate and train again. Nothing was written."
            )


def _refuse_overflow(tensors: Mapping[str, Tensor], precision: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{key} holds values too large for {precision}, which would be written as infinite: save it "
                f"as {'bf16 or fp32' if precision == 'fp16' else 'fp32'}. Nothing was written."
            )


def _write_checked(path: Path, blob: bytes, overwrite: bool, check: Callable[[Path], None] | None) -> Path:
    """Write a file, have it checked, and only then give it its name."""
    try:
        with unfinished(path.parent) as part:
            part.write_bytes(blob)
            if check:
                check(part)
            if not overwrite:
                return give_free_name(part, _numbered(path))
            give_name(part, path)
    except OSError as error:
        raise UserError(_why_not(error, path, len(blob))) from error
    return path


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    stem, number = path.name[: -len(SUFFIX)], 2
    while True:
        yield path.with_name(f"{stem}-{number}{SUFFIX}")
        number += 1


def _why_not(error: OSError, path: Path, size: int) -> str:
    """Say in words why a file could not be written and what to do."""
    folder = path.parent
    needed = f"{size / 2**20:.1f} MiB"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        try:
            free = f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
        except OSError:
            free = "too little is free"
        return f"There is no room for {path.name} in {folder}: it needs {needed}, {free}. Make room first."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{path.name} cannot be written to {folder}: {error.strerror}. Give ComfyUI the right to write "
            "in that folder, or save to another."
        )
    return f"{path.name} ({needed}) cannot be written to {folder}: {error.strerror or error}."
