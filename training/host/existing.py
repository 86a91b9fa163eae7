"""Starts a run from an existing LoRA: each layer begins with the pair that the file has for it.

The host's own loader finds the layers, so every format that it reads is understood: kohya's, PEFT's and diffusers',
OneTrainer's and ComfyUI's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.lora_convert
import torch
from torch import Tensor, nn

from ..adapters.flat import DENOISER
from ..adapters.lora import Trained, pair_shapes
from ..errors import UserError
from .apply import does_not_fit
from .keys import HOST_PREFIX, layer_names
from .layers import is_linear

_KINDS = {"loha": "LoHa", "lokr": "LoKr", "oft": "OFT", "boft": "BOFT", "glora": "GLoRA"}
_TEXT_PREFIXES = ("lora_te", "text_encoder", "lora_prior_te", "lycoris_te")
_INSTEAD = "Start from a plain LoRA, or apply this one with Apply LoRA before LoRA Trainer and train a fresh one on it."

Pair = tuple[Tensor, Tensor, float]  # down [rank, in], up [out, rank], alpha


@dataclass(frozen=True)
class _Piece:
    """What a file has for some rows of a layer's output: down [rank, in], up [rows, rank], the scale alpha / rank."""

    down: Tensor
    up: Tensor
    scale: float
    first_row: int = 0


def started_from(
    lora: Mapping[str, Tensor], layers: Sequence[Trained], patcher: Any, clip: Any, hint: Callable[[str], None]
) -> list[Trained]:
    """Give layers the pairs that a LoRA has for them, with its ranks and alphas.

    Layers that the LoRA lacks stay as they are. Further layers of the denoiser that it has are added at the end.

    Args:
        lora: Tensors in any format that the host reads.
        layers: What the run would train: layers of the denoiser by their path in it, others by the whole path that the
            host's map for text encoders gives them.
        patcher: The host's MODEL.
        clip: The host's CLIP, or None.
        hint: Receives a sentence for each part of the LoRA that is left out.

    Raises:
        UserError: No layer fits, or the LoRA holds what cannot be trained on.
    """
    wanted = {_weight(layer): layer for layer in layers}
    found, used = _read(lora, _names(patcher, clip, list(wanted)))
    modules = {path.replace("_orig_mod.", ""): module for path, module in patcher.model.named_modules()}
    started: dict[str, Trained] = {}
    left_out: list[str] = []
    for weight, patches in found.items():
        path = weight.removesuffix(".weight")
        is_denoisers = weight.startswith(HOST_PREFIX)
        layer = wanted.get(weight)
        if layer is None and not is_denoisers:
            left_out.append(path)
            continue
        module = layer.module if layer else modules.get(path)
        _refuse_untrainable(path, module, patches)
        assert module is not None
        if layer is None:
            layer = Trained(path.removeprefix(HOST_PREFIX), module, 0, 0.0)
        started[weight] = _with_start(layer, patches)
    if not started:
        raise does_not_fit(patcher, lora)
    _tell_what_is_left_out(left_out, [key for key in lora if key not in used], len(lora), hint)
    more = [layer for weight, layer in started.items() if weight not in wanted]
    return [started.get(_weight(layer), layer) for layer in layers] + more


def _weight(layer: Trained) -> str:
    """The host's key of a layer's weight."""
    return f"{HOST_PREFIX if layer.part_of == DENOISER else ''}{layer.path}.weight"


def _names(patcher: Any, clip: Any, weights: list[str]) -> dict[str, Any]:
    """The host's map from LoRA names to weights, and diffusers' names of layers that it lacks there.

    These are the attention layers of UNets, which the host names as old versions of diffusers did.
    """
    names = comfy.lora.model_lora_keys_unet(patcher.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    paths = [weight.removesuffix(".weight") for weight in weights if weight.startswith(HOST_PREFIX)]
    for path, layer in layer_names(patcher, paths).items():
        for target in layer.diffusers:
            weight = f"{path}.weight"
            place = weight if target.rows is None else (weight, (0, target.start, target.rows))
            names.setdefault(target.module, place)
    return names


def _read(lora: Mapping[str, Tensor], names: dict[str, Any]) -> tuple[dict[str, list[tuple[Any, Any]]], set[str]]:
    """Read a LoRA with the host's own loader.

    Args:
        lora: The LoRA.
        names: LoRA name → weight, or part of one.

    Returns:
        For each weight what the host would add to it, each with its place; the keys of `lora` that it uses.
    """
    converted = comfy.lora_convert.convert_lora(dict(lora))
    found: dict[str, list[tuple[Any, Any]]] = {}
    used: set[str] = set()
    for place, patch in comfy.lora.load_lora(converted, names, log_missing=False).items():
        weight = (place if isinstance(place, str) else place[0]).replace("_orig_mod.", "")
        found.setdefault(weight, []).append((place, patch))
        used |= getattr(patch, "loaded_keys", set())
    # Keys that the host's converter renames are not known by their names in the file.
    return found, used if converted.keys() == lora.keys() else set(lora)


def _refuse_untrainable(path: str, module: nn.Module | None, patches: list[tuple[Any, Any]]) -> None:
    """Refuse what is no plain LoRA on a linear layer or a 1×1 convolution.

    Raises:
        UserError: Names the kind and the layer.
    """
    for _, patch in patches:
        kind = _kind(patch) or _kind_of_layer(module)
        if kind:
            raise UserError(
                f"The LoRA in start_from holds {kind}, such as {path}, which LoRA Trainer cannot train on. {_INSTEAD}"
            )


def _kind(patch: Any) -> str:
    """What a patch of the host is, if it is no plain LoRA; else empty."""
    name = getattr(patch, "name", "")
    if name != "lora":
        return f"{_KINDS.get(name, name)} layers" if name else "whole weights (norms, biases or differences)"
    _, _, _, middle, dora_scale, *reshape = patch.weights
    if dora_scale is not None:
        return "DoRA layers"
    if middle is not None or _is_spatial(patch.weights[1]):
        return "LoCon layers (convolutions larger than 1×1)"
    return "layers that change a weight's shape" if any(part is not None for part in reshape) else ""


def _is_spatial(down: Tensor) -> bool:
    return any(side > 1 for side in down.shape[2:])


def _kind_of_layer(module: Any) -> str:
    """Why a layer cannot have a pair, if so; else empty."""
    if isinstance(module, nn.Conv2d):
        is_plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1 and module.padding == (0, 0)
        return "" if is_plain else "LoCon layers (convolutions larger than 1×1)"
    return "" if module is not None and is_linear(module) else "layers that are no linear ones"


def _with_start(layer: Trained, patches: list[tuple[Any, Any]]) -> Trained:
    """A layer that begins with what a LoRA has for it.

    Raises:
        UserError: The matrices have other sizes than the layer.
    """
    down_shape, up_shape = pair_shapes(layer.module, 1)
    fan_in, fan_out = down_shape[1], up_shape[0]
    with torch.inference_mode(False):
        pieces = [_piece(place, patch) for place, patch in patches]
        for piece in pieces:
            if piece.down.shape[1] != fan_in or piece.first_row + len(piece.up) > fan_out:
                raise UserError(
                    f"The LoRA in start_from has a layer {layer.path} of {piece.down.shape[1]} to {len(piece.up)} "
                    f"values, but this MODEL's takes {fan_in} to {fan_out}. Connect the MODEL that the LoRA was made "
                    "for."
                )
            if not (piece.down.isfinite().all() and piece.up.isfinite().all()):
                raise UserError(
                    f"The LoRA in start_from holds values that are not numbers in {layer.path}. Load another file."
                )
        down, up, alpha = _joined(pieces, fan_out)
    rank = len(down)
    shapes = pair_shapes(layer.module, rank)
    return replace(layer, rank=rank, alpha=alpha, start=(down.view(shapes[0]), up.view(shapes[1])))


def _piece(place: Any, patch: Any) -> _Piece:
    """A patch of the host as the rows it changes, in fp32."""
    up, down, alpha = (patch.weights[0], patch.weights[1], patch.weights[2])
    up, down = (tensor.detach().clone().float().flatten(1).cpu() for tensor in (up, down))
    first_row = 0
    if not isinstance(place, str):
        _, part, *function = place
        first_row = part[1] if part else 0
        if function:  # it rearranges rows, which is the same done to `up`
            up = function[0](up)
    return _Piece(down, up, 1.0 if alpha is None else float(alpha) / len(down), first_row)


def _joined(pieces: list[_Piece], fan_out: int) -> Pair:
    """One pair for all pieces of a layer, such as q, k and v: each has rows and columns of its own in `up`.

    Pieces with the same `down` share it, so a layer that this pack wrote as three is read as the one it was.
    """
    first = pieces[0]
    if len(pieces) == 1 and len(first.up) == fan_out:
        return first.down, first.up, first.scale * len(first.down)
    downs: list[Tensor] = []
    columns: list[int] = []
    for piece in pieces:
        known = [number for number, down in enumerate(downs) if torch.equal(down, piece.down)]
        if not known:
            downs.append(piece.down)
        number = known[0] if known else len(downs) - 1
        columns.append(sum(len(down) for down in downs[:number]))
    down = torch.cat(downs)
    scales = {piece.scale for piece in pieces}
    scale = scales.pop() if len(scales) == 1 else 1.0
    up = torch.zeros(fan_out, len(down))
    for piece, column in zip(pieces, columns, strict=True):
        factor = piece.scale / scale if scale else 1.0
        rows = slice(piece.first_row, piece.first_row + len(piece.up))
        up[rows, column : column + len(piece.down)] += piece.up * factor
    return down, up, scale * len(down)


def _tell_what_is_left_out(text: list[str], unused: list[str], total: int, hint: Callable[[str], None]) -> None:
    """Say which parts of a LoRA the run does without, a sentence each."""
    foreign = [key for key in unused if not key.startswith(_TEXT_PREFIXES)]
    if text or len(foreign) < len(unused):
        named = sorted({path.partition(".")[0] for path in text})
        which = f" ({', '.join(named)})" if named else ""
        hint(
            f"The LoRA in start_from has layers of text encoders that this run does not train{which}; they are left "
            "out of the result. Turn them on in Text Encoder Options."
        )
    if foreign:
        hint(
            f"{len(foreign)} of {total} tensors of the LoRA in start_from have no place in this MODEL and are left "
            f"out, such as {foreign[0]}. Connect the MODEL that it was made for."
        )
